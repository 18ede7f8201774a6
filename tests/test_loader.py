"""Batches from image and splat shards: pairing, order, resume, cached and streamed alike."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from components import loader
from components.decoder import Decoder
from components.distributed import World
from components.entries import ShardEntry
from components.errors import PermanentError, UsageError
from components.images import decode_rgb, encode
from components.lanes import LANES
from components.loader import Batch, ImageSet, SplatBatch
from components.manifest import Artifact, Commit
from components.pairs import ShardPairs, ahead
from components.records import Encoded, Record, Rows
from components.shards import Sample, ShardIndex, write_shard
from components.splats import Splats
from components.store import open_store

SIZE, ROOM = 8, 5
CACHED, STREAMED = 4 << 30, 0


def image(i: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)


def splats(i: int) -> Splats:
    rng = np.random.default_rng(1000 + i)
    n = 1 + i % ROOM
    cholesky = np.column_stack([rng.uniform(0.5, 2, n), rng.uniform(-1, 1, n), rng.uniform(0.5, 2, n)])
    return Splats.unpack(
        Splats(rng.uniform(0, SIZE, (n, 2)), cholesky, rng.uniform(-0.1, 1, (n, 3)), SIZE, SIZE).pack()[0]
    )


def image_sample(i: int) -> Sample:
    fields = {"png": encode(image(i), "png"), "txt": f"picture {i}".encode(), "cls": str(i % 3).encode()}
    return Sample(f"s{i:04d}", fields)


def splat_sample(i: int) -> Sample:
    fields = {"gs2d": splats(i).pack()[0], "txt": f"picture {i}".encode(), "cls": str(i % 3).encode()}
    return Sample(f"s{i:04d}", fields)


def commit(
    root: Path, stage: str, shards: Sequence[Sequence[Sample]], split: str = "train", index: bool = True
) -> Artifact:
    made = Commit(open_store(str(root)), stage=stage, version=1, params={"num_gaussians": ROOM}, inputs={})
    entries = []
    for number, samples in enumerate(shards):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.tar"
            layout = write_shard(path, samples)
            side = {".idx": ShardIndex.of(layout).to_bytes()} if index else {}
            entries.append(made.put_shard(path, index=number, split=split, ok=len(samples), side_files=side))
    return made.finalise(shards=entries, files=[], metrics={"image_size": SIZE})


def groups(numbers: Sequence[Sequence[int]], make: object = image_sample) -> list[list[Sample]]:
    return [[make(i) for i in group] for group in numbers]  # type: ignore[operator]


SHARDS = [range(10), range(10, 17), range(17, 30)]


@pytest.fixture
def images(tmp_path: Path) -> Artifact:
    return commit(tmp_path, "download", groups(SHARDS), index=False)


@pytest.fixture
def fitted(tmp_path: Path) -> Artifact:
    return commit(tmp_path, "splat_fit", groups(SHARDS, splat_sample))


def keys(batches: Sequence[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def check(batch: Batch) -> None:
    """Everything in a batch belongs to its keys."""
    for row, key in enumerate(batch.keys):
        i = int(key[1:])
        assert batch.captions[row] == [f"picture {i}"]
        assert int(batch.classes[row]) == i % 3
        shard = next(place for place, group in enumerate(SHARDS) if i in group)
        assert batch.places[row].tolist() == [shard, i - SHARDS[shard][0]]
        if batch.images is not None:
            np.testing.assert_array_equal(batch.images[row].numpy(), image(i))
        if batch.splats is not None:
            expected = splats(i)
            mask = batch.splats.mask[row]
            assert int(mask.sum()) == len(expected)
            np.testing.assert_array_equal(batch.splats.means[row][mask].numpy(), expected.means)
            np.testing.assert_array_equal(batch.splats.cholesky[row][mask].numpy(), expected.cholesky)
            np.testing.assert_array_equal(batch.splats.colors[row][mask].numpy(), expected.colors)
            assert not batch.splats.colors[row][~mask].any()


@pytest.mark.parametrize("room", [CACHED, STREAMED])
def test_every_sample_once_with_its_own_data(images: Artifact, fitted: Artifact, room: int) -> None:
    data = ImageSet(images, "train", splats=fitted, max_cached_bytes=room)
    assert data.cached == (room == CACHED)
    assert (len(data), data.num_gaussians, data.image_size) == (30, ROOM, SIZE)
    batches = list(data.batches(8, seed=1, epoch=2, drop_last=False))
    assert [len(batch) for batch in batches] == [8, 8, 8, 6]
    assert sorted(keys(batches)) == [f"s{i:04d}" for i in range(30)]
    for batch in batches:
        assert batch.images is not None
        assert batch.splats is not None
        assert batch.images.dtype == torch.uint8
        assert batch.splats.means.shape == (len(batch), ROOM, 2)
        check(batch)
    in_order = keys(list(data.batches(8, shuffle=False, drop_last=False)))
    assert in_order == [f"s{i:04d}" for i in range(30)]
    assert data.missing == {"image": 0, "splats": 0}


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


def test_only_images_or_only_splats(images: Artifact, fitted: Artifact) -> None:
    alone = next(ImageSet(images, "train", splats=fitted, want_splats=False).batches(4))
    assert alone.splats is None
    assert alone.pixels.shape == (4, SIZE, SIZE, 3)
    with pytest.raises(UsageError, match="without splats"):
        _ = alone.gaussians
    both = next(ImageSet(images, "train", splats=fitted).batches(4))
    for room in (CACHED, STREAMED):
        only = ImageSet(images, "train", splats=fitted, want_images=False, max_cached_bytes=room)
        batch = next(only.batches(4))
        assert batch.images is None
        check(batch)
        with pytest.raises(UsageError, match="without images"):
            _ = batch.pixels
    assert next(ImageSet(images, "train", splats=fitted, want_images=False).batches(4)).keys == both.keys
    with pytest.raises(UsageError, match="neither"):
        ImageSet(images, "train", want_images=False)


def test_the_unpaired_are_left_out_and_counted(tmp_path: Path, images: Artifact) -> None:
    fitted = commit(tmp_path, "splat_fit", groups([[1, 2, 5, 77], range(10, 17)], splat_sample))
    data = ImageSet(images, "train", splats=fitted)
    assert keys(list(data.batches(20, shuffle=False, drop_last=False))) == [
        f"s{i:04d}" for i in (1, 2, 5, *range(10, 17))
    ]
    assert data.missing == {"image": 1, "splats": 7 + 13}
    fewer = commit(tmp_path / "fewer", "splat_fit", groups([[1, 2, 5], range(10, 17)], splat_sample))
    for room in (CACHED, STREAMED):
        assert ImageSet(images, "train", splats=fewer, max_cached_bytes=room).missing == {"image": 0, "splats": 7 + 13}
    with pytest.raises(PermanentError, match="the splats are of other pictures"):
        list(ImageSet(images, "train", splats=fitted, max_cached_bytes=STREAMED).batches(5))


@pytest.mark.parametrize("room", [CACHED, STREAMED])
def test_limit_takes_the_first(images: Artifact, fitted: Artifact, room: int) -> None:
    data = ImageSet(images, "train", splats=fitted, limit=13, max_cached_bytes=room)
    assert len(data) == 13
    assert sorted(keys(list(data.batches(5, drop_last=False)))) == [f"s{i:04d}" for i in range(13)]
    with pytest.raises(UsageError, match="batch_size is 14, but split 'train' has only 13"):
        data.steps_per_epoch(14)


def test_other_sizes_are_resized(images: Artifact) -> None:
    assert next(ImageSet(images, "train", image_size=4).batches(2)).pixels.shape == (2, 4, 4, 3)


def test_what_is_damaged_is_named(tmp_path: Path, images: Artifact) -> None:
    with pytest.raises(PermanentError, match="no split 'val'"):
        ImageSet(images, "val")
    broken = image_sample(3)
    bad = Sample(broken.key, {**broken.fields, "png": broken.fields["png"][:60]})
    with pytest.raises(PermanentError, match="'s0003'"):
        ImageSet(commit(tmp_path / "a", "download", [[image_sample(1), bad]]), "train")
    bad = Sample("s0001", {"gs2d": b"GS2Djunk"})
    with pytest.raises(PermanentError, match="'s0001'"):
        ImageSet(images, "train", splats=commit(tmp_path / "b", "splat_fit", [[bad]]))
    bad = Sample("s0001", {"txt": b"no picture here"})
    with pytest.raises(PermanentError, match="'s0001' has no picture"):
        ImageSet(commit(tmp_path / "c", "download", [[bad]]), "train")
    with pytest.raises(PermanentError, match=r"'train' has no picture with splats"):
        ImageSet(images, "train", splats=commit(tmp_path / "d", "splat_fit", groups([[77]], splat_sample)))
    bad = Sample("s0001", {**broken.fields, "cls": b"cat"})
    with pytest.raises(PermanentError, match="'s0001': its json, txt or cls is damaged"):
        ImageSet(commit(tmp_path / "e", "download", [[bad]]), "train")


def test_pictures_of_several_formats_in_one_shard(tmp_path: Path) -> None:
    """A sample's picture is the first of jpg, jpeg, png and webp that it has."""
    png, jpg = encode(image(1), "png"), encode(image(2), "jpg")
    shard = [Sample("a", {"png": png}), Sample("b", {"jpg": jpg}), Sample("c", {"jpg": jpg, "png": png})]
    batch = next(ImageSet(commit(tmp_path, "download", [shard]), "train").batches(3, shuffle=False))
    np.testing.assert_array_equal(batch.pixels[0].numpy(), image(1))
    np.testing.assert_array_equal(batch.pixels[1].numpy(), decode_rgb(jpg))
    np.testing.assert_array_equal(batch.pixels[2].numpy(), decode_rgb(jpg))


