"""Figures over time (loss, PSNR, samples a second): stages emit them, whoever tracks the run listens.

Nothing emitted enters an artifact: a stage's output is the same whether anybody listens or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

Sink = Callable[[str, int, Mapping[str, float]], None]
_sink: ContextVar[Sink | None] = ContextVar("sink", default=None)


def emit(phase: str, step: int, values: Mapping[str, float]) -> None:
    """Tell the listener, if there is one, the values of a step of a phase."""
    sink = _sink.get()
    if sink is not None:
        sink(phase, step, values)


@contextmanager
def listening(sink: Sink) -> Iterator[None]:
    """Call sink(phase, step, values) for all that is emitted in the block, in the thread that emits it."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
