"""Params files and overrides: the YAML first, then `section.key=value`, with NUL bytes between them."""

from __future__ import annotations

import yaml
from fuzz.checks import WHERE, hold, read, written

from components.config import SECTIONS, as_dict, semantic
from components.manifest import canonical
from components.params import load_params

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
