"""Stage train_teacher: learning, resume, import, what it commits."""

from __future__ import annotations

import csv
import json
import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from components import openclip
from components.augment import crop_and_flip
from components.config import TrainTeacherParams
from components.errors import Interrupted, PermanentError, UsageError
from components.gc import collect
from components.images import encode
from components.manifest import AT_WORK, Artifact, Commit, open_artifact
from components.shards import Sample, write_shard
from components.store import open_store
from components.train_teacher import stage

NAMES = ("red", "green", "blue")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16,
        "patch_size": 8,
        "width": 32,
        "head_width": 16,
        "layers": 2,
        "patch_dropout": 0.25,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


def picture(i: int) -> bytes:
    """A noisy picture, brightest in the channel of its class."""
    image = np.random.default_rng(i).integers(0, 120, (16, 16, 3), dtype=np.uint8)
    image[..., i % 3] += 100
    return encode(image, "png")


def sample(i: int, caption: str = "", labelled: bool = True) -> Sample:
    fields = {"png": picture(i), "txt": caption.encode()}
    return Sample(f"s{i:04d}", {**fields, "cls": str(i % 3).encode()} if labelled else fields)


def commit_images(root: Path, samples: dict[str, list[Sample]], names: bool = True) -> Artifact:
    made = Commit(open_store(str(root)), stage="download", version=1, params={}, inputs={}, source=str(samples.keys()))
    entries = []
    for number, (split, group) in enumerate(samples.items()):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.tar"
            write_shard(path, group)
            entries.append(made.put_shard(path, index=number, split=split, ok=len(group)))
    files = []
    if names:
        files.append(made.put_file("classnames.txt", "\n".join(NAMES).encode()))
        files.append(made.put_file("zeroshot_classification_templates.txt", b"a photo of {c}.\na {c} picture.\n"))
    return made.finalise(shards=entries, files=files, metrics={"image_size": 16})


@pytest.fixture
def images(tmp_path: Path) -> str:
    samples = {"train": [sample(i) for i in range(96)], "val": [sample(i) for i in range(1000, 1030)]}
    return commit_images(tmp_path / "store", samples).url


@pytest.fixture
def params(tmp_path: Path) -> TrainTeacherParams:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return TrainTeacherParams(
        model=str(path), epochs=10, batch_size=16, learning_rate=3e-3, warmup_steps=5, device="cpu", checkpoint_steps=9
    )


def test_trains_validates_commits_and_is_found_again(tmp_path: Path, images: str, params: TrainTeacherParams) -> None:
    store = str(tmp_path / "store")
    report = stage.run(params, images=images, store=store)
    assert not report.cached
    assert report.metrics["steps"] == 60
    assert report.metrics["val_accuracy"] > 0.8
    assert report.speeds["images_per_s"] > 0
    artifact = open_artifact(report.url, open_store(store))
    assert [entry.name for entry in artifact.manifest.files] == ["config.json", "curve.csv", "model.safetensors"]
    assert not [name for name in artifact.store.list() if name.startswith("_checkpoint")]
    teacher = openclip.load_teacher(artifact)
    assert teacher.trained_here
    assert teacher.class_names_trained == list(NAMES)
    assert teacher.model_name == "tiny"
    total = sum(p.numel() for p in teacher.model.parameters())
    assert report.metrics["num_parameters"] == total
    assert total > report.metrics["num_parameters_vision"] + report.metrics["num_parameters_token_table"]
    with artifact.local("curve.csv") as path:
        rows = list(csv.DictReader(path.read_text().splitlines()))
    validated = [(row["step"], float(row["val_accuracy"])) for row in rows if row["val_accuracy"]]
    assert [step for step, _ in validated] == [str(6 * (epoch + 1)) for epoch in range(10)]
    assert validated[-1][1] == report.metrics["val_accuracy"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    left = Path(report.url) / "_checkpoint" / "teacher.safetensors"  # as a kill right after the manifest leaves it
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"left over")
    again = stage.run(params, images=images, store=store)
    assert again.cached
    assert not left.exists()
    assert again.manifest_sha256 == report.manifest_sha256
    faster = stage.run(
        replace(params, checkpoint_steps=50, threads=torch.get_num_threads()), images=images, store=store
    )
    assert faster.cached, "how often it saves itself is no part of what it makes"


def test_stopped_and_resumed_is_the_undisturbed_run(
    tmp_path: Path, images: str, params: TrainTeacherParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = replace(params, epochs=3)
    expected = stage.run(params, images=images, store=str(tmp_path / "store"))
    store = str(tmp_path / "other")
    step = stage.Training.step

    def stopped(self: stage.Training, number: int) -> Any:
        if number == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number)

    monkeypatch.setattr(stage.Training, "step", stopped)
    with pytest.raises(Interrupted, match="step 11 of 18"):
        stage.run(params, images=images, store=store)
    for path in Path(store).rglob("*.*"):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    seen, deleted = [], []

    def counted(self: stage.Training, number: int) -> Any:
        seen.append(number)
        deleted.append(collect(store, dry_run=False, unfinished=True).files)
        return step(self, number)

    monkeypatch.setattr(stage.Training, "step", counted)
    resumed = stage.run(params, images=images, store=store)
    assert seen == list(range(11, 18))
    assert set(deleted) == {0}, "from its first step on gc knows that somebody is at work"
    assert AT_WORK not in open_store(resumed.url).list()
    assert resumed.manifest_sha256 == expected.manifest_sha256, "weights, curve and metrics are the same bytes"


