"""Stopping in good order: SIGTERM and Ctrl-C ask long work to stop at its next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from components.errors import Interrupted


class Stop:
    """Whether a stop was asked for; work looks at it where stopping loses nothing."""

    def __init__(self) -> None:
        self.requested = False
        self.signal_name = ""

    def request(self, signal_name: str = "") -> None:
        """Ask for a stop, as a signal would."""
        self.requested, self.signal_name = True, signal_name

    def check(self, kept: str) -> None:
        """Raise Interrupted if a stop was asked for; `kept` says what is safe and how to go on."""
        if self.requested:
            raise Interrupted(f"stopped by {self.signal_name or 'request'}: {kept}")


_FINISHED = "the work in hand was finished first; run the same command again to go on"
_active: list[Stop] = []  # of the blocks that this process is in, the innermost last


@contextmanager
def stop_on_sigterm() -> Iterator[Stop]:
    """Turn SIGTERM and the first Ctrl-C into a request, for the length of the block.

        with stop_on_sigterm() as stop:
            for step in range(steps):
                ...
                if stop.requested:
                    save()
                    raise Interrupted("stopped at step ...; run the same command again to go on")

    A second Ctrl-C raises KeyboardInterrupt at once. A request that the block did not act on raises Interrupted
    at its end, so that none is lost between two stages. Of blocks in one another all are asked, whichever of them the
    work at hand looks at. Signals that the process ignores stay ignored (nohup,
    background jobs). Outside the main thread, where Python allows no handlers, `requested` stays False unless
    `request()` is called.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        stop.check(_FINISHED)
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        for one in _active:
            one.request(signal.Signals(number).name)

    if _active and _active[-1].requested:
        stop.request(_active[-1].signal_name)
    _active.append(stop)
    try:
        with handling(handle):
            yield stop
    finally:
        _active.remove(stop)
    stop.check(_FINISHED)


class _Stopped(KeyboardInterrupt):
    """A signal that nobody asked to wait; like Ctrl-C, it passes all that handles errors."""


@contextmanager
def interrupted_by_signals(*numbers: signal.Signals) -> Iterator[None]:
    """The first of the signals, SIGTERM and Ctrl-C if none are given, stops the block at once, as Interrupted.

    For what lies around the blocks of `stop_on_sigterm`: start-up, reading, delivery. A second Ctrl-C raises
    KeyboardInterrupt.
    """
    stopped = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise _Stopped(signal.Signals(number).name)
        if number == signal.SIGINT:
            raise KeyboardInterrupt

    try:
        with handling(handle, *numbers):
            yield
    except _Stopped as error:
        raise Interrupted(f"stopped by {error}; run the same command again to go on") from None


@contextmanager
def handling(handle: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Signals go to `handle`, but those that the process ignores; in other threads than the main one none do."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers or (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN and handler is not None:
                before[number] = handler
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
