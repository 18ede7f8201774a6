"""JSON that others wrote: what cannot be read is a ValueError, whatever is wrong with it."""

from __future__ import annotations

import json
from typing import Any


def parse(data: str | bytes) -> Any:
    """What json.loads gives. ValueError on text that is no JSON or not UTF-8, and on values nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def shallow(*values: Any, most: int = 50) -> None:
    """ValueError where lists and mappings lie in each other more than `most` deep: what reads them as deep as the stack
    is could not write them again.
    """
    waiting = [(value, 0) for value in values]
    while waiting:
        value, deep = waiting.pop()
        if isinstance(value, (dict, list, tuple)):
            if deep == most:
                raise ValueError(f"values are nested more than {most} deep")
            waiting += [(item, deep + 1) for item in (value.values() if isinstance(value, dict) else value)]


def whole(value: Any, low: int = -(1 << 63), high: int = (1 << 63) - 1) -> int:
    """int(value) from low to high, at first the range of int64; ValueError or TypeError where it is none."""
    try:
        number = int(value)
    except OverflowError:  # JSON's 1e999 is infinite
        raise ValueError(f"{value!r} is no whole number") from None
    if not low <= number <= high:
        raise ValueError(f"a whole number of {number.bit_length()} bits; expected {low} to {high}")
    return number
