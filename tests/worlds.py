"""A small world for the tests of the evaluation: pictures, splats, a teacher, an adapter and its control."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from components.adapter import SplatClip, describe, trained_state
from components.config import ZeroShotEvalParams
from components.freeze import apply_control_policy, apply_freeze_policy
from components.manifest import Artifact, Commit, canonical, open_artifact
from components.openclip import build, load_teacher, save_model
from components.shards import Sample, ShardIndex, write_shard
from components.splats import Splats
from components.stems import StemConfig
from components.store import open_store
from components.tokens import NUM_FEATURES, FeatureStats
from components.zero_shot_eval import stage

SIZE, CLASSES = 32, ("red ball", "green ball", "blue ball")
TEMPLATES = ("a photo of a {c}.", "a picture of the {c}.")
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PARAMS = ZeroShotEvalParams(num_bootstrap=200, num_sheet=4, batch_size=7, device="cpu", threads=1)


@dataclass
class World:
    """A store with the four inputs of the stage."""

    store: Path
    images: Artifact
    teacher: Artifact
    splats: Artifact
    adapter: Artifact
    pictures: dict[str, np.ndarray]
    classes: dict[str, int]

    def run(self, params: ZeroShotEvalParams = PARAMS, store: Path | None = None, **changes: Artifact) -> Artifact:
        given = {name: getattr(self, name) for name in ("images", "teacher", "splats", "adapter")} | changes
        urls = {name: artifact.url for name, artifact in given.items()}
        done = stage.run(params, **urls, store=str(store or self.store))
        return open_artifact(done.url, open_store(str(store or self.store)))


def content(artifact: Artifact, name: str) -> bytes:
    with artifact.local(name) as path:
        return path.read_bytes()


def scores_of(artifact: Artifact) -> dict:
    return json.loads(content(artifact, "scores.json"))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def gaussians(seed: int, count: int = 9) -> Splats:
    rng = np.random.default_rng(seed)
    cholesky = np.stack([rng.uniform(2, 5, count), rng.normal(0, 1, count), rng.uniform(2, 5, count)], 1)
    return Splats(rng.uniform(0, SIZE, (count, 2)), cholesky, rng.uniform(0, 0.8, (count, 3)), SIZE, SIZE)


def put_images(
    store: Path, tmp: Path, *, captions: bool, seed: int = 0, broken_class: bool = False
) -> tuple[Artifact, dict[str, np.ndarray], dict[str, int]]:
    """Two shards of test pictures; p05 has no class (or no caption), p06 will have no splats."""
    commit = Commit(
        open_store(str(store)), stage="download", version=1, params={"image_size": SIZE, "seed": seed}, inputs={}
    )
    rng = np.random.default_rng(seed)
    pictures: dict[str, np.ndarray] = {}
    classes: dict[str, int] = {}
    shards = []
    for shard in range(2):
        samples = []
        for i in range(20):
            key, number = f"p{shard * 20 + i:02d}", (shard * 20 + i) % 3
            pixels = rng.integers(0, 90, (SIZE, SIZE, 3), dtype=np.uint8)
            pixels[8:24, 8:24, number] += 150
            fields = {"png": png(pixels), "txt": b""}
            texts = [f"a {CLASSES[number]}, number {key}", f"one {CLASSES[number]}"][: 1 + number % 2]
            if captions:
                texts = [] if key == "p05" else texts
                fields |= {"txt": " ".join(texts[:1]).encode(), "json": canonical({"key": key, "captions": texts})}
            elif key != "p05":
                number = 7 if broken_class and key == "p09" else number
                fields |= {"cls": str(number).encode()}
            samples.append(Sample(key, fields))
            pictures[key], classes[key] = pixels, number if key != "p05" else -1
        write_shard(tmp / "shard.tar", samples)
        shards.append(commit.put_shard(tmp / "shard.tar", index=shard, split="test", ok=20))
    files = []
    if not captions:
        files.append(commit.put_file("classnames.txt", "\n".join(CLASSES).encode()))
        files.append(commit.put_file("zeroshot_classification_templates.txt", "\n".join(TEMPLATES).encode()))
    metrics = {"dataset": "balls", "image_size": SIZE, "num_classes": 0 if captions else 3}
    return commit.finalise(shards=shards, files=files, metrics=metrics), pictures, classes


def put_splats(store: Path, tmp: Path, images: Artifact, keys: list[str], *, pruned: str = "") -> Artifact:
    """Nine Gaussians a picture; none for the key `pruned`."""
    params = {"num_gaussians": 9, "pruned": pruned}
    commit = Commit(open_store(str(store)), stage="splat_fit", version=1, params=params, inputs={"images": images})
    shards = []
    for shard in range(2):
        samples = []
        for place, key in enumerate(keys[shard * 20 : shard * 20 + 20]):
            if key == "p06":
                continue
            count = 0 if key == pruned else 9
            data, _ = gaussians(shard * 20 + place, count).pack()
            about = {"key": key, "psnr_db": 20.0 + place, "num_gaussians": count, "num_bytes": len(data)}
            samples.append(Sample(key, {"gs2d": data, "txt": b"", "json": canonical(about)}))
        layout = write_shard(tmp / "splats.tar", samples)
        side = {".idx": ShardIndex.of(layout).to_bytes()}
        entry = commit.put_shard(tmp / "splats.tar", index=shard, split="test", ok=len(samples), side_files=side)
        shards.append(entry)
    return commit.finalise(shards=shards, files=[], metrics={})


def put_teacher(store: Path, tmp: Path, images: Artifact, *, trained_here: bool = True, seed: int = 1) -> Artifact:
    commit = Commit(
        open_store(str(store)),
        stage="train_teacher",
        version=1,
        params={"seed": seed, "here": trained_here},
        inputs={"images": images},
    )
    (tmp / "model.json").write_text(json.dumps(MODEL))
    torch.manual_seed(seed)
    save_model(build(str(tmp / "model.json")).state_dict(), tmp / "model.safetensors")
    about = {
        **MODEL,
        "model": "components/train_teacher/models/tiny.json",
        "pretrained": "" if trained_here else "laion",
        "trained_here": trained_here,
        "class_names": list(CLASSES) if trained_here else [],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }
    files = [
        commit.put_file("model.safetensors", tmp / "model.safetensors"),
        commit.put_file("config.json", canonical(about)),
    ]
    return commit.finalise(shards=[], files=files, metrics={})


def put_adapter(
    store: Path,
    tmp: Path,
    images: Artifact,
    teacher: Artifact,
    splats: Artifact,
    *,
    control: bool = True,
    picture: int = SIZE,
    rates: tuple[float, ...] = (1e-3, 2e-3),
    diverged: bool = False,
) -> Artifact:
    """An adapter with random weights (diverged: NaN in all), and a control whose tensors are the teacher's own."""
    inputs = {"images": images, "teacher": teacher, "splats": splats}
    params = {"control": control, "picture": picture, "stage2_learning_rates": list(rates), "diverged": diverged}
    commit = Commit(open_store(str(store)), stage="train_adapter", version=1, params=params, inputs=inputs)
    loaded = load_teacher(teacher)
    zero, one = (0.0,) * NUM_FEATURES, (1.0,) * NUM_FEATURES
    config = StemConfig(
        stem="paper",
        stem_width=8,
        layers=1,
        heads=2,
        num_latents=16,
        grid=(4, 4),
        width=32,
        picture=(picture, picture),
        features=FeatureStats(zero, one),
        tokens=FeatureStats((0.0,) * 32, (1.0,) * 32),
    )
    torch.manual_seed(3)
    student = SplatClip(load_teacher(teacher).model, config)
    apply_freeze_policy(student, "paper")
    state = trained_state(student)
    if diverged:
        state = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    save_model(state, tmp / "adapter.safetensors")
    files = [
        commit.put_file("adapter.safetensors", tmp / "adapter.safetensors"),
        commit.put_file("adapter.json", describe(config, "paper")),
    ]
    if control:
        apply_control_policy(loaded.model, "paper")
        save_model(trained_state(loaded.model), tmp / "control.safetensors")
        files.append(commit.put_file("control.safetensors", tmp / "control.safetensors"))
    metrics = {"trained_share": 0.097, "trained_vision_share": 0.15, "stage1_steps": 9}
    return commit.finalise(shards=[], files=files, metrics=metrics)


def make_world(folder: Path, *, captions: bool) -> World:
    store, tmp = folder / "store", folder / "tmp"
    tmp.mkdir()
    images, pictures, classes = put_images(store, tmp, captions=captions)
    splats = put_splats(store, tmp, images, list(pictures))
    teacher = put_teacher(store, tmp, images)
    adapter = put_adapter(store, tmp, images, teacher, splats)
    return World(store, images, teacher, splats, adapter, pictures, classes)


def by_name(scores: dict) -> dict[str, dict]:
    return {row["name"]: row for row in scores["rows"]}
