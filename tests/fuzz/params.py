"""Params files and overrides: the YAML first, then `section.key=value`, with NUL bytes between them."""

from __future__ import annotations

import random
from typing import get_type_hints

import yaml

from components.config import SECTIONS, as_dict, semantic
from components.manifest import canonical
from components.params import load_params
from fuzz.checks import WHERE, hold, read, written

MAX_LEN = 4096


def run(data: bytes) -> None:
    """What is read is written and read again as the same; it makes a cache key."""
    text, *overrides = data.split(b"\0")
    path = written(f"{WHERE}.yaml", text)
    given = [one.decode("utf-8", "replace") for one in overrides[:8]]
    found = read(load_params, path, given, named=None)  # what is out of range is named by its section and key
    if found is None:
        return
    for name in SECTIONS:
        canonical(semantic(getattr(found, name)))
    again = written("again.yaml", yaml.safe_dump(as_dict(found), allow_unicode=True).encode())
    hold(load_params(again) == found, "written and read again the parameters are others")


_LINES = [
    f"{section}: {{{name}: {value}}}"
    for section, kind in SECTIONS.items()
    for name in get_type_hints(kind)
    for value in ("1", "-1", "1e9", ".inf", "[1, 2]", "x", "null", "true", "{a: 1}", "0x" + "f" * 5000, "2024-13-45")
]
_ODD = [
    "&a [*a]",
    "[" * 40,
    "? [a]\n: b",
    "!!python/object:os.system x",
    "&x {a: &y [1], b: *x}",
    "<<: *s",
    "*s",
    "{" * 50,
]


def changed(data: bytes, rng: random.Random) -> bytes:
    """A line of a section, or one that YAML has trouble with, put in at a line's end; or an override added."""
    line = rng.choice(_LINES if rng.random() < 0.8 else _ODD)
    if rng.random() < 0.4:
        section, _, rest = line.partition(": {")
        return data + b"\0" + f"{section}.{rest[:-1].replace(': ', '=', 1)}".encode()
    lines = data.split(b"\n")
    lines.insert(rng.randrange(len(lines) + 1), line.encode())
    return b"\n".join(lines)
