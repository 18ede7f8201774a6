"""Batches from image and splat shards, cached and streamed alike: pairing, what is left out, what is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loaded_sets import (
    CACHED,
    ROOM,
    SHARDS,
    SIZE,
    STREAMED,
    check,
    commit,
    groups,
    image,
    image_sample,
    keys,
    splat_sample,
)

from components.errors import PermanentError, UsageError
from components.images import decode_rgb, encode
from components.loader import ImageSet, SplatBatch
from components.manifest import Artifact
from components.shards import Sample
from components.splats import Splats


@pytest.fixture
def images(tmp_path: Path) -> Artifact:
    return commit(tmp_path, "download", groups(SHARDS), index=False)


@pytest.fixture
def fitted(tmp_path: Path) -> Artifact:
    return commit(tmp_path, "splat_fit", groups(SHARDS, splat_sample))


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
