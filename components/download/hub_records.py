"""What a revision of a hub's repository was the last time, as it is kept: with a sum, as nothing else would tell a
changed byte in a file's own sum from the hub's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from components.json_text import parse
from components.manifest import sha256_bytes


@dataclass(frozen=True)
class HubFile:
    """A file of a commit. sum: `sha256:...` of its content, or `git:...` of small ones, as git names them."""

    path: str
    size: int
    sum: str


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def write_record(commit: str, files: Sequence[HubFile]) -> bytes:
    """A commit and its files as read_record takes them."""
    found = {"commit": commit, "files": [asdict(file) for file in files]}
    return _text({**found, "sha256": sha256_bytes(_text(found).encode())}).encode()


def read_record(data: bytes) -> tuple[str, list[HubFile]] | None:
    """The commit and its files; None where the record is not as it was written."""
    try:
        record = parse(data)
        expected = record.pop("sha256")
        if sha256_bytes(_text(record).encode()) != expected:
            return None
        return record["commit"], [HubFile(**file) for file in record["files"]]
    except (AttributeError, KeyError, TypeError, ValueError):  # no JSON, or of another shape
        return None
