"""How fast training goes and what it takes: figures that differ from run to run and never enter an artifact."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

GIB = 1 << 30
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class _Waited:
    """Seconds that this process has waited for batches."""

    seconds = 0.0


@contextmanager
def waiting() -> Iterator[None]:
    """Count the block's time as time spent on getting data."""
    started = time.perf_counter()
    try:
        yield
    finally:
        _Waited.seconds += time.perf_counter() - started


def peak_memory_gib() -> float:
    """The most that this process has used: of the GPU where one is used, else resident memory."""
    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    if used:
        return used / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / GIB


class Pace:
    """Means over the steps since the last restart. batch_size: samples a step, over all processes; 0: not counted."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Begin a new stretch of steps."""
        self._started, self._waited = time.perf_counter(), _Waited.seconds
        self._steps, self._norms = 0, 0.0

    def step(self, grad_norm: float) -> None:
        """Count a finished step and its gradient's norm before clipping."""
        self._steps += 1
        self._norms += grad_norm

    def measured(self) -> dict[str, float]:
        """step_s, data_s (of it, waited for batches), samples_per_s, memory_gib (the peak so far), grad_norm."""
        steps = max(1, self._steps)
        seconds = max(time.perf_counter() - self._started, 1e-9)
        found = {
            "step_s": seconds / steps,
            "data_s": (_Waited.seconds - self._waited) / steps,
            "memory_gib": peak_memory_gib(),
            "grad_norm": self._norms / steps,
        }
        if self._batch_size:
            found["samples_per_s"] = self._batch_size * steps / seconds
        return found
