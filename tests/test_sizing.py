"""Resize modes by img2dataset's names, and the limits that are looked at before a picture is decoded."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downloads import download, flat, image_of, notes, samples
from PIL import Image
from test_images import saved, scene

from components import images
from components.config import DownloadParams, Params, semantic
from components.download import stage
from components.download.sources import Raw, Ref
from components.download.webdataset import WebdatasetSource
from components.errors import PermanentError, UsageError
from components.evalsets import find_sets
from components.evaluate import download_params
from components.images import ImageError, Limits, decode, decoding, fit_square
from components.loader import ImageSet
from components.manifest import open_artifact
from components.runner import run_flow
from components.sizing import fit, target
from components.store import open_store
from pipelines import client

WIDE, HIGH = (30, 60), (90, 40)


@pytest.mark.parametrize(
    ("mode", "shape", "expected"),
    [
        ("center_crop", WIDE, (20, 20)),
        ("border", WIDE, (20, 20)),
        ("no", WIDE, WIDE),
        ("keep_ratio", WIDE, (20, 40)),
        ("keep_ratio", HIGH, (45, 20)),
        ("keep_ratio", (1, 3), (20, 60)),
        ("keep_ratio_largest", WIDE, (10, 20)),
        ("keep_ratio_largest", HIGH, (20, 9)),
        ("keep_ratio_largest", (1, 1000), (1, 20)),
    ],
)
def test_the_size_that_comes_out(mode: str, shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target(*shape, 20, mode) == expected
    assert fit(scene(*shape), 20, mode).shape == (*expected, 3)


def test_centre_crop_and_no_are_what_they_say() -> None:
    picture = scene(30, 60)
    assert np.array_equal(fit(picture, 20, "center_crop"), fit_square(picture, 20))
    assert fit(picture, 20, "no") is picture


@pytest.mark.parametrize("shape", [(30, 60), (61, 30), (20, 20), (7, 20)])
def test_border_is_the_whole_picture_in_the_middle_of_white(shape: tuple[int, int]) -> None:
    """As img2dataset pads: 255, the odd line at the bottom and on the right."""
    picture = np.minimum(scene(*shape), 200)
    square = fit(picture, 20, "border")
    inner = fit(picture, 20, "keep_ratio_largest")
    height, width = inner.shape[:2]
    top, left = (20 - height) // 2, (20 - width) // 2
    assert np.array_equal(square[top : top + height, left : left + width], inner)
    outside = np.ones((20, 20), bool)
    outside[top : top + height, left : left + width] = False
    assert (square[outside] == 255).all()
    assert inner.max() < 230


def test_a_long_picture_is_cropped_as_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for height, width in ((5, 301), (300, 7), (1, 4000)):
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        cut = fit_square(picture, 12)
        with monkeypatch.context() as patch:
            patch.setattr(images, "LONG", 1 << 20)
            assert np.abs(cut.astype(int) - fit_square(picture, 12)).max() <= 12, (height, width)


@pytest.mark.parametrize(
    ("limits", "reason", "says"),
    [
        ({"max_bytes": 99}, "too_large", "100 bytes; the limit is 99"),
        ({"max_pixels": 24 * 32 - 1}, "too_large", "32 x 24 pixels"),
        ({"min_side": 25}, "too_small", "the shorter side must have 25"),
        ({"max_aspect_ratio": 1.3}, "aspect_ratio", r"at most 1\.3 to 1"),
    ],
)
def test_limits_are_looked_at_before_decoding(limits: dict[str, Any], reason: str, says: str) -> None:
    """The file ends after its header: decoding it would say something else."""
    data = saved(Image.fromarray(scene()), "BMP")
    within = {"max_bytes": len(data), "max_pixels": 24 * 32, "min_side": 24, "max_aspect_ratio": 4 / 3}
    assert decode(data, Limits(**within)).pixels.shape == (24, 32, 3)
    with pytest.raises(ImageError, match=says) as caught:
        decode(data[:100], Limits(**limits))
    assert caught.value.reason == reason


def test_a_tile_larger_than_the_limit_is_refused_unread() -> None:
    import hostile

    bomb = hostile.KINDS["tiff_tile_bomb"].make(np.random.default_rng(0))
    with pytest.raises(ImageError, match="tiles of 400000000 pixels"):
        decode(bomb)


def test_large_pictures_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all pixels in hand another picture waits, and goes on when they are free."""
    data, small = saved(Image.fromarray(scene(40, 40)), "PNG"), saved(Image.fromarray(scene(4, 4)), "PNG")
    monkeypatch.setattr(images, "_share", images._Share(40 * 40 + 4 * 4))
    second = threading.Thread(target=decode, args=(data,))
    with decoding(data, Limits()):
        second.start()
        decode(small)
        second.join(0.2)
        assert second.is_alive()
    second.join(10)
    assert not second.is_alive()
    with pytest.raises(ImageError), decoding(data[:60], Limits()):
        pass
    assert decode(data).plain, "a failure gives its pixels back"


