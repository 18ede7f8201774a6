"""Samples from far away: how much of them is in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import pytest

from components.download import streaming
from components.download.sources import Raw, Ref, Result, ShardPlan, StreamingSource
from components.download.streaming import Made, ShardStream
from components.download.table import SUCCESS, row
from components.shards import Sample

SIZE, NUMBER = 1000, 40


class Near(StreamingSource):
    """Gives its samples at once. held: bytes that were given and of which no sample was made yet; most: at a time."""

    def __init__(self) -> None:
        self.held = self.most = 0
        self._lock = Lock()

    def _list(self) -> Sequence[Ref]:
        return [Ref(f"{number:03d}", "", 0, number) for number in range(NUMBER)]

    def load(self, ref: Ref) -> Raw:
        raise NotImplementedError

    def count(self, num_bytes: int) -> None:
        with self._lock:
            self.held += num_bytes
            self.most = max(self.most, self.held)

    @contextmanager
    def stream(self, refs: Iterator[Ref | None]) -> Iterator[Iterator[Result | None]]:
        def results() -> Iterator[Result | None]:
            for ref in refs:
                if ref is not None:
                    self.count(SIZE)
                    yield ref, Raw(bytes(SIZE)), None

        yield results()

    def make(self, ref: Ref, raw: Raw) -> Made:
        time.sleep(0.005)
        self.count(-SIZE)
        return Sample(ref.key, {"jpg": b"x"}), row(ref.key, raw, SUCCESS)


def test_pictures_that_wait_to_be_decoded_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There were 64 of them on 16 cores, however large."""
    monkeypatch.setattr(streaming, "PENDING_BYTES", 3 * SIZE)
    source = Near()
    shard = ShardPlan(0, "train", list(source.refs))
    with (
        ThreadPoolExecutor(4) as pool,
        ShardStream(source, [shard], source.make, pool, seen=None, check=lambda: None, workers=16) as stream,
    ):
        made = [sample.key for sample, _ in stream.samples(shard)]
    assert made == [ref.key for ref in shard.refs]
    assert SIZE < source.most <= 4 * SIZE
