"""What a GPU does during a fit: how long kernels run, how much memory is taken."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch


def busy_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def kernel_share(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds in which any kernel runs while `work` does, by CUPTI through PyTorch's profiler; share of wall time.

    CUPTI sees every kernel of the process. Copies do not count.
    """
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    kernels = [event for event in seen.events() or [] if not re.match(r"mem(cpy|set)", event.name, re.IGNORECASE)]
    kernels = [event for event in kernels if "CUDA" in str(event.device_type)]
    busy = 1e-6 * busy_seconds((event.time_range.start, event.time_range.end) for event in kernels)
    return {"kernel_s": busy, "profiled_wall_s": wall, "kernel_share": busy / wall, "kernels": float(len(kernels))}


class MemoryWatch:
    """The most device memory taken at any look, in bytes, above what was taken at the start."""

    def __init__(self) -> None:
        self.before, self.most = torch.cuda.mem_get_info()[0], 0

    def look(self) -> None:
        self.most = max(self.most, self.before - torch.cuda.mem_get_info()[0])
