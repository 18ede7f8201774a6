"""One function a fuzzer: bytes in; it raises on what no parser may do. The first byte may choose the parser."""

from __future__ import annotations

from collections.abc import Callable

Target = Callable[[bytes], None]
NAMES = ("gs2d", "shards", "manifests", "captions", "params", "urls", "images")
"""Those in Python; `codec` is the native one, under sanitizers (codec.cpp)."""


def target(name: str) -> Target:
    """The fuzzer of that name; its parsers are imported now."""
    from importlib import import_module

    found: Target = import_module(f"fuzz.{name}").run
    return found


def by_first_byte(data: bytes, choices: dict[bytes, Target]) -> None:
    """Hand all but the first byte to the choice that it names; to the first one where it names none."""
    chosen = choices.get(data[:1])
    (chosen or next(iter(choices.values())))(data[1:])
