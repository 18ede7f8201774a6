"""Changes that keep a text's structure, where single bytes would only break it."""

from __future__ import annotations

import json
import random
from typing import Any

ODD: list[Any] = [
    None, True, "", "x", [], {}, {"": None}, [[]], -1, 0, 0.5, 1 << 63, 1 << 64, 10**30, "1", "../x", "/x", "\ud800",
    "a\0b", "nan", [None], [-1, -1], [0, 1 << 62], "x" * 300,
]  # fmt: skip
RAW = [
    "1e999",
    "NaN",
    "-Infinity",
    "[" * 2000,
    '{"a":' * 1100,
    "[" * 900 + "]" * 900,
    "9" * 5000,
    '"\\ud800"',
    "1E400",
    "-0.0",
]
MARK = "@@raw@@"


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in _places(one, (*path, key)))]


def json_changed(text: bytes, rng: random.Random) -> bytes:
    """The same JSON with one value replaced, left out or repeated; the text itself where it is none."""
    try:
        value = json.loads(text)
        places = _places(value)
    except (ValueError, RecursionError):
        return text
    place = rng.choice(places)
    odd = MARK if rng.random() < 0.3 else rng.choice(ODD)
    if not place:
        value = odd
    else:
        holder = value
        for key in place[:-1]:
            holder = holder[key]
        last, how = place[-1], rng.random()
        if how < 0.6:
            holder[last] = odd
        elif how < 0.75:
            del holder[last]
        elif isinstance(holder, dict):
            holder[str(rng.choice(ODD))] = holder[last]
        else:
            holder.insert(last, holder[last])
    return json.dumps(value).replace(f'"{MARK}"', rng.choice(RAW), 1).encode("utf-8", "surrogatepass")


def line_changed(text: bytes, rng: random.Random) -> bytes:
    """One line of JSON changed, or a line left out, repeated or moved."""
    lines = text.split(b"\n")
    at = rng.randrange(len(lines))
    how = rng.random()
    if how < 0.7:
        lines[at] = json_changed(lines[at], rng)
    elif how < 0.8:
        del lines[at]
    elif how < 0.9:
        lines.insert(at, lines[at])
    else:
        lines[at], lines[0] = lines[0], lines[at]
    return b"\n".join(lines)
