"""What a revision of a hub's repository was the last time, as it is kept: with a sum, as nothing else would tell a
changed byte in a file's own sum from the hub's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from components.entries import canonical, with_sum, without_sum
from components.errors import PermanentError
from components.json_text import parse


@dataclass(frozen=True)
class HubFile:
    """A file of a commit. sum: `sha256:...` of its content, or `git:...` of small ones, as git names them."""

    path: str
    size: int
    sum: str


def write_record(commit: str, files: Sequence[HubFile]) -> bytes:
    """A commit and its files as read_record takes them."""
    return canonical(with_sum({"commit": commit, "files": [asdict(file) for file in files]}))


def read_record(data: bytes) -> tuple[str, list[HubFile]] | None:
    """The commit and its files; None where the record is not as it was written."""
    try:
        record, summed = without_sum(parse(data))
        return (record["commit"], [HubFile(**file) for file in record["files"]]) if summed else None
    except (KeyError, TypeError, ValueError, RecursionError, PermanentError):  # no JSON, of another shape, or changed
        return None
