"""Download: the drawn sample, restarts, stores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from downloads import TINY, download, image_of, numbers, samples
from picture_sets import committed
from s3 import moto_server, new_bucket

from components.config import DownloadParams
from components.download import stage
from components.errors import Interrupted
from components.images import encode
from components.store import open_store


def test_sample_draws_captioned_classified_pictures(tmp_path: Path) -> None:
    report = download(tmp_path, image_size=32, num_train=40)
    assert numbers(report) == {"train": 40, "val": 5, "test": 9}
    assert report.metrics == {"num_classes": 10, "image_size": 32, "dataset": "sample"}
    assert report.speeds["images_per_s"] > 0
    names = committed(report.url, "classnames.txt").decode().split("\n")[:-1]
    templates = committed(report.url, "zeroshot_classification_templates.txt").decode().splitlines()
    assert len(names) == len(set(names)) == 10
    assert all("{c}" in line for line in templates)
    seen = samples(report)
    assert len({sample.key for sample in seen}) == 54
    for sample in seen:
        meta = json.loads(sample.fields["json"])
        assert image_of(sample).shape == (32, 32, 3)
        assert meta["class_name"] == names[meta["class"]] == names[int(sample.fields["cls"])]
        assert meta["key"] == sample.key
        assert (meta["width"], meta["height"]) == (32, 32)
        assert meta["class_name"] in meta["caption"]
        assert meta["captions"][0] == meta["caption"] == sample.fields["txt"].decode()
        assert len(set(meta["captions"])) == 3
        assert " a a" not in f" {meta['caption']}"
        assert " a o" not in f" {meta['caption']}"
    labels = [json.loads(sample.fields["json"])["class"] for sample in samples(report, "train")]
    assert [labels.count(label) for label in range(10)] == [4] * 10


def test_sample_pictures_differ_between_splits_and_seeds_and_not_between_calls(tmp_path: Path) -> None:
    first, second = download(tmp_path / "a"), download(tmp_path / "b")
    other = download(tmp_path / "c", seed=1)
    assert first.manifest_sha256 == second.manifest_sha256
    assert first.manifest.key != other.manifest.key
    pixels = [image_of(sample).tobytes() for sample in samples(first) + samples(other)]
    assert len(set(pixels)) == len(pixels)


def test_sample_shapes_are_told_apart_by_their_outline() -> None:
    """Each shape's own mask, upright, agrees best with itself: classes are what their names say."""
    from components.download.shapes import SHAPES

    axis = np.linspace(-1.1, 1.1, 64, dtype=np.float32)
    masks = {name: shape(*np.meshgrid(axis, axis)) < 0 for name, shape in SHAPES.items()}
    for name, mask in masks.items():
        assert 0.15 < mask.mean() < 0.65, name
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any(), name
        for other, theirs in masks.items():
            if other != name:
                assert (mask & theirs).sum() / (mask | theirs).sum() < 0.9, (name, other)
    assert not masks["ring"][32, 32]
    assert masks["arrow"][:20].sum() < masks["arrow"][20:40].sum()


def test_sample_is_fast_enough() -> None:
    from components.download.sample import SampleSource

    source = SampleSource(DownloadParams(num_train=60))
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        for ref in source.refs[:60]:
            encode(source.load(ref).image, "png")  # type: ignore[arg-type]
        best = min(best, time.process_time() - start)
    assert 60 / best > 200, f"{60 / best:.0f} pictures a second"


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    first, second = download(tmp_path), download(tmp_path)
    assert (first.cached, second.cached) == (False, True)
    assert first.manifest_sha256 == second.manifest_sha256
    assert first.url == second.url


def test_same_bytes_on_a_folder_and_on_s3(tmp_path: Path) -> None:
    folder = download(tmp_path)
    with moto_server():
        remote = download(f"{new_bucket()}/runs")
        here, there = open_store(folder.url), open_store(remote.url)
        assert here.list() == there.list()
        assert all(here.get_bytes(name) == there.get_bytes(name) for name in here.list())


def test_finished_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = download(tmp_path / "whole")
    made: list[int] = []
    write = stage._write

    def watch(commit: Any, shard: Any, *rest: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(shard.index)
        return write(commit, shard, *rest)

    monkeypatch.setattr(stage, "_write", watch)
    with pytest.raises(KeyboardInterrupt):
        download(tmp_path / "cut")
    made.clear()
    monkeypatch.setattr(
        stage, "_write", lambda commit, shard, *rest: (made.append(shard.index), write(commit, shard, *rest))[1]
    )
    again = download(tmp_path / "cut")
    assert made == [2, 3, 4, 5]
    assert again.manifest_sha256 == whole.manifest_sha256


def test_kill_at_any_moment_and_again_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = download(tmp_path / "whole", num_train=200)
    code = f"""
from components.config import DownloadParams
from components.download import stage
stage.run(DownloadParams(**{TINY | {"num_train": 200}!r}), store={str(tmp_path / "cut")!r})
"""
    kills = 0
    for shards in (0, 2, 9):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "cut").glob("download/*/_done/[0-9]*.json"))) <= shards:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert not list((tmp_path / "cut").glob("download/*/manifest.json")) or not kills
    assert kills >= 2
    again = download(tmp_path / "cut", num_train=200)
    one, two = open_store(whole.url), open_store(again.url)
    assert one.list() == two.list()
    assert all(one.get_bytes(name) == two.get_bytes(name) for name in one.list())


def test_sigterm_stops_between_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = stage._write

    def stop_in_the_second(commit: Any, shard: Any, *rest: Any) -> Any:
        if shard.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(commit, shard, *rest)

    monkeypatch.setattr(stage, "_write", stop_in_the_second)
    with pytest.raises(Interrupted, match="2 of 6 shards are kept"):
        download(tmp_path)
    monkeypatch.setattr(stage, "_write", write)
    assert numbers(download(tmp_path)) == {"train": 20, "val": 5, "test": 9}


def test_other_parameters_never_mix(tmp_path: Path) -> None:
    first = download(tmp_path)
    second = download(tmp_path, image_size=24)
    assert first.manifest.key != second.manifest.key
    assert {shard.params_hash for shard in second.manifest.shards} == {second.manifest.params_hash}
    assert all(image_of(sample).shape == (24, 24, 3) for sample in samples(second))
