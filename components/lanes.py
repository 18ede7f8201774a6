"""One epoch of a split too large for memory: shards in a shuffled order, read in a few lanes side by side.

The epoch's samples, in the shuffled order of their shards and from one among them on, are cut into lanes of contiguous
samples, and each batch takes its slots from all of them: the first slots from lane 0, and so on. A process reads only
the lanes of its own slots, so that several processes share the reading, and the batches do not depend on how many there
are. Within a lane samples pass through a bounded shuffle buffer.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from typing import TypeVar

from components.entries import ShardEntry
from components.pairs import ShardPairs, ahead
from components.records import Record

T = TypeVar("T")
LANES = 16  # a power of two: 2, 4, 8 or 16 processes then have whole lanes each
Portion = tuple[ShardEntry, int, int]  # a shard's records from the first number up to the second


class ShuffledEpoch:
    """Batches of records, decided by (seed, epoch), the batch size and the shards; the rest that fills no batch last.

    limit: of samples, in the shards' order, 0: all; buffer: records held for shuffling, in all lanes together.
    """

    def __init__(self, pairs: ShardPairs, *, limit: int, batch_size: int, order: tuple[int, int], buffer: int) -> None:
        self._pairs, self._limit, self._batch_size, self._order = pairs, limit, batch_size, order
        shards = pairs.portions(limit)
        random.Random(f"{order}").shuffle(shards)
        self._lanes = 1
        while self._lanes * 2 <= min(LANES, len(shards), batch_size):
            self._lanes *= 2
        self._buffer = max(1, buffer // self._lanes)
        count = sum(size for _, size in shards)
        self._full = count // batch_size
        self._rest = count - self._full * batch_size
        samples = [(entry, 0, size) for entry, size in shards]
        if self._rest:  # else one shard alone would have the same samples left over in every epoch
            ahead = random.Random(f"{order} first").randrange(count)
            samples = _cut_front(samples, ahead) + _cut(samples, [ahead])[0]
        sizes = [self._full * len(self._slots(lane)) for lane in range(self._lanes)]
        self._portions = _cut(samples, [*sizes, self._rest])

    def _slots(self, lane: int) -> range:
        return range(lane * self._batch_size // self._lanes, (lane + 1) * self._batch_size // self._lanes)

    def batches(self, start_step: int, rank: int = 0, size: int = 1) -> Iterator[list[Record]]:
        """One of `size` processes' part of each batch from number `start_step` on.

        What lies before is not read, but for what the buffers hold of it. Raises PermanentError where a shard does not
        hold what its manifest promises.
        """
        mine = range(rank * self._batch_size // size, (rank + 1) * self._batch_size // size)
        lanes = [lane for lane in range(self._lanes) if _overlap(self._slots(lane), mine)]
        with ExitStack() as stack:
            draws = {
                lane: stack.enter_context(closing(self._draws(lane, start_step * len(self._slots(lane)))))
                for lane in lanes
            }
            for _ in range(start_step, self._full):
                batch: list[Record] = []
                for lane, records in draws.items():
                    slots = self._slots(lane)
                    wanted = _overlap(slots, mine)
                    drawn = list(islice(records, len(slots)))
                    batch += drawn[wanted.start - slots.start : wanted.stop - slots.start]
                yield batch
        if self._rest:
            rest = list(self._draws(self._lanes, 0))
            yield rest[rank * len(rest) // size : (rank + 1) * len(rest) // size]

    def _draws(self, lane: int, skip: int) -> Generator[Record, None, None]:
        """A lane's records in their order, but the first `skip`: their draws are made again on numbers alone."""
        chance = random.Random(f"{self._order} {lane}")
        portions = self._portions[lane]
        entered = min(sum(last - first for _, first, last in portions), skip + self._buffer) if skip else 0
        waiting: list[int] = []
        taken = 0
        for number in range(entered):
            waiting.append(number)
            if len(waiting) > self._buffer:
                _take(waiting, chance)
                taken += 1
        for _ in range(taken, skip):
            _take(waiting, chance)
        held = self._read_numbers(portions, waiting)
        for record in self._read_on(_cut_front(portions, entered)):
            held.append(record)
            if len(held) > self._buffer:
                yield _take(held, chance)
        while held:
            yield _take(held, chance)

    def _read_numbers(self, portions: Sequence[Portion], numbers: Sequence[int]) -> list[Record]:
        """The records of such numbers in the lane, in the order asked for."""
        found: dict[int, Record] = {}
        start = 0
        for entry, first, last in portions:
            here = [number for number in numbers if start <= number < start + last - first]
            if here:
                rows = self._pairs.checked(entry, self._limit)
                places = [first + number - start for number in here]
                found.update(
                    {
                        number: next(rows.part(place, place + 1).records())
                        for number, place in zip(here, places, strict=True)
                    }
                )
            start += last - first
        return [found[number] for number in numbers]

    def _read_on(self, portions: Sequence[Portion]) -> Iterator[Record]:
        """The records of portion after portion, the next shard read ahead.

        They have bytes of their own: else each shard would stay mapped until its last sample is drawn.
        """
        shards = ahead(partial(self._pairs.checked, entry, self._limit) for entry, _, _ in portions)
        for (_, first, last), rows in zip(portions, shards, strict=True):
            yield from rows.part(first, last).records()


def _overlap(one: range, other: range) -> range:
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def _cut(samples: Sequence[Portion], sizes: Sequence[int]) -> list[list[Portion]]:
    """Samples, one portion after the other, cut into contiguous runs of `sizes`."""
    left = list(samples)
    runs = []
    for size in sizes:
        run: list[Portion] = []
        lacking = size
        while lacking > 0:
            entry, first, last = left[0]
            stop = min(last, first + lacking)
            run.append((entry, first, stop))
            lacking -= stop - first
            if stop == last:
                left.pop(0)
            else:
                left[0] = (entry, stop, last)
        runs.append(run)
    return runs


def _cut_front(portions: Sequence[Portion], count: int) -> list[Portion]:
    left = []
    for entry, first, last in portions:
        gone = min(count, last - first)
        count -= gone
        if first + gone < last:
            left.append((entry, first + gone, last))
    return left


def _take(held: list[T], chance: random.Random) -> T:
    place = chance.randrange(len(held))
    held[place], held[-1] = held[-1], held[place]
    return held.pop()
