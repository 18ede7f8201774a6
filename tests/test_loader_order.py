"""The order of batches, cached and streamed: by seed and epoch, resumed anywhere, shared by processes."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from loaded_sets import CACHED, SHARDS, STREAMED, check, commit, groups, keys

from components import loader
from components.decoder import Decoder
from components.distributed import World
from components.entries import ShardEntry
from components.errors import PermanentError
from components.lanes import LANES
from components.loader import ImageSet
from components.manifest import Artifact
from components.pairs import ShardPairs, ahead
from components.records import Encoded, Record, Rows


@pytest.fixture
def images(tmp_path: Path) -> Artifact:
    return commit(tmp_path, "download", groups(SHARDS), index=False)


@pytest.mark.parametrize("room", [CACHED, STREAMED])
def test_order_depends_on_seed_and_epoch_and_is_resumable(images: Artifact, room: int) -> None:
    data = ImageSet(images, "train", max_cached_bytes=room)
    first = [batch.keys for batch in data.batches(7, seed=1, epoch=0)]
    assert len(first) == data.steps_per_epoch(7) == 4
    assert [batch.keys for batch in data.batches(7, seed=1, epoch=0)] == first
    again = ImageSet(images, "train", max_cached_bytes=room)
    assert [batch.keys for batch in again.batches(7, seed=1, epoch=0, start_step=2)] == first[2:]
    assert [batch.keys for batch in data.batches(7, seed=1, epoch=1)] != first
    assert [batch.keys for batch in data.batches(7, seed=2, epoch=0)] != first
    assert keys(list(data.batches(7, seed=1, epoch=0))) != sorted(keys(list(data.batches(7, seed=1, epoch=0))))


@pytest.mark.parametrize("room", [CACHED, STREAMED])
def test_feed_maps_steps_to_batches(images: Artifact, room: int) -> None:
    data = ImageSet(images, "train", max_cached_bytes=room)
    feed = data.feed(10, seed=3)
    whole = [feed(step) for step in range(7)]
    assert [epoch for _, epoch in whole] == [0, 0, 0, 1, 1, 1, 2]
    resumed = data.feed(10, seed=3)
    assert [resumed(step)[0].keys for step in (4, 5, 6)] == [batch.keys for batch, _ in whole[4:]]
    assert resumed(1)[0].keys == whole[1][0].keys


@pytest.mark.parametrize("room", [CACHED, STREAMED])
@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_same_batches(images: Artifact, room: int, size: int) -> None:
    data = ImageSet(images, "train", max_cached_bytes=room)
    for start in (0, 2):
        whole = list(data.batches(7, seed=1, epoch=3, start_step=start))
        worlds = [World(rank, size) for rank in range(size)]
        parts = [list(data.batches(7, seed=1, epoch=3, start_step=start, world=world)) for world in worlds]
        for step, batch in enumerate(whole):
            mine = [part[step] for part in parts]
            assert [key for part in mine for key in part.keys] == batch.keys
            assert [len(part) for part in mine] == [len(range(7)[world.part(7)]) for world in worlds]
            assert all(part.whole is None or part.labels.keys == batch.keys for part in mine)
            for part in mine:
                check(part)


def many(tmp_path: Path, count: int, per_shard: int) -> Artifact:
    shards = [range(start, start + per_shard) for start in range(0, count, per_shard)]
    return commit(tmp_path, "download", groups(shards), index=False)


def test_a_streamed_epoch_goes_on_anywhere_without_reading_what_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = many(tmp_path, 192, 6)
    monkeypatch.setattr(loader, "SHUFFLE_BUFFER", 48)  # three in each of 16 lanes of two shards
    data = ImageSet(images, "train", max_cached_bytes=STREAMED)
    whole = [batch.keys for batch in data.batches(16, seed=1)]
    assert sorted(key for group in whole for key in group) == [f"s{i:04d}" for i in range(192)]
    read = ShardPairs.read
    seen: list[int] = []

    def counted(self: ShardPairs, entry: ShardEntry) -> Rows:
        seen.append(entry.index)
        return read(self, entry)

    monkeypatch.setattr(ShardPairs, "read", counted)
    for start in range(len(whole)):
        assert [batch.keys for batch in data.batches(16, seed=1, start_step=start)] == whole[start:]
    seen.clear()
    assert [batch.keys for batch in data.batches(16, seed=1, start_step=11)] == whole[11:]
    assert len(seen) <= 16
    seen.clear()
    next(data.batches(16, seed=1, world=World(1, 4)))
    assert len(set(seen)) <= 8, "a process reads the lanes of its own slots alone, and one shard ahead"


def test_a_streamed_set_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most the shuffle buffer, the batch in hand and the next are held as bytes of their own, from any step on."""
    buffer, batch_size = 16, 4
    monkeypatch.setattr(loader, "SHUFFLE_BUFFER", buffer)
    many = commit(tmp_path, "download", groups([range(i, i + 10) for i in range(0, 200, 10)]))
    data = ImageSet(many, "train", max_cached_bytes=STREAMED)
    for start in (0, 20):
        held = []
        for step, batch in enumerate(data.batches(batch_size, seed=1, epoch=0, start_step=start), start):
            if step % 10 != 5:
                continue
            records = (thing for thing in gc.get_objects() if type(thing) is Record)
            held.append(sum(isinstance(record.image, bytes) for record in records))
            assert len(set(batch.keys)) == batch_size
        assert len(held) == (50 - start) // 10
        assert buffer <= max(held) <= buffer + 2 * batch_size + LANES, "each lane holds one more while it draws"