def test_another_seed_model_or_weights_is_another_output(
    tmp_path: Path, images: str, params: TrainTeacherParams
) -> None:
    store = str(tmp_path / "store")
    params = replace(params, epochs=0.2)
    urls = {stage.run(params, images=images, store=store).url}
    urls.add(stage.run(replace(params, seed=1), images=images, store=store).url)
    Path(params.model).write_text(json.dumps({**TINY, "embed_dim": 8}))
    urls.add(stage.run(params, images=images, store=store).url)
    assert len(urls) == 3, "the configuration's content counts, not its name alone"


def test_captions_without_classes(tmp_path: Path, params: TrainTeacherParams) -> None:
    store = tmp_path / "store"
    words = ("a red thing", "something green", "the colour blue")
    made = {
        split: [sample(i, words[i % 3], labelled=False) for i in range(start, start + 32)]
        for split, start in (("train", 0), ("val", 900))
    }
    images = commit_images(store, made, names=False).url
    report = stage.run(replace(params, epochs=2), images=images, store=str(store))
    assert "val_accuracy" not in report.metrics
    assert 0 < report.metrics["val_loss"] < 10
    assert openclip.load_teacher(open_artifact(report.url, open_store(str(store)))).class_names_trained == []
    made["train"][5] = sample(5, "", labelled=False)
    bad = commit_images(tmp_path / "bad", made, names=False).url
    with pytest.raises(PermanentError, match=r"'s0005' has no caption and no class prompt"):
        stage.run(replace(params, epochs=2), images=bad, store=str(tmp_path / "bad"))


def test_a_validation_split_without_a_usable_picture_is_none(tmp_path: Path, params: TrainTeacherParams) -> None:
    images = commit_images(tmp_path / "store", {"train": [sample(i) for i in range(16)], "val": []})
    assert images.manifest.splits() == ["train", "val"]
    report = stage.run(replace(params, epochs=1), images=images.url, store=str(tmp_path / "store"))
    assert report.metrics["steps"] == 1
    assert not [name for name in report.metrics if name.startswith("val_")]


def test_import_of_a_checkpoint(tmp_path: Path, images: str, params: TrainTeacherParams) -> None:
    torch.manual_seed(8)
    source = openclip.build(params.model)
    save_file(source.state_dict(), tmp_path / "mine.safetensors")
    imported = replace(params, pretrained=str(tmp_path / "mine.safetensors"))
    report = stage.run(imported, images=images, store=str(tmp_path / "store"))
    assert report.metrics["steps"] == 0
    teacher = openclip.load_teacher(open_artifact(report.url, open_store(str(tmp_path / "store"))))
    assert not teacher.trained_here
    assert teacher.class_names_trained == []
    assert teacher.pretrained == "mine.safetensors"
    state = teacher.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in source.state_dict().items())
    torch.manual_seed(9)
    save_file(openclip.build(params.model).state_dict(), tmp_path / "mine.safetensors")
    other = stage.run(imported, images=images, store=str(tmp_path / "store"))
    assert other.url != report.url, "the checkpoint's content counts"


def test_errors_that_name_the_remedy(tmp_path: Path, images: str, params: TrainTeacherParams) -> None:
    store = str(tmp_path / "store")
    with pytest.raises(PermanentError, match=r"has no manifest\.json"):
        stage.run(params, images=str(tmp_path / "nothing"), store=store)
    with pytest.raises(UsageError, match="batch_size is 200, but split 'train' has only 96"):
        stage.run(replace(params, batch_size=200), images=images, store=store)
    with pytest.raises(PermanentError, match="the loss is nan"):
        stage.run(replace(params, learning_rate=1e30, clip_norm=1e30), images=images, store=store)


def test_crop_and_flip_moves_and_mirrors() -> None:
    images = torch.arange(64 * 6 * 5 * 3, dtype=torch.int32).view(64, 6, 5, 3) + 1
    out = crop_and_flip(images, 2, torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    assert torch.equal(out, crop_and_flip(images, 2, torch.Generator().manual_seed(0)))
    seen = set()
    for before, after in zip(images, out, strict=True):
        padded = torch.zeros(10, 9, 3, dtype=torch.int32)
        padded[2:8, 2:7] = before
        found = []
        for top in range(5):
            for left in range(5):
                crop = padded[top : top + 6, left : left + 5]
                found += [
                    (top, left, flip) for flip in (False, True) if torch.equal(after, crop.flip(1) if flip else crop)
                ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 25
    unmoved = crop_and_flip(images, 0)
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(1)) for a, b in zip(unmoved, images, strict=True))
