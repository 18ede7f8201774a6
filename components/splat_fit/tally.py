"""How far the fitting of a set is that others do: from the names of the entries in the store."""

from __future__ import annotations

import time

from components.progress import Bar
from components.splat_fit.stage import Work

LISTING_SHARE = 0.05  # of the time that goes by: 128,000 names are 129 requests


class Tally:
    """Tells a bar what has been committed, not oftener than every `interval_s`, or than listing is cheap."""

    def __init__(self, work: Work, bar: Bar, interval_s: float) -> None:
        self._work, self._bar, self._interval_s = work, bar, interval_s
        self._pictures = {entry.index: entry.ok for entry in work.shards}
        self._seen: set[int] = set()
        self._counted = bar.done
        self._next = 0.0

    @property
    def done(self) -> int:
        """Shards that had an entry at the last look."""
        return len(self._seen)

    def look(self, *, now: bool = False, **values: float) -> None:
        """List the entries if it is time to (or `now`), and show `values` beside the count of pictures."""
        started = time.monotonic()
        if not now and started < self._next:
            return
        self._seen |= self._work.commit.done_indexes() & self._pictures.keys()
        took = time.monotonic() - started
        self._next = started + took + max(self._interval_s, took / LISTING_SHARE)
        pictures = sum(self._pictures[index] for index in self._seen)
        if more := max(0, pictures - self._counted):
            self._counted = pictures
        self._bar.advance(more, shards=self.done, **values)
