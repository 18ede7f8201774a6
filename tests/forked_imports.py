"""What the server of forks.py imports; no thread may be left running, as a fork would lose it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gates  # noqa: F401
import mlflow.tracking  # noqa: F401
import sqlalchemy  # noqa: F401
import torch._dynamo  # noqa: F401  the first step of an optimizer would

import components.registry
import components.train_adapter.stage
import components.train_teacher.stage  # noqa: F401
from components.openclip import import_open_clip

import_open_clip()
THREADS = len(os.listdir("/proc/self/task"))
if 1 + ("pyarrow" in os.sys.modules) < THREADS:
    raise RuntimeError(f"{THREADS} threads")