def test_download_sizes_and_filters(tmp_path: Path) -> None:
    """What a mode leaves as it is goes untouched; what is filtered has its reason, and no other mode's outcome."""
    source = flat(tmp_path / "in", [12])
    common = {"source": "webdataset", "path": str(source), "num_val": 2, "num_test": 2}
    report = download(tmp_path / "s", resize_mode="keep_ratio_largest", **common)
    assert {image_of(sample).shape for sample in samples(report)} == {(12, 16, 3)}
    meta = [json.loads(sample.fields["json"]) for sample in samples(report)]
    assert {(m["width"], m["height"], m["original_width"], m["original_height"]) for m in meta} == {(16, 12, 26, 20)}
    untouched = samples(download(tmp_path / "s", resize_mode="no", image_format="png", **common))
    assert {image_of(sample).shape for sample in untouched} == {(20, 26, 3)}
    assert all("jpg" in sample.fields for sample in untouched), "passed on, not made anew"
    assert all(image_of(sample).shape == (16, 16, 3) for sample in samples(download(tmp_path / "s", **common)))
    for limit, reason in (({"min_side": 21}, "too_small"), ({"max_aspect_ratio": 1.2}, "aspect_ratio")):
        with pytest.raises(PermanentError, match=f"none of the 8 samples of 'train' can be used.*{reason}"):
            download(tmp_path / "s", **common, **limit)
    with pytest.raises(PermanentError, match=r"too_large: \d+ bytes; the limit is 99"):
        download(tmp_path / "s", max_bytes=99, **common)


def test_few_bytes_are_in_hand_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files are not read 64 at a time; what comes out is the same."""
    source = {"source": "webdataset", "path": str(flat(tmp_path / "in", [12])), "num_val": 2, "num_test": 2}
    whole, make, load = download(tmp_path / "a", **source), stage.make_sample, WebdatasetSource.load
    made: list[str] = []
    ahead: list[int] = []

    def loading(self: WebdatasetSource, ref: Ref) -> Raw:
        ahead.append(len(ahead) - len(made))
        return load(self, ref)

    monkeypatch.setattr(WebdatasetSource, "load", loading)
    monkeypatch.setattr(stage, "make_sample", lambda ref, *rest: (made.append(ref.key), make(ref, *rest))[1])
    monkeypatch.setattr(stage, "_BLOCK_BYTES", 0)
    assert download(tmp_path / "b", **source).manifest_sha256 == whole.manifest_sha256
    assert ahead == [0] * 12
    assert len(made) == 12, "each once"


def test_an_evaluation_set_is_scored_whole(tmp_path: Path) -> None:
    one = find_sets(["cifar10"])[0]
    given = DownloadParams(source="folder", path="x", dataset="x", min_side=500, max_aspect_ratio=2, max_bytes=5000)
    params = Params(download_eval=given)
    made = download_params(one, str(tmp_path), params, 0)
    assert (made.min_side, made.max_aspect_ratio, made.max_bytes) == (0, 0, 5000)


def test_what_a_format_cannot_hold_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i in range(5):
        Image.fromarray(scene(8, 8)).save(source / f"{i}.png")
    Image.fromarray(np.zeros((1, 70_000, 3), np.uint8)).save(source / "long.png", exif=_turned())
    rows = [{"image": path.name, "caption": "x"} for path in sorted(source.iterdir())]
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = {"source": "folder", "path": str(source), "num_train": 0, "num_val": 0, "num_test": 1}
    report = download(tmp_path / "s", resize_mode="no", image_format="jpg", **folder)
    assert notes(report)["long"].reason == "too_large"
    assert "cannot be written as jpg" in notes(report)["long"].detail
    report = download(tmp_path / "s", resize_mode="keep_ratio", max_pixels=1_000_000, **folder)
    assert "1120000 pixels when resized" in notes(report)["long"].detail


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_several_sizes_are_refused_by_what_cannot_read_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"download\.resize_mode is 'keep_ration'.*did you mean 'keep_ratio'"):
        DownloadParams(resize_mode="keep_ration")
    params = Params(
        download=DownloadParams(resize_mode="keep_ratio"), download_eval=DownloadParams(resize_mode="border")
    )
    with pytest.raises(UsageError, match=r"download\.resize_mode is 'keep_ratio'.*choose center_crop or border"):
        run_flow(params, str(tmp_path / "s"), tmp_path / "out", None)
    for refuse in (client.compile_pipeline, partial(client.run_local, store=str(tmp_path / "s"), tracked=False)):
        with pytest.raises(UsageError, match=r"download\.resize_mode is 'keep_ratio'"):
            refuse(params, out=tmp_path / "out")
    assert not list(tmp_path.iterdir()), "refused before anything is done"
    report = download(tmp_path / "s", source="webdataset", path=str(flat(tmp_path / "in", [12])), resize_mode="no")
    with pytest.raises(PermanentError, match=r"several sizes .*set it to center_crop or border"):
        ImageSet(open_artifact(report.url, open_store(".")), "train", image_size=16)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"max_pixels": 200_000_000}, "max_pixels is 200000000; it must be from 1 to 178956970"),
        ({"min_side": -1}, "min_side is -1"),
        ({"max_aspect_ratio": 0.5}, r"max_aspect_ratio is 0\.5; give 1 or more, or 0"),
    ],
)
def test_limits_out_of_range(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        DownloadParams(**given)


def test_at_their_defaults_the_new_parameters_are_in_no_key() -> None:
    new = {"resize_mode", "max_bytes", "max_pixels", "min_side", "max_aspect_ratio"}
    assert not new & semantic(DownloadParams()).keys()
    assert semantic(DownloadParams(min_side=5))["min_side"] == 5
    assert DownloadParams().max_pixels == images.MAX_PIXELS
