"""Fits that serve a reader: what they gain, what is kept, what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import splat2d
from flows import put_teacher
from picture_sets import picture, sample
from safetensors.numpy import load, save

from components import openclip
from components.config import DownloadParams, SplatFitParams
from components.download.stage import run as download
from components.entries import sha256_bytes, stored_name
from components.errors import PermanentError, UsageError
from components.images import encode
from components.loader import ImageSet
from components.manifest import Artifact, open_artifact
from components.splat_fit import reader as reader_module
from components.splat_fit import stage
from components.splat_fit.reader import FILE, NUM_PICTURES
from components.splat_fit.shard import ShardFitter
from components.splat_fit.stage import run
from components.splats import PaddedSplats, render_pictures
from components.store import open_store

PARAMS = SplatFitParams(num_gaussians=8, num_iters=40, threads=1)


@pytest.fixture
def flow(tmp_path: Path) -> dict[str, str]:
    """A store with pictures and a teacher of random weights that was "trained" on them."""
    store = str(tmp_path / "store")
    images = download(DownloadParams(image_size=16, num_train=40, num_val=0, num_test=8, shard_size=20), store=store)
    return {"images": images.url, "teacher": put_teacher(store, tmp_path, images.url), "store": store}


def opened(flow: dict[str, str], name: str) -> Artifact:
    return open_artifact(flow[name], open_store(flow["store"]))


def residuals(flow: dict[str, str], splats: Artifact) -> Any:
    """[B, H, W, 3]: what the splats of the training pictures leave over."""
    pictures = ImageSet(opened(flow, "images"), "train", splats=splats)
    (batch,) = pictures.batches(len(pictures), shuffle=False)
    given = batch.gaussians
    counts = given.mask.sum(1).numpy().astype(np.int32)
    drawn = render_pictures(
        PaddedSplats(given.means.numpy(), given.cholesky.numpy(), given.colors.numpy(), counts), 16, 16, threads=1
    )
    return (drawn.astype(np.float32) - batch.pixels.numpy()) / 255


def seen(rows: Any, left: Any, patch: int) -> float:
    """Mean of |rows r|^2 over patches."""
    parts = left.reshape(len(left), 16 // patch, patch, 16 // patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    return float(np.square(parts.reshape(-1, patch * patch * 3) @ rows.T).sum(1).mean())


def test_the_fit_serves_the_reader(flow: dict[str, str]) -> None:
    given = {"images": flow["images"], "store": flow["store"]}
    plain = run(PARAMS, **given)
    wanted = replace(PARAMS, reader=flow["teacher"], reader_weight=4.0)
    served = run(wanted, **given)
    assert served.url != plain.url
    made = open_artifact(served.url, open_store(flow["store"]))
    assert made.manifest.inputs["teacher"]["sha256"] == opened(flow, "teacher").manifest.sha256
    assert [entry.name for entry in made.manifest.files] == [FILE]
    with made.local(made.manifest.files[0]) as path:
        rows = load(path.read_bytes())["rows"]
    patch = int((rows.shape[1] // 3) ** 0.5)
    before, after = (residuals(flow, open_artifact(one.url, open_store(flow["store"]))) for one in (plain, served))
    assert seen(rows, after, patch) < 0.9 * seen(rows, before, patch)
    assert np.square(after).mean() > np.square(before).mean(), "pixels pay for it"
    assert run(wanted, **given).cached
    less = run(replace(wanted, reader_weight=0.25), **given)
    assert less.url != served.url
    between = residuals(flow, open_artifact(less.url, open_store(flow["store"])))
    assert seen(rows, after, patch) < 0.95 * seen(rows, between, patch) < 0.95 * seen(rows, before, patch)
    assert run(PARAMS, **given).url == plain.url


def test_the_address_of_the_reader_is_no_part_of_the_key(flow: dict[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "teacher.json"
    copy.write_bytes((Path(flow["teacher"]) / "manifest.json").read_bytes())
    wanted = [replace(PARAMS, reader=ref, reader_weight=1.0) for ref in (flow["teacher"], str(copy))]
    first, second = (run(one, images=flow["images"], store=flow["store"]) for one in wanted)
    assert second.cached
    assert first.url == second.url


def test_a_later_call_fits_under_the_same_metric(flow: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = replace(PARAMS, reader=flow["teacher"], reader_weight=1.0)
    first = run(wanted, images=flow["images"], store=flow["store"])
    root = Path(first.url)
    (root / "manifest.json").unlink()
    again = sorted((root / "_done").iterdir())[0]
    again.unlink()

    def never(*given: Any) -> Any:
        raise AssertionError("it is there")

    monkeypatch.setattr(reader_module, "_estimated", never)
    monkeypatch.setattr(openclip, "load_teacher", never)
    assert run(wanted, images=flow["images"], store=flow["store"]).manifest_sha256 == first.manifest_sha256
    (root / "manifest.json").unlink()
    made = [np.zeros((2, 48)), np.ones((2, 7)), np.ones((2, 0)), np.ones(48), np.ones((2, 3 * 5**2))]  # the last: of 16
    for junk in (b"junk", save({"rows": np.ones((2, 48))}), *(save({"rows": one.astype(np.float32)}) for one in made)):
        [place] = (root / "reader").iterdir()
        place.write_bytes(junk)
        with pytest.raises(PermanentError, match=f"{place.name}: damaged: its name has another sum; delete it"):
            run(wanted, images=flow["images"], store=flow["store"])
        place.rename(root / stored_name(FILE, sha256_bytes(junk)))
        with pytest.raises(PermanentError, match=r"reader/metric-[0-9a-f]{12}.safetensors: not a reader's metric"):
            run(wanted, images=flow["images"], store=flow["store"])


def test_a_teacher_that_was_copied_elsewhere(flow: dict[str, str], tmp_path: Path) -> None:
    wanted = replace(PARAMS, reader=flow["teacher"], reader_weight=1.0)
    first = run(wanted, images=flow["images"], store=flow["store"])
    shutil.copytree(flow["teacher"], tmp_path / "mine")
    shutil.rmtree(first.url)
    again = run(replace(wanted, reader=str(tmp_path / "mine")), images=flow["images"], store=flow["store"])
    assert again.manifest_sha256 == first.manifest_sha256
    shutil.copytree(Path(flow["store"]) / "download", tmp_path / "other" / "download")
    shutil.rmtree(Path(flow["store"]) / "download")
    images = str(tmp_path / "other" / Path(flow["images"]).relative_to(flow["store"]))
    with pytest.raises(PermanentError, match=r"was trained on, download/[0-9a-f]+, are neither in"):
        run(wanted, images=images, store=str(tmp_path / "third"))


def test_an_evaluation_set_is_fitted_under_the_metric_of_the_teachers_own_pictures(
    flow: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = download(
        DownloadParams(dataset="other", image_size=16, num_train=4, num_val=0, num_test=6, shard_size=6, seed=5),
        store=flow["store"],
    )
    wanted = replace(PARAMS, reader=flow["teacher"], reader_weight=1.0)
    files = [
        run(wanted, images=url, store=flow["store"]).manifest.files[0].sha256 for url in (flow["images"], other.url)
    ]
    assert files[0] == files[1]
    assert NUM_PICTURES > 40, "all of them here"


def test_what_is_refused(flow: dict[str, str], tmp_path: Path) -> None:
    given = {"images": flow["images"], "store": flow["store"]}
    for change in ({"reader": flow["teacher"]}, {"reader_weight": 1.0}):
        with pytest.raises(UsageError, match="give a teacher and a weight above 0, or neither"):
            replace(PARAMS, **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'cuda' fits by pixels alone"):
        replace(PARAMS, reader=flow["teacher"], reader_weight=1.0, device="cuda")
    with pytest.raises(UsageError, match="reader_weight is 1000000"):
        replace(PARAMS, reader=flow["teacher"], reader_weight=1e6)
    with pytest.raises(PermanentError, match=r"^splat_fit.reader: .*typo has no manifest.json"):
        run(replace(PARAMS, reader=f"{flow['store']}/typo", reader_weight=1.0), **given)
    with pytest.raises(UsageError, match="the output of download; give the output of train_teacher"):
        run(replace(PARAMS, reader=flow["images"], reader_weight=1.0), **given)
    large = download(
        DownloadParams(dataset="large", image_size=32, num_train=4, num_val=0, num_test=1, shard_size=4),
        store=flow["store"],
    )
    with pytest.raises(UsageError, match="of 16 x 16 pixels in patches of 4, but those to be fitted have a side of 32"):
        run(replace(PARAMS, reader=flow["teacher"], reader_weight=1.0), images=large.url, store=flow["store"])


def test_pictures_that_its_patches_do_not_tile_are_named() -> None:
    ticks: list[int] = []
    rows = np.zeros((2, 3 * 4 * 4), np.float32)
    fitter = ShardFitter(replace(PARAMS, reader="x", reader_weight=1.0), "cpu", lambda n, _: ticks.append(n), rows)
    fitter.add(sample("odd", encode(picture(1, 16, 19), "png")))
    fitter.add(sample("even", encode(picture(1, 16, 20), "png")))
    fitter.flush()
    assert [(note.key, note.reason) for note in fitter.notes] == [("odd", "no_patches")]
    assert "patches of 4 do not tile" in fitter.notes[0].detail
    assert sum(ticks) == 2


def test_auto_fits_for_a_reader_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splat2d, "has_cuda", lambda: True)
    assert stage.device_of(replace(PARAMS, device="auto")) == "cuda"
    assert stage.device_of(replace(PARAMS, device="auto", reader="x", reader_weight=1.0)) == "cpu"


def test_other_pictures_in_the_teachers_place_are_refused(flow: dict[str, str]) -> None:
    reader, store = opened(flow, "teacher"), open_store(flow["store"])
    assert reader_module._pictures(reader, store).url == flow["images"]
    given = {"images": {**reader.manifest.inputs["images"], "sha256": "0" * 64}}
    other = replace(reader, manifest=replace(reader.manifest, inputs=given))
    with pytest.raises(PermanentError, match="are neither in"):
        reader_module._pictures(other, store)
    with pytest.raises(PermanentError, match="its manifest names no pictures"):
        reader_module._pictures(replace(reader, manifest=replace(reader.manifest, inputs={})), store)
