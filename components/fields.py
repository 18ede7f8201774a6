"""What parameters are declared and checked with: marks on fields, and conditions that say what was wrong."""

from __future__ import annotations

import difflib
import typing
from dataclasses import field
from typing import Any

from components.errors import UsageError


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """` (did you mean ...?)` with the most similar known word, or an empty text."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: Any, most: int = 200) -> str:
    """A value as an error shows it: its beginning, where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = f"a {type(value).__name__} with a number too long to be shown"
    return text if len(text) <= most else f"{text[:most]}..."


def local(default: Any) -> Any:
    """A field that never enters a cache key."""
    return field(default=default, metadata={"hash": False})


def later(default: Any) -> Any:
    """A field that was added when results without it lay in stores: at its default, cache keys do not have it."""
    return field(default=default, metadata={"later": True})


def require(condition: bool, message: str) -> None:
    """Raise UsageError with the message unless the condition holds."""
    if not condition:
        raise UsageError(message)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Require a value to be one of those allowed; the error names the nearest."""
    if value not in allowed:
        raise UsageError(f"{name} is {shown(value)}; choose one of: {', '.join(allowed)}{nearest(value, allowed)}")


def seed_in_range(section: str, seed: int) -> None:
    """Require a seed of 32 bits."""
    require(0 <= seed < 1 << 32, f"{section}.seed is {seed}; it must be from 0 to {(1 << 32) - 1}")


def at_least(section: str, values: Any, low: float, *names: str) -> None:
    """Require the named fields of a section to be `low` or more."""
    for name in names:
        value = getattr(values, name)
        require(value >= low, f"{section}.{name} is {value}; it must be at least {low}")


def within(section: str, values: Any, low: float, high: float, *names: str) -> None:
    """Require the named fields of a section to lie from `low` to `high`."""
    for name in names:
        value = getattr(values, name)
        require(low <= value <= high, f"{section}.{name} is {value}; it must be from {low} to {high}")


def evaluates_apart(train: Any, test: Any) -> None:
    """Require of the sections download and download_eval that one adapter reads both and that they share no picture."""
    require(
        test.image_size == train.image_size,
        f"download_eval.image_size is {test.image_size}, download.image_size {train.image_size}; make them equal, "
        "as the adapter reads splats of pictures of the size that it was trained on",
    )

    def place(part: Any) -> tuple[Any, ...]:
        hub = part.hub if part.source == "huggingface" else None
        return part.source, part.path, hub, part.datacomp if part.source == "datacomp" else None

    if place(train) != place(test):
        named = f"download_eval is another set than download, but bears its name {train.dataset!r}"
        require(test.dataset != train.dataset, f"{named}; give download_eval.dataset its own, results carry it")
    elif train.source != "sample":
        dealt = [(part.seed, part.num_train, part.num_val) for part in (train, test)]
        require(
            dealt[0] == dealt[1] and test.num_test <= train.num_test,
            f"download_eval takes {test.path!r} as download does, but deals it otherwise: training pictures may be "
            "scored; give it another path, or download's seed and numbers (num_test may be less)",
        )
