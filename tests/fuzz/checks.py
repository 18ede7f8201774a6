"""What every fuzzer holds: an input is read, or refused by an error of ours that says what was wrong and where."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from components.errors import SplatClipError

WHERE = "the-fuzzed-input"
T = TypeVar("T")


class Finding(AssertionError):
    """A parser broke its promise without breaking itself."""


def hold(condition: bool, what: object) -> None:
    """Raise Finding unless the condition holds."""
    if not condition:
        raise Finding(what)


def read(call: Callable[..., T], *args: Any, named: str | None = WHERE) -> T | None:
    """What `call` gives, or None where it refuses. named: what the error has to name; None: nothing."""
    try:
        return call(*args)
    except SplatClipError as error:
        text = str(error)
        hold(bool(text) and len(text) < 20_000, f"an error of {len(text)} characters")
        hold(named is None or named in text, f"the error does not say where: {text[:300]}")
        return None


@lru_cache(maxsize=1)
def folder() -> Path:
    """A folder of this process's own, in memory where the system has such a place; gone at the end."""
    memory = Path("/dev/shm")
    made = tempfile.mkdtemp(prefix="splatclip-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def written(name: str, data: bytes) -> Path:
    """A file with that content in `folder`, and with `name` at its end."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
