"""The work list: a set's shards cut into groups, which any number of workers take in any order.

The cut follows from the manifest and the number of groups alone. Neither is part of the output's key: whoever fits a
shard, in whichever group, commits the same bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

from components.errors import UsageError

JOB_INDEX = "JOB_COMPLETION_INDEX"  # of the pods of an Indexed Job
MOST_GROUPS = 1_000_000


class Numbered(Protocol):
    """What has an index, such as a shard's entry."""

    @property
    def index(self) -> int:
        """Its number in the set."""


T = TypeVar("T", bound=Numbered)


@dataclass(frozen=True)
class Share:
    """Some of the groups that a set's shards are cut into. total: how many these are; chosen: which, from 0."""

    total: int
    chosen: tuple[int, ...]

    def __str__(self) -> str:
        return f"{write_numbers(self.chosen)}/{self.total}"

    def of(self, shards: Sequence[T]) -> list[T]:
        """The shards that belong to it, in order."""
        groups = cut(shards, self.total)
        return [shard for number in self.chosen for shard in groups[number]]


def num_groups(num_shards: int, shards_per_group: int) -> int:
    """How many groups there are of at most so many shards; one where there are no shards."""
    return max(1, -(-num_shards // shards_per_group))


def cut(shards: Sequence[T], total: int) -> list[Sequence[T]]:
    """The shards by index in `total` runs, whose lengths differ by at most one; empty ones where there are too few."""
    ordered = sorted(shards, key=lambda shard: shard.index)
    edges = [len(ordered) * number // total for number in range(total + 1)]
    return [ordered[start:end] for start, end in pairwise(edges)]


def pending(shards: Sequence[T], done: Collection[int], total: int) -> list[int]:
    """The numbers of the groups in which a shard is not done yet."""
    groups = cut(shards, total)
    return [number for number, group in enumerate(groups) if any(shard.index not in done for shard in group)]


def write_numbers(numbers: Iterable[int]) -> str:
    """Numbers as Kubernetes writes them: "1,3-5,7"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def read_numbers(text: str) -> list[int]:
    """The numbers of "1,3-5,7", none in an empty text. Raises ValueError for another text, or too many numbers."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        run = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part, re.ASCII)
        if run is None:
            raise ValueError(f"{part!r} is neither a number nor a range such as 3-5")
        first, last = int(run[1]), int(run[2] or run[1])
        if last < first or last >= MOST_GROUPS:
            raise ValueError(f"the range {part} runs backwards, or beyond {MOST_GROUPS - 1}")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def read_share(text: str) -> Share:
    """The share that "1,3-5/8" names; in a pod of an Indexed Job, of these groups the one at the pod's index."""
    wanted = f"groups {text!r}: write which of how many, from 0: 3/8 or 0-3,7/8"
    listed, slash, total = text.partition("/")
    if not slash or not re.fullmatch(r"[1-9]\d{0,5}", total, re.ASCII):
        raise UsageError(wanted)
    try:
        chosen = read_numbers(listed)
    except ValueError as error:
        raise UsageError(f"{wanted}; {error}") from None
    if not chosen or chosen[-1] >= int(total):
        raise UsageError(f"{wanted}; of {total} groups the last is {int(total) - 1}")
    index = os.environ.get(JOB_INDEX, "")
    if index:
        if not index.isdecimal() or int(index) >= len(chosen):
            raise UsageError(
                f"{JOB_INDEX} is {index}, but {text!r} names {len(chosen)} groups; give the Job as many completions"
            )
        chosen = [chosen[int(index)]]
    return Share(int(total), tuple(chosen))