def test_a_splat_shard_that_lacks_one_is_named(tmp_path: Path, images: Artifact) -> None:
    made = groups(SHARDS, splat_sample)
    made[0][1] = Sample("s0001", {"txt": b"nothing else"})
    fitted = commit(tmp_path, "splat_fit", made)
    for room in (CACHED, STREAMED):
        with pytest.raises(PermanentError, match=r"'s0001' has no splats .*fit the splats again"):
            list(ImageSet(images, "train", splats=fitted, max_cached_bytes=room).batches(8, drop_last=False))


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


def test_captions_of_json_come_first(tmp_path: Path) -> None:
    about = b'{"caption": "one", "captions": ["one", "two", ""], "class": 2}'
    sample = image_sample(0)
    fields = {"png": sample.fields["png"], "txt": b"one", "json": about}
    plain = {"png": sample.fields["png"], "txt": b"", "json": b'{"class": -1}'}
    batch = next(
        ImageSet(commit(tmp_path, "download", [[Sample("a", fields), Sample("b", plain)]]), "train").batches(
            2, shuffle=False
        )
    )
    assert batch.captions == [["one", "two"], []]
    assert batch.classes.tolist() == [2, -1]


@pytest.mark.parametrize("room", [CACHED, STREAMED])
def test_trimming_takes_away_padding_alone(images: Artifact, fitted: Artifact, room: int) -> None:
    for batch in ImageSet(images, "train", splats=fitted, max_cached_bytes=room).batches(2, seed=3):
        whole, trimmed = batch.gaussians, batch.gaussians.trimmed()
        most = int(whole.mask.sum(1).max())
        assert trimmed.means.shape == (2, most, 2)
        assert not whole.mask[:, most:].any()
        check(replace(batch, splats=trimmed))
    none = SplatBatch(torch.zeros(2, 3, 2), torch.zeros(2, 3, 3), torch.zeros(2, 3, 3), torch.zeros(2, 3).bool())
    assert none.trimmed().mask.shape == (2, 1)


