"""The splat_fit stage: what it writes, what it measures, what it refuses, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import splat2d
from picture_sets import commit_images, picture, png_samples, sample

from components import config
from components.config import SplatFitParams
from components.errors import Interrupted, PermanentError, UsageError
from components.images import decode_rgb, encode
from components.manifest import Artifact, Manifest, open_artifact
from components.shards import IndexedShard, read_index, read_shard
from components.splat_fit import stage
from components.splat_fit.stage import run
from components.splat_fit.summary import summarise
from components.splats import Splats
from components.store import open_store

PARAMS = SplatFitParams(num_gaussians=16, num_iters=12, threads=1)


def _read(report_url: str) -> Artifact:
    return open_artifact(report_url, open_store(report_url))


def _mixed(store: str) -> Artifact:
    """Two splits and three shards: sizes, formats and pictures that cannot be fitted."""
    good = png_samples(0, 5)
    grey = sample("grey", encode(np.repeat(picture(9)[..., :1], 3, axis=2), "jpg"), "jpg", label=1)
    wide = sample("wide", encode(picture(10, 20, 31), "webp"), "webp", label=2)
    broken = sample("truncated", good[0].fields["png"][:200])
    tiny = sample("tiny", encode(picture(11, 3, 3), "png"))
    return commit_images(
        store, [("train", [good[0], grey, broken, wide, good[1]]), ("train", good[2:4]), ("test", [tiny, good[4]])]
    )


def test_one_splat_shard_an_image_shard_with_all_it_should_hold(tmp_path: Path) -> None:
    images = _mixed(str(tmp_path))
    report = run(PARAMS, images=images.url, store=str(tmp_path))
    assert (report.stage, report.cached) == ("splat_fit", False)
    assert report.speeds["images_per_s"] > 0
    splats = _read(report.url)
    manifest = splats.manifest
    assert report.manifest_sha256 == manifest.sha256
    assert manifest.counts == {
        "in": 9, "ok": 7, "skipped": 0, "failed": 2, "reasons": {"too_few_pixels": 1, "truncated": 1}
    }  # fmt: skip
    assert [(e.index, e.split, e.ok, e.source) for e in manifest.shards] == [
        (e.index, e.split, ok, e.name) for e, ok in zip(images.manifest.shards, (4, 2, 1), strict=True)
    ]
    psnr: dict[str, list[float]] = {}
    for image_entry, entry in zip(images.manifest.shards, manifest.shards, strict=True):
        with images.local(image_entry) as path:
            pictures = {one.key: one for one in read_shard(path)}
        with splats.local(entry) as path, splats.local(entry.files[0]) as index_path:
            written = list(read_shard(path))
            index = read_index(index_path)
            with IndexedShard(path, index) as shard:
                assert [bytes(shard.field(i, "gs2d")) for i in range(len(shard))] == [w.fields["gs2d"] for w in written]
        assert [w.key for w in written] == [key for key in pictures if key not in {"truncated", "tiny"}]
        for one in written:
            before = pictures[one.key].fields
            assert (one.fields["txt"], one.fields["cls"]) == (before["txt"], before["cls"])
            assert set(one.fields) == {"gs2d", "txt", "json", "cls"}
            about, old = json.loads(one.fields["json"]), json.loads(before["json"])
            assert about == old | {key: about[key] for key in ("psnr_db", "num_gaussians", "num_bytes")}
            pixels = decode_rgb(next(before[ext] for ext in ("png", "jpg", "webp") if ext in before))
            decoded = Splats.unpack(one.fields["gs2d"])
            assert (decoded.height, decoded.width) == pixels.shape[:2]
            assert (len(decoded), len(one.fields["gs2d"])) == (about["num_gaussians"], about["num_bytes"])
            error = decoded.render().astype(np.float64) - pixels / 255
            assert about["psnr_db"] == pytest.approx(-10 * np.log10(np.mean(error**2)), abs=1e-5)
            psnr.setdefault(entry.split, []).append(about["psnr_db"])
    metrics = manifest.metrics
    every = [one for split in psnr.values() for one in split]
    assert metrics["psnr_db_mean"] == pytest.approx(np.mean(every), abs=1e-9)
    assert metrics["psnr_db_mean_by_split"] == pytest.approx({k: np.mean(v) for k, v in psnr.items()}, abs=1e-9)
    assert metrics["psnr_db_mean"] > 18, "a smooth scene of 24 x 24 pixels from 16 Gaussians"
    assert metrics["bytes_per_image"]["gs2d"] == 24 + 16 * metrics["num_gaussians_mean"]
    raw = (6 * 24 * 24 + 20 * 31) * 3 / 7
    assert metrics["bytes_per_image"]["raw"] == pytest.approx(raw)
    assert metrics["compression_ratio"] == pytest.approx(raw / (16 * metrics["num_gaussians_mean"]))
    assert metrics["backend"] == splat2d.backend()
    assert metrics["num_iters_mean"] == 12
    assert "target_reached" not in metrics
    note = json.loads((tmp_path / manifest.path / "_done" / "00002.json").read_text())["samples"]
    assert note == [{"key": "tiny", "outcome": "failed", "reason": "too_few_pixels",
                     "detail": "3 x 3 = 9 pixels for 16 Gaussians"}]  # fmt: skip


def test_a_second_call_finds_the_first_and_threads_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _mixed(str(tmp_path / "a"))
    first = run(PARAMS, images=images.url, store=str(tmp_path / "a"))
    again = run(PARAMS, images=images.url, store=str(tmp_path / "a"))
    assert again.cached
    assert dataclasses.replace(again, cached=False, seconds=0, speeds={}) == dataclasses.replace(
        first, seconds=0, speeds={}
    )
    monkeypatch.setattr("components.splat_fit.shard.CHUNK_PER_THREAD", 1)  # other batches, too
    other = run(dataclasses.replace(PARAMS, threads=2), images=images.url, store=str(tmp_path / "b"))
    assert not other.cached
    assert other.manifest.to_bytes() == first.manifest.to_bytes()


def test_a_copy_of_the_manifest_is_an_address_too(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    images = commit_images(store, [("train", png_samples(0, 1))])
    copy = tmp_path / "elsewhere" / "images.json"
    copy.parent.mkdir()
    copy.write_bytes(images.manifest.to_bytes())
    assert run(PARAMS, images=str(copy), store=store).manifest.counts["ok"] == 1


def test_no_stale_shard_after_a_parameter_change(tmp_path: Path) -> None:
    images = commit_images(str(tmp_path), [("train", png_samples(0, 2)), ("test", png_samples(2, 1))])
    first = run(PARAMS, images=images.url, store=str(tmp_path))
    changed = dataclasses.replace(PARAMS, num_gaussians=9)
    second = run(changed, images=images.url, store=str(tmp_path))
    assert second.url != first.url
    assert not {e.sha256 for e in first.manifest.shards} & {e.sha256 for e in second.manifest.shards}
    assert second.metrics["num_gaussians_mean"] <= 9 < first.metrics["num_gaussians_mean"]
    # entries of other parameters that someone left in the prefix are not taken over either
    os.remove(f"{second.url}/manifest.json")
    shutil.copytree(f"{first.url}/_done", f"{second.url}/_done", dirs_exist_ok=True)
    for entry in first.manifest.shards:
        shutil.copy(f"{first.url}/{entry.name}", f"{second.url}/{entry.name}")
    assert run(changed, images=images.url, store=str(tmp_path)).manifest.to_bytes() == second.manifest.to_bytes()


def test_sigterm_keeps_finished_shards_and_the_next_call_goes_on(tmp_path: Path) -> None:
    shards = [("train", png_samples(40 * i, 40)) for i in range(6)]
    images = commit_images(str(tmp_path / "a"), shards)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    params = dataclasses.replace(PARAMS, num_iters=60)
    whole = run(params, images=images.url, store=str(tmp_path / "a"))
    prefix = tmp_path / "b" / whole.manifest.path

    def stop_after_first_shard() -> None:
        while not list(prefix.glob("_done/*.json")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=stop_after_first_shard)
    killer.start()
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM: .* run the same command again"):
        run(
            params,
            images=images.manifest.path and str(tmp_path / "b" / images.manifest.path),
            store=str(tmp_path / "b"),
        )
    killer.join()
    assert not (prefix / "manifest.json").exists()
    with pytest.raises(PermanentError, match="has not finished"):
        open_artifact(str(prefix), open_store(str(prefix)))
    tars = {path: path.stat().st_mtime_ns for path in prefix.rglob("*.tar")}
    assert 1 <= len(list(prefix.glob("_done/*.json"))) < 6
    resumed = run(params, images=str(tmp_path / "b" / images.manifest.path), store=str(tmp_path / "b"))
    assert all(path.stat().st_mtime_ns == then for path, then in tars.items()), "a finished shard was fitted again"
    assert resumed.manifest.to_bytes() == whole.manifest.to_bytes()


def test_a_flipped_byte_in_an_image_shard_is_refused(tmp_path: Path) -> None:
    images = commit_images(str(tmp_path), [("train", png_samples(0, 2))])
    name = images.manifest.shards[0].name
    path = tmp_path / images.manifest.path / name
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(PermanentError, match="sha256") as caught:
        run(PARAMS, images=images.url, store=str(tmp_path))
    assert name in str(caught.value)


def test_nothing_to_fit_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    images = commit_images(str(tmp_path), [("train", png_samples(0, 3, 4, 4))])
    many = dataclasses.replace(PARAMS, num_gaussians=17)
    with pytest.raises(PermanentError, match=r"3 too_few_pixels; .*lower splat_fit.num_gaussians \(17\)"):
        run(many, images=images.url, store=str(tmp_path))
    assert run(PARAMS, images=images.url, store=str(tmp_path)).manifest.counts["ok"] == 3  # 16 Gaussians do fit
    bad = commit_images(str(tmp_path), [("train", [sample("a", b"no picture")])], source="bad")
    with pytest.raises(PermanentError, match=r"1 unreadable; the first is 'a'.* look at the pictures"):
        run(PARAMS, images=bad.url, store=str(tmp_path))
    empty = commit_images(str(tmp_path), [], source="empty")
    with pytest.raises(PermanentError, match="holds no pictures"):
        run(PARAMS, images=empty.url, store=str(tmp_path))


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    images = commit_images(str(tmp_path), [("train", png_samples(0, 1))])
    splats = run(PARAMS, images=images.url, store=str(tmp_path))
    with pytest.raises(UsageError, match="the output of splat_fit; give the output of download"):
        run(PARAMS, images=splats.url, store=str(tmp_path))
    if not splat2d.has_cuda():
        with pytest.raises(UsageError, match=r"splat_fit\.device is 'cuda'"):
            run(dataclasses.replace(PARAMS, device="cuda"), images=images.url, store=str(tmp_path))
    torn = commit_images(str(tmp_path), [("train", [dataclasses.replace(one, fields=one.fields | {"json": b"{"})
                                                    for one in png_samples(0, 1)])], source="torn")  # fmt: skip
    with pytest.raises(PermanentError, match=r"000000\.json is no JSON mapping"):
        run(PARAMS, images=torn.url, store=str(tmp_path))


def test_flat_pictures_stay_finite(tmp_path: Path) -> None:
    """A black picture may come back without any error, even with no Gaussian left; JSON holds no infinity."""
    flat = [sample(f"level{level}", encode(np.full((16, 16, 3), level, np.uint8), "png")) for level in (0, 255)]
    images = commit_images(str(tmp_path), [("train", flat)])
    for recipe in ("paper", "default"):
        params = dataclasses.replace(PARAMS, recipe=recipe, prune_threshold=0.05)
        manifest = Manifest.from_bytes(run(params, images=images.url, store=str(tmp_path)).manifest.to_bytes(), "test")
        assert manifest.counts["ok"] == 2
        assert 20 < manifest.metrics["psnr_db_mean"] <= 100


def test_the_summary_does_not_depend_on_order(tmp_path: Path) -> None:
    images = commit_images(str(tmp_path), [("train", png_samples(3 * i, 3)) for i in range(7)])
    shards = run(PARAMS, images=images.url, store=str(tmp_path)).manifest.shards
    expected = summarise(shards)
    for seed in range(20):
        shuffled = list(shards)
        random.Random(seed).shuffle(shuffled)
        assert summarise(shuffled) == expected


def test_the_version_is_part_of_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = commit_images(str(tmp_path), [("train", png_samples(0, 1))])
    first = run(PARAMS, images=images.url, store=str(tmp_path))
    monkeypatch.setattr(stage, "VERSION", stage.VERSION + 1)
    assert run(PARAMS, images=images.url, store=str(tmp_path)).url != first.url


def test_a_target_gives_each_picture_its_own_number_and_length(tmp_path: Path) -> None:
    samples = png_samples(0, 6, 40, 40)
    images = commit_images(str(tmp_path), [("train", samples[:4]), ("test", samples[4:])])
    params = dataclasses.replace(PARAMS, num_gaussians=400, num_iters=200, target_psnr=27.0)
    fewest = dataclasses.replace(params, min_gaussians=4)
    early, few = (run(given, images=images.url, store=str(tmp_path)) for given in (params, fewest))
    assert early.metrics["target_reached"] == few.metrics["target_reached"] == 1
    assert 0 < early.metrics["num_iters_mean"] < 200
    assert few.metrics["num_gaussians_mean"] < 0.7 * early.metrics["num_gaussians_mean"]
    artifact, abouts = _read(few.url), []
    for entry in artifact.manifest.shards:
        with artifact.local(entry) as path:
            abouts += [json.loads(one.fields["json"]) for one in read_shard(path)]
    assert len({about["num_gaussians"] for about in abouts}) > 1
    assert min(about["psnr_db"] for about in abouts) >= 27


def test_a_small_picture_gets_at_most_its_pixels_where_the_number_is_found(tmp_path: Path) -> None:
    images = commit_images(str(tmp_path), [("train", [*png_samples(0, 2, 9, 9), *png_samples(2, 1, 2, 2)])])
    params = dataclasses.replace(PARAMS, num_gaussians=400, target_psnr=25.0, min_gaussians=5)
    report = run(params, images=images.url, store=str(tmp_path))
    assert report.manifest.counts["ok"] == 2
    assert report.manifest.counts["reasons"] == {"too_few_pixels": 1}
    assert report.metrics["num_gaussians_mean"] <= 81


def test_pruning_to_a_number(tmp_path: Path) -> None:
    images = commit_images(str(tmp_path), [("train", png_samples(0, 2))])
    params = dataclasses.replace(PARAMS, prune_to=9)
    by_loss, by_luminance = (
        run(dataclasses.replace(params, prune_score=score), images=images.url, store=str(tmp_path))
        for score in ("loss", "luminance")
    )
    assert by_loss.metrics["num_gaussians_mean"] == by_luminance.metrics["num_gaussians_mean"] == 9
    assert by_loss.url != by_luminance.url
    assert by_loss.metrics["psnr_db_mean"] != by_luminance.metrics["psnr_db_mean"]


def test_recipes_and_scores_are_the_librarys() -> None:
    assert set(config.RECIPES) == set(splat2d.RECIPES)
    for score in config.PRUNE_SCORES[1:]:
        dataclasses.replace(splat2d.RECIPES["default"], prune_score=score)  # type: ignore[arg-type]
