"""Whole training steps at ViT-B-16: they fit in memory; what gpu.sh measures of them, at a small size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_adapter import make_step, measured  # noqa: E402

TINY = str(ROOT / "components" / "train_teacher" / "models" / "vit_32.json")
GIB = 1 << 30


@pytest.mark.full
@pytest.mark.parametrize("stem", ["splat", "paper"])
def test_vit_b_16_steps_under_10_gib(stem: str) -> None:
    """224 px, 3136 Gaussians, batch 4, in a process of its own: three steps, AdamW's moments included.

    Of stage 2, which takes more than stage 1.
    """
    command = [sys.executable, "benchmarks/gpu_adapter.py", "--stem", stem, "--stage", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout)
    assert GIB < row["memory_bytes"] < 10 * GIB, "weights, gradients and moments alone take one"


@pytest.mark.parametrize("stem", ["splat", "paper", ""])
def test_a_step_is_measured(stem: str) -> None:
    row = measured(TINY, stem, 20, 3, "cpu", steps=1)
    assert row["samples_per_s"] == pytest.approx(3e3 / row["step_ms"])
    assert row["memory_bytes"] > 0


@pytest.mark.parametrize(("stem", "stage"), [("splat", 1), ("splat", 2), ("paper", 2), ("", 2)])
def test_the_measured_steps_learn(stem: str, stage: int) -> None:
    step = make_step(TINY, stem, 20, 3, "cpu", stage=stage, policy="paper")
    losses = [float(step()) for _ in range(12)]
    assert losses[-1] < losses[0]
