"""train_adapter on a real, tiny flow: what it trains, what it leaves alone, how it stops and goes on."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flows import PARAMS, make_flow
from picture_sets import committed
from safetensors.torch import load_file

from components.adapter import load_adapter, load_control
from components.config import DownloadParams, SplatFitParams
from components.contrastive import clip_loss
from components.distributed import World
from components.download.stage import run as download
from components.errors import Interrupted, PermanentError, UsageError
from components.freeze import apply_freeze_policy
from components.loader import ImageSet
from components.manifest import AT_WORK, Commit, open_artifact
from components.openclip import build, load_teacher
from components.shards import write_shard
from components.signals import Stop
from components.splat_fit.stage import run as splat_fit
from components.store import open_store
from components.train_adapter import phases, targets
from components.train_adapter.augment import Augmentation, coins
from components.train_adapter.data import Stream, TeacherEmbeddings, embed
from components.train_adapter.loss import embedding_distance, token_loss
from components.train_adapter.stage import run

CALL = """
import json, sys
from components.config import TrainAdapterParams
from components.params import section_from_dict
from components.train_adapter.stage import run
params, inputs = json.loads(sys.argv[1])
run(section_from_dict(TrainAdapterParams, params, "params"), **inputs)
"""


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_flow(tmp_path_factory.mktemp("flow"))


@pytest.fixture(scope="module")
def report(flow: dict[str, str]) -> Iterator[Any]:
    return run(PARAMS, **flow)


def digests(url: str) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(url).iterdir()) if p.is_file()}


def test_it_commits_what_it_says(report: Any) -> None:
    tensors = {f"{name}.safetensors" for name in ("adapter", "control", "control_stage1")}
    assert {entry.name for entry in report.manifest.files} == tensors | {"adapter.json", "curve.csv"}
    metrics = report.metrics
    assert metrics["student_learning_rate"] in PARAMS.stage2_learning_rates
    assert 0 < metrics["trained_share"] < 1
    assert metrics["stage1_steps"] == 9
    assert metrics["stage2_steps"] == 6
    rows = list(csv.DictReader(committed(report.url, "curve.csv").decode().splitlines()))
    last = {row["phase"]: row for row in rows}
    assert list(last) == [
        "stage1_tokens", "stage1_cls", "stage2_lr0.001", "stage2_lr0.01", "control_lr0.001", "control_lr0.01",
        "control_stage1_lr0.001", "control_stage1_lr0.01",
    ]  # fmt: skip
    assert int(last["control_stage1_lr0.01"]["step"]) == 15
    for who, phase in (("student", "stage2"), ("control", "control"), ("control_stage1", "control_stage1")):
        scores = {rate: float(last[f"{phase}_lr{rate:g}"]["val_accuracy"]) for rate in PARAMS.stage2_learning_rates}
        assert metrics[f"{who}_val_accuracy"] == pytest.approx(max(scores.values()), rel=1e-5)
        assert scores[metrics[f"{who}_learning_rate"]] == max(scores.values())
    assert not (Path(report.url) / "_checkpoint").exists() or not list((Path(report.url) / "_checkpoint").iterdir())


def test_again_is_cached(report: Any, flow: dict[str, str]) -> None:
    again = run(PARAMS, **flow)
    assert again.cached
    assert again.manifest_sha256 == report.manifest_sha256


def test_frozen_weights_are_bit_identical_and_freed_ones_moved(report: Any, flow: dict[str, str]) -> None:
    store = open_store(flow["store"])
    teacher, artifact = load_teacher(open_artifact(flow["teacher"], store), "cpu"), open_artifact(report.url, store)
    with open_artifact(flow["teacher"], store).local("model.safetensors") as path:
        before = load_file(path)
    student = load_adapter(artifact, teacher)
    freed = {n.removeprefix("clip.") for n, p in student.named_parameters() if p.requires_grad and "stem." not in n}
    after = {name.removeprefix("clip."): value for name, value in student.state_dict().items() if "stem." not in name}
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (name not in freed), name
    for which in ("control", "control_stage1"):
        control = load_control(artifact, teacher, which)
        for name, value in control.state_dict().items():
            assert torch.equal(value, before[name]) == (name not in freed | {"visual.conv1.weight"}), name
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_loaded_student_scores_what_training_saw(report: Any, flow: dict[str, str]) -> None:
    store = open_store(flow["store"])
    teacher, artifact = load_teacher(open_artifact(flow["teacher"], store), "cpu"), open_artifact(report.url, store)
    student = load_adapter(artifact, teacher)
    assert apply_freeze_policy(student, "paper").trained == report.metrics["trained"]
    batch = next(
        ImageSet(open_artifact(flow["images"], store), "val", splats=open_artifact(flow["splats"], store)).batches(
            20, shuffle=False, drop_last=False
        )
    )
    with torch.no_grad():
        features = student.encode_splats(batch.splats)
    assert features.shape == (20, 24)
    assert features.isfinite().all()


def test_a_stop_goes_on_to_the_same_bytes(report: Any, flow: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM in two phases, each followed by the same call; the end is the undisturbed run's."""
    inputs = {**flow, "store": str(tmp_path / "store")}
    for phase in ("stage1_cls", "control_lr0.001"):
        sender = threading.Thread(target=stop_in, args=(phase, tmp_path), daemon=True)
        handler = signal.signal(signal.SIGTERM, lambda *_: None)  # a late signal must not end the tests
        sender.start()
        try:
            with pytest.raises(Interrupted):
                run(PARAMS, **inputs)
        finally:
            sender.join()
            signal.signal(signal.SIGTERM, handler)
    assert list(tmp_path.glob(f"store/train_adapter/*/{AT_WORK}")), "gc is told that somebody goes on"
    assert digests(run(PARAMS, **inputs).url) == digests(report.url)