def test_select_and_move(images: Artifact, fitted: Artifact) -> None:
    batch = next(ImageSet(images, "train", splats=fitted).batches(6)).to("cpu")
    part = batch.select(torch.tensor([4, 1]))
    assert part.keys == [batch.keys[4], batch.keys[1]]
    check(part)


@pytest.mark.parametrize("room", [CACHED, STREAMED])
@pytest.mark.parametrize(
    ("count", "size", "said"),
    [
        (ROOM + 1, SIZE, f"{ROOM + 1} Gaussians; room is for {ROOM}"),
        (2, SIZE + 1, f"its splats are of a picture of {SIZE + 1} x {SIZE + 1} pixels, expected {SIZE} x {SIZE}"),
    ],
)
def test_splats_that_do_not_belong_to_the_set_are_named(
    images: Artifact, tmp_path: Path, room: int, count: int, size: int, said: str
) -> None:
    made = groups(SHARDS, splat_sample)
    ones = np.ones((count, 3), np.float32)
    data = Splats(ones[:, :2], ones, ones, size, size).pack()[0]
    made[1][3] = Sample(made[1][3].key, {**made[1][3].fields, "gs2d": data})
    with pytest.raises(PermanentError, match=f"^sample 's0013': {said}"):
        list(ImageSet(images, "train", splats=commit(tmp_path, "splat_fit", made), max_cached_bytes=room).batches(8))
