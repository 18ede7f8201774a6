"""Times of benchmarks/adapter.py: what each phase of a training took."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Clock:
    """Wall and processor time by phase of training, from one thing told to the next."""

    def __init__(self, spent: Mapping[str, list[float]] | None = None) -> None:
        self.spent: dict[str, list[float]] = {phase: list(times) for phase, times in (spent or {}).items()}
        self._last = (time.perf_counter(), time.process_time())

    def __call__(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Count the time since the last call for this phase."""
        now = (time.perf_counter(), time.process_time())
        total = self.spent.setdefault(phase, [0.0, 0.0])
        for place in range(2):
            total[place] += now[place] - self._last[place]
        self._last = now

    def of(self, *starts: str) -> dict[str, float | None]:
        """Of phases whose names start so; None where nothing was measured, as all was found."""
        found = [spent for phase, spent in self.spent.items() if phase.startswith(starts)]
        wall, cpu = (sum(spent[place] for spent in found) if found else None for place in range(2))
        return {"seconds": wall, "cpu_seconds": cpu}