def test_a_streamed_shard_leaves_out_others_in_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 samples in batches of 8 leave out 6; nothing is lost where the last batch may be smaller."""
    monkeypatch.setattr(loader, "SHUFFLE_BUFFER", 5)
    data = ImageSet(commit(tmp_path, "download", groups([range(30)])), "train", max_cached_bytes=STREAMED)
    everything = {f"s{i:04d}" for i in range(30)}
    left_out = []
    for epoch in range(12):
        whole = [batch.keys for batch in data.batches(8, seed=1, epoch=epoch)]
        left_out.append(everything - {key for keys in whole for key in keys})
        assert len(left_out[-1]) == 6
        for start in (1, 2):
            assert [batch.keys for batch in data.batches(8, seed=1, epoch=epoch, start_step=start)] == whole[start:]
        with_rest = [key for batch in data.batches(8, seed=1, epoch=epoch, drop_last=False) for key in batch.keys]
        assert sorted(with_rest) == sorted(everything)
    assert not set.intersection(*left_out)
    assert len({frozenset(keys) for keys in left_out}) > 6


@pytest.mark.parametrize("room", [CACHED, STREAMED])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_in_turn_decode_no_others_batches(
    images: Artifact, room: int, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageSet(images, "train", max_cached_bytes=room)
    how = {"seed": 1, "shuffle": shuffle, "drop_last": False}
    whole = [batch.keys for batch in data.batches(7, **how)]  # type: ignore[arg-type]
    assert [len(keys) for keys in whole] == [7, 7, 7, 7, 2]
    decoded: list[int] = []
    decode = Decoder.images

    def counted(self: Decoder, records: Encoded) -> np.ndarray:
        decoded.append(len(records))
        return decode(self, records)

    monkeypatch.setattr(Decoder, "images", counted)
    for rank in range(2):
        decoded.clear()
        turns = list(data.batches(7, **how, turns=World(rank, 2)))  # type: ignore[arg-type]
        assert [batch.keys for batch in turns] == whole[rank::2]
        assert decoded == ([] if room == CACHED else [len(keys) for keys in whole[rank::2]])
        for batch in turns:
            check(batch)


def test_reading_ahead() -> None:
    """One job more than is asked for, and none after an error."""
    begun: list[int] = []

    def job(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise PermanentError("broken")
        return number

    results = ahead(partial(job, number) for number in range(6))
    assert next(results) == 0
    assert next(results) == 1
    with pytest.raises(PermanentError, match="broken"):
        list(results)
    assert begun == [0, 1, 2, 3]
    assert list(ahead(iter(()))) == []
