"""Large bodies, read a few at a time so that memory stays bounded, and none of them at the others' cost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

LARGE_BYTES, NUM_LARGE = 4 << 20, 8  # bodies beyond so many bytes are read so many at a time
SLOW_BYTES = 64 << 10  # a second: one that makes less while others wait is ended
SLOW_S = 5.0  # over which that is measured


@dataclass(eq=False)
class Large:
    """A body that may be read on. size: bytes that have come; scope: expires where it is too slow."""

    size: int
    scope: asyncio.Timeout
    since: float
    size_then: int


class LargeBodies:
    """Lets NUM_LARGE bodies be read on at a time, in the order in which they ask.

    Who waits is not charged for it; who is let through and makes less than SLOW_BYTES a second over SLOW_S while
    others wait is ended: servers that send a large body's beginning and then drip must not keep the others from theirs.
    """

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(NUM_LARGE)
        self._read: set[Large] = set()
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, size: int, deadline: asyncio.Timeout, scope: asyncio.Timeout) -> Large:
        """Wait for a place for a body of which `size` bytes have come; `deadline` stands still meanwhile.

        scope: expires later on if the body is too slow. The caller counts on in the result's `size`, and gives it to
        `leave` in the end.
        """
        loop = asyncio.get_running_loop()
        if self._slots.locked():
            end, now = deadline.when(), loop.time()
            deadline.reschedule(None)
            if not self._waiting:
                for body in self._read:  # what they did while nobody waited is their own affair
                    body.since, body.size_then = now, body.size
            self._waiting += 1
            if self._timer is None:
                self._timer = loop.call_later(SLOW_S, self._look)
            try:
                await self._slots.acquire()
            finally:
                self._waiting -= 1
                deadline.reschedule(None if end is None else end + loop.time() - now)
        else:
            await self._slots.acquire()
        body = Large(size, scope, loop.time(), size)
        self._read.add(body)
        return body

    def leave(self, body: Large) -> None:
        """Give the place back."""
        self._read.discard(body)
        self._slots.release()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for body in [body for body in self._read if now - body.since >= SLOW_S]:
            if body.size - body.size_then < SLOW_BYTES * (now - body.since):
                body.scope.reschedule(now)
                self._read.discard(body)
            body.since, body.size_then = now, body.size
        self._timer = loop.call_later(SLOW_S, self._look) if self._waiting else None
