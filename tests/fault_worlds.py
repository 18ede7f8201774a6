"""The stages' commands for the fault tests, at sizes that take a fraction of a second, and what they read."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from faults import Command, command

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
STAGE_MODULES = {
    "download": ["components.download.stage", "components.download.folder", "components.download.urls"],
    "splat_fit": ["components.splat_fit.stage"],
    "train_teacher": ["components.train_teacher.stage"],
    "train_adapter": ["components.train_adapter.stage"],
    "zero_shot_eval": ["components.zero_shot_eval.stage", "components.zero_shot_eval.page"],
    "promote": ["components.promote.stage"],
}
TRAINS = {"train_teacher": 2, "train_adapter": 2}  # steps between checkpoints


def folder_download(tmp: Path, *, pictures: int = 48) -> Command:
    """48 pictures of 16 pixels, two of them bad, in shards of 8."""
    from picture_sets import picture

    from components.images import encode

    source = tmp / "photographs"
    source.mkdir()
    rows = []
    for i in range(pictures):
        data = encode(picture(i, 16, 16), "png")
        (source / f"{i:03d}.png").write_bytes(data[:100] if i == 5 else data)
        rows.append({"image": f"{i:03d}.png", "caption": "" if i == 9 else f"picture {i}"})
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    params = {
        "source": "folder", "path": str(source), "dataset": "faults", "image_size": 16, "shard_size": 8,
        "num_train": 0, "num_val": 8, "num_test": 8,
    }  # fmt: skip
    return command("download", tmp, params, repeats=8)


def large_download(tmp: Path) -> Command:
    """Two shards, of 12 and of 2 MB: six pictures of noise, 900 pixels wide."""
    import numpy as np

    from components.images import encode

    source = tmp / "photographs"
    source.mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (900, 900, 3), np.uint8)
        (source / f"{i}.png").write_bytes(encode(pixels, "png"))
    (source / "captions.jsonl").write_text(
        "\n".join(json.dumps({"image": f"{i}.png", "caption": f"picture {i}"}) for i in range(6))
    )
    params = {
        "source": "folder", "path": str(source), "dataset": "faults", "image_size": 900, "image_format": "png",
        "shard_size": 5, "num_train": 0, "num_val": 0, "num_test": 1,
    }  # fmt: skip
    made = command("download", tmp, params, repeats=5)
    return replace(made, varies=True)  # in how many pieces a part is sent, and which part first


def url_download(
    tmp: Path, web: str, *, addresses: int = 40, how: str = "ok", allow: tuple[str, ...] = ("127.0.0.0/8",)
) -> Command:
    """Addresses, in shards of 8; two are gone, the others answer as tests/web.py does at `how`."""
    path = tmp / "list.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["url", "caption"])
        writer.writerows([f"{web}/{404 if i in {3, 20} else how}/{i}", f"picture {i}"] for i in range(addresses))
    urls = {"timeout_s": 20.0, "retries": 2, "allow_networks": list(allow), "per_host": 8, "concurrency": 8}
    params = {
        "source": "urls", "path": str(path), "dataset": "web", "image_size": 16, "image_format": "jpg",
        "shard_size": 8, "num_train": 0, "num_val": 0, "num_test": 8, "urls": urls,
    }  # fmt: skip
    made = command("download", tmp, params, repeats=addresses)  # what was fetched ahead is lost with the process
    return replace(made, varies=True)


def fit(tmp: Path, images: str = "", *, shards: int = 6, per_shard: int = 4) -> Command:
    """24 pictures of 16 pixels in six shards, eight Gaussians each."""
    from picture_sets import commit_images, png_samples

    if not images:
        numbered = [("train" if i else "test", png_samples(i * per_shard, per_shard, 16, 16)) for i in range(shards)]
        images = commit_images(str(tmp / "inputs"), numbered).url
    params = {"num_gaussians": 8, "num_iters": 10, "threads": 1}
    return command("splat_fit", tmp, params, repeats=per_shard, images=images)


def trained_flow(tmp: Path) -> dict[str, Command]:
    """All stages after download, each reading what an undisturbed flow made in `tmp`/inputs."""
    from components.params import load_params

    store = str(tmp / "inputs")
    (tmp / "model.json").write_text(json.dumps(MODEL))
    sections: dict[str, dict[str, Any]] = {
        "download": {
            "source": "sample", "image_size": 16, "num_train": 24, "num_val": 8, "num_test": 8, "shard_size": 8,
        },
        "splat_fit": {"num_gaussians": 8, "num_iters": 10, "threads": 1},
        "train_teacher": {
            "model": str(tmp / "model.json"), "epochs": 4, "batch_size": 8, "warmup_steps": 1, "device": "cpu",
            "threads": 1, "checkpoint_steps": TRAINS["train_teacher"],
        },
        "train_adapter": {
            "stem_width": 16, "resampler_layers": 1, "stage1_token_epochs": 1, "stage1_cls_epochs": 1,
            "stage2_epochs": 1, "stage2_learning_rates": [0.001], "batch_size": 8, "warmup_steps": 1,
            "checkpoint_steps": TRAINS["train_adapter"], "device": "cpu", "threads": 1,
        },
        "zero_shot_eval": {"num_bootstrap": 50, "num_sheet": 2, "batch_size": 8, "device": "cpu", "threads": 1},
        "promote": {"model_name": "faults"},
    }  # fmt: skip
    found: dict[str, Command] = {}
    urls: dict[str, str] = {}
    names = {"images": "download", "teacher": "train_teacher", "splats": "splat_fit", "adapter": "train_adapter"}
    names["scores"] = "zero_shot_eval"
    import importlib

    from components import STAGES

    for name, stage in STAGES.items():
        inputs = {key: urls[names[key]] for key in stage.inputs}
        found[name] = command(name, tmp, sections[name], TRAINS.get(name, 0), **inputs)
        section = getattr(load_params(tmp / f"{name}.yaml"), name)
        if name != "promote":
            urls[name] = importlib.import_module(f"components.{name}.stage").run(section, **inputs, store=store).url
    return found
