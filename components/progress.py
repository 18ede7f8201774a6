"""Progress of long work: a bar with time left on a terminal, plain lines elsewhere (both on stderr)."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 5.0
PLAIN_SHARE = 0.05  # of the time gone by: hours of work do not fill a log


class Bar(ABC):
    """A counter of finished units; values such as a loss or a PSNR ride along."""

    def __init__(self, label: str, total: int, unit: str, start: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.start = start
        self.started = time.monotonic()

    def advance(self, count: int = 1, **values: float) -> None:
        """Count `count` more units as done; `values` are shown beside the counter."""
        self.done += count
        self._show(values)

    def rate(self) -> float:
        """Units a second since the bar was opened."""
        return (self.done - self.start) / max(time.monotonic() - self.started, 1e-9)

    @abstractmethod
    def _show(self, values: dict[str, float]) -> None:
        """Show the counter and `values`."""


def _text(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())


class _PlainBar(Bar):
    def __init__(self, label: str, total: int, unit: str, start: int = 0) -> None:
        super().__init__(label, total, unit, start)
        self._last_shown, self._values, self._written = time.monotonic(), "", -1

    def _line(self) -> None:
        self._written = self.done
        rate = self.rate()
        left = (self.total - self.done) / rate if rate > 0 else 0.0
        line = f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.3g}/s, {left:.0f} s left"
        print(f"{line} {self._values}".rstrip(), file=sys.stderr, flush=True)

    def _show(self, values: dict[str, float]) -> None:
        self._values = _text(values) or self._values
        now = time.monotonic()
        if now - self._last_shown >= max(PLAIN_INTERVAL_S, PLAIN_SHARE * (now - self.started)):
            self._last_shown = now
            self._line()

    def close(self) -> None:
        """Write the last count, if it has not been."""
        if self._written != self.done:
            self._line()


class _RichBar(Bar):
    def __init__(self, label: str, total: int, unit: str, start: int, view: Progress) -> None:
        super().__init__(label, total, unit, start)
        self._view = view
        self._task = view.add_task(label, total=total, completed=start, values="", unit=unit)

    def _show(self, values: dict[str, float]) -> None:
        rate = f"{self.rate():.3g}/s"
        self._view.update(self._task, completed=self.done, values=f"{rate} {_text(values)}")


class _NoBar(Bar):
    def _show(self, values: dict[str, float]) -> None:
        """Nothing."""


@contextmanager
def progress(label: str, *, total: int, unit: str = "steps", start: int = 0, shown: bool = True) -> Iterator[Bar]:
    """Open a progress display for `total` units, `start` of which are already done; not shown: only count."""
    if not shown:
        yield _NoBar(label, total, unit, start)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        bar = _PlainBar(label, total, unit, start)
        yield bar
        bar.close()
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[values]}"),
    )
    with Progress(*columns, console=console) as view:
        yield _RichBar(label, total, unit, start, view)