def test_a_stop_while_the_teacher_looks_at_the_pictures(
    flow: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embeddings are made inside a training step; the shard in hand is the last one."""
    counted, looked = targets.embed, []

    def signalled(clip: Any, images: Any) -> Any:
        looked.append(len(images))
        os.kill(os.getpid(), signal.SIGTERM)
        return counted(clip, images)

    monkeypatch.setattr(targets, "embed", signalled)
    with pytest.raises(Interrupted, match="finished phases and shards are kept"):
        run(replace(PARAMS, augment=False), **{**flow, "store": str(tmp_path / "store")})
    assert len(looked) == 1


def stop_in(phase: str, folder: Path) -> None:
    """Send this process SIGTERM once a phase has saved its first checkpoint."""
    while not list(folder.rglob(f"_checkpoint/{phase}.safetensors")):
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.full
def test_killed_it_goes_on_to_the_same_bytes(report: Any, flow: dict[str, str], tmp_path: Path) -> None:
    inputs = {**flow, "store": str(tmp_path / "store")}
    call = [sys.executable, "-c", CALL, json.dumps([asdict(PARAMS), inputs])]
    for phase in ("stage1_tokens", "stage2_lr0.001", "control_lr0.001"):
        process = subprocess.Popen(call, cwd=Path(__file__).resolve().parent.parent)
        while process.poll() is None and not list(tmp_path.rglob(f"_checkpoint/{phase}.safetensors")):
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    subprocess.run(call, check=True, cwd=Path(__file__).resolve().parent.parent)
    assert digests(run(PARAMS, **inputs).url) == digests(report.url)


def test_flips_agree_in_splats_pixels_and_targets(flow: dict[str, str]) -> None:
    store = open_store(flow["store"])
    teacher = load_teacher(open_artifact(flow["teacher"], store), "cpu")
    pictures = ImageSet(open_artifact(flow["images"], store), "train", splats=open_artifact(flow["splats"], store))
    made = {"picture": 16, "batch_size": 16, "seed": 3}
    flipped = Stream(pictures, teacher, torch.device("cpu"), **made, augmentation=Augmentation(flips=True))
    plain = Stream(pictures, teacher, torch.device("cpu"), **made, augmentation=Augmentation())
    a, b = flipped.at(4), plain.at(4)
    assert a.batch.keys == b.batch.keys
    assert 0 < a.flip.sum() < 16
    assert torch.equal(a.images[a.flip], b.images[a.flip].flip(3))
    assert torch.equal(a.images[~a.flip], b.images[~a.flip])
    assert torch.equal(a.splats.means[a.flip][..., 0], 15 - b.splats.means[a.flip][..., 0])
    assert torch.equal(a.splats.means[~a.flip], b.splats.means[~a.flip])
    images, given = open_artifact(flow["images"], store), open_artifact(flow["teacher"], store)
    targets = TeacherEmbeddings(images, given, teacher, store, flips=True, stop=Stop(), world=World())
    with torch.no_grad():
        assert torch.allclose(targets.of(a), embed(teacher.model, a.images), atol=0.02)
    again = Stream(pictures, teacher, torch.device("cpu"), **made, augmentation=Augmentation(flips=True)).at(4)
    assert torch.equal(again.images, a.images)


def test_what_is_augmented_goes_on_alike_and_is_not_validated_on(flow: dict[str, str]) -> None:
    store = open_store(flow["store"])
    teacher = load_teacher(open_artifact(flow["teacher"], store), "cpu")
    pictures = ImageSet(open_artifact(flow["images"], store), "train", splats=open_artifact(flow["splats"], store))

    def stream(**wanted: float) -> Stream:
        cpu, augmentation = torch.device("cpu"), Augmentation(flips=True, **wanted)
        return Stream(pictures, teacher, cpu, picture=16, batch_size=16, seed=3, augmentation=augmentation)

    plain = stream()
    for wanted in ({"crop_min": 0.4}, {"rotate_degrees": 30.0}, {"color_jitter": 0.5}, {"drop_gaussians": 0.5}):
        made = stream(**wanted)
        whole, given = plain.at(4), made.at(4)
        drops = "drop_gaussians" in wanted
        assert torch.equal(given.images, whole.images) == drops
        assert torch.equal(given.flip, whole.flip)
        assert torch.equal(given.batch.pixels, whole.batch.pixels)
        fewer = given.splats.mask.sum(1) < whole.splats.mask.sum(1)
        assert fewer.any() or not drops
        left = given.splats.mask
        assert torch.equal(given.splats.means[left], whole.splats.means[left]) == (drops or "color_jitter" in wanted)
        assert torch.equal(given.splats.colors[left], whole.splats.colors[left]) == ("color_jitter" not in wanted)
        assert torch.equal(stream(**wanted).at(4).images, given.images), "a run that goes on sees the same"
        validated = next(iter(made.in_order(16)))
        assert torch.equal(validated.images, next(iter(plain.in_order(16))).images), "validation is not augmented"


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ({"crop_min": 0.6, "color_jitter": 0.3}, False),
        ({"drop_gaussians": 0.5}, True),
        ({"cache_embeddings": False}, False),
    ],
)
def test_targets_are_of_the_augmented_pictures(
    flow: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, float], kept: bool
) -> None:
    """What is kept of whole pictures is not given out for their parts, nor for other colours."""
    seen = []

    def watched(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(targets)
        return embedding_distance(features, targets)

    given = []

    def stepped(self: Stream, step: int) -> Any:
        given.append(at(self, step))
        return given[-1]

    at = Stream.at
    monkeypatch.setattr(Stream, "at", stepped)
    monkeypatch.setattr(phases, "embedding_distance", watched)
    params = replace(
        PARAMS, **wanted, stage1_token_epochs=0, stage1_cls_epochs=0.5, stage2_epochs=0.5, control=False,
        control_with_stage1=False, stage2_learning_rates=(1e-3,),
    )  # fmt: skip
    run(params, **{**flow, "store": str(tmp_path / "store")})
    teacher = load_teacher(open_artifact(flow["teacher"], open_store(flow["store"])), "cpu")
    for wanted, batch in zip(seen, given[-len(seen) :], strict=True):
        with torch.no_grad():
            assert torch.allclose(wanted, embed(teacher.model, batch.images), atol=2e-3 if kept else 1e-6)
    assert len(seen) > 1
    assert bool(list(tmp_path.rglob("teacher_embeddings"))) == kept


def test_coins_are_fair_and_belong_to_key_and_epoch() -> None:
    keys = [f"{i:05d}" for i in range(2000)]
    first = coins(keys, seed=0, epoch=0)
    assert 900 < first.sum() < 1100
    assert torch.equal(coins(keys[500:600], seed=0, epoch=0), first[500:600])
    assert not torch.equal(coins(keys, seed=0, epoch=1), first)
    assert not torch.equal(coins(keys, seed=1, epoch=0), first)


def test_losses() -> None:
    patches = torch.randn(64, 16, 8) * 3 + 1
    scale = patches.std((0, 1))
    mean = patches.mean((0, 1)).expand_as(patches)
    assert token_loss(patches, patches, scale) == 0
    assert token_loss(mean, patches, scale) == pytest.approx(1.0, rel=0.02)
    a, b = torch.randn(5, 8), torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    cosine = torch.nn.functional.cosine_similarity(a, b)
    assert embedding_distance(a, b) == pytest.approx(float((2 - 2 * cosine).mean()), rel=1e-5)
    assert embedding_distance(7 * b, b) == pytest.approx(0.0, abs=1e-6)
    assert clip_loss(b, b, torch.tensor(4.6), torch.eye(5, dtype=torch.bool)) < 0.5


def test_fewer_latents_and_no_control(flow: dict[str, str]) -> None:
    params = replace(
        PARAMS, num_latents=6, stage1_token_epochs=0, stage2_epochs=1, stage2_learning_rates=(1e-3,), control=False,
        control_with_stage1=False, freeze_policy="stem", augment=False,
    )  # fmt: skip
    made = run(params, **flow)
    store = open_store(flow["store"])
    artifact, teacher = open_artifact(made.url, store), load_teacher(open_artifact(flow["teacher"], store), "cpu")
    assert load_adapter(artifact, teacher).stem.positional_embedding.shape == (6, 32)
    with pytest.raises(PermanentError, match="without this control"):
        load_control(artifact, teacher)
    with pytest.raises(UsageError, match="stage1_token_epochs"):
        run(replace(params, stage1_token_epochs=1), **flow)


def test_inputs_must_be_what_they_are_called(flow: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="splats is"):
        run(PARAMS, **{**flow, "splats": flow["images"]})
    others = DownloadParams(image_size=16, num_train=2, num_val=0, num_test=1, shard_size=25, seed=7)
    with pytest.raises(PermanentError, match="was fitted to images"):
        run(PARAMS, **{**flow, "images": download(others, store=flow["store"]).url})


def test_no_choice_without_validation_pictures(flow: dict[str, str]) -> None:
    source = DownloadParams(image_size=16, num_train=8, num_val=0, num_test=1, shard_size=25, seed=7)
    inputs = {**flow, "images": download(source, store=flow["store"]).url}
    fitted = splat_fit(
        SplatFitParams(num_gaussians=4, num_iters=3, threads=1), images=inputs["images"], store=flow["store"]
    )
    inputs["splats"] = fitted.url
    with pytest.raises(UsageError, match="num_val"):
        run(PARAMS, **inputs)
    made = run(replace(PARAMS, stage2_learning_rates=(1e-3,), stage2_epochs=1, stage1_token_epochs=1), **inputs)
    assert not [name for name in made.metrics if "val" in name]
    assert made.metrics["student_learning_rate"] == 1e-3


def test_validation_pictures_of_which_none_was_fitted_are_none(flow: dict[str, str], tmp_path: Path) -> None:
    store = open_store(flow["store"])
    images, splats = (open_artifact(flow[name], store) for name in ("images", "splats"))
    params = {**splats.manifest.params, "failed": "val"}
    commit = Commit(store, stage="splat_fit", version=1, params=params, inputs={"images": images})
    write_shard(tmp_path / "empty.tar", [])
    entries = []
    for entry in splats.manifest.shards:
        with splats.local(entry) as path:
            ok, file = (0, tmp_path / "empty.tar") if entry.split == "val" else (entry.ok, path)
            entries.append(commit.put_shard(file, index=entry.index, split=entry.split, ok=ok))
    inputs = {**flow, "splats": commit.finalise(shards=entries, files=[], metrics={}).url}
    with pytest.raises(UsageError, match="no validation pictures with splats"):
        run(PARAMS, **inputs)
    short = replace(PARAMS, stage2_learning_rates=(1e-3,), stage2_epochs=1, stage1_token_epochs=0, stage1_cls_epochs=0)
    assert not [name for name in run(short, **inputs).metrics if "val" in name]


def test_another_teacher_does_not_fit(report: Any, flow: dict[str, str]) -> None:
    store = open_store(flow["store"])
    teacher = load_teacher(open_artifact(flow["teacher"], store), "cpu")
    other = build("ViT-S-32-alt", "", "cpu")
    with pytest.raises(PermanentError, match="does not fit the teacher"):
        load_adapter(open_artifact(report.url, store), replace(teacher, model=other))


def test_token_phase_learns(flow: dict[str, str]) -> None:
    """On fifty pictures the token loss must fall well below the mean token's 1."""
    made = run(
        replace(PARAMS, stage1_token_epochs=40, stage1_cls_epochs=0, stage2_epochs=0, control=False,
                control_with_stage1=False, augment=False, stage2_learning_rates=(1e-3,)),
        **flow,
    )  # fmt: skip
    lines = committed(made.url, "curve.csv").decode().splitlines()
    rows = [row for row in csv.DictReader(lines) if row["phase"] == "stage1_tokens"]
    assert float(rows[-1]["loss"]) < 0.6
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
