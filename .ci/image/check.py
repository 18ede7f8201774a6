"""Part of the Dockerfile: is what was installed what the target wants? check.py TARGET TORCH_BUILD."""

from __future__ import annotations

import sys

import torch
from splat2d import _core

from components.__main__ import main

target, wanted = sys.argv[1:]
found = "cuda" if torch.version.cuda else "cpu"
if found != wanted:
    sys.exit(
        f"torch {torch.__version__} is built for {found}, not for {wanted}: give --build-arg TORCH_INDEX_URL, the "
        f"address of PyTorch's packages that are built for {wanted} (make image TORCH_INDEX_URL=...)"
    )
if _core.built_with_cuda != (target == "gpu"):
    sys.exit(f"splat2d was built {'with' if _core.built_with_cuda else 'without'} CUDA, for the target {target}")
main(["--version"])
