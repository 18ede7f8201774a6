"""A small real flow up to train_adapter: pictures, splats fitted to them, a teacher of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from components.config import DownloadParams, SplatFitParams, TrainAdapterParams
from components.download.stage import run as download
from components.manifest import Commit, open_artifact
from components.openclip import build, model_config, preprocess_stats
from components.splat_fit.stage import run as splat_fit
from components.store import open_store

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PARAMS = TrainAdapterParams(
    stem_width=32,
    resampler_layers=1,
    stage1_token_epochs=2,
    stage1_cls_epochs=1,
    stage2_epochs=2,
    stage2_learning_rates=(1e-3, 1e-2),
    batch_size=16,
    warmup_steps=2,
    checkpoint_steps=3,
    control_with_stage1=True,
    device="cpu",
    threads=1,
)


def put_teacher(store: str, folder: Path, images: str = "") -> str:
    """A teacher artifact with random weights; images: of which it says that it was trained on them."""
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    clip = build(str(folder / "tiny.json"), "")
    mean, std = preprocess_stats(clip)
    more = {"model": "tiny", "pretrained": "", "trained_here": True, "class_names": [], "mean": mean, "std": std}
    inputs = {"images": open_artifact(images, open_store(store))} if images else {}
    commit = Commit(open_store(store), stage="train_teacher", version=1, params={}, inputs=inputs)
    save_file(clip.state_dict(), folder / "model.safetensors")
    config = json.dumps({**model_config(str(folder / "tiny.json")), **more}).encode()
    files = [commit.put_file("config.json", config), commit.put_file("model.safetensors", folder / "model.safetensors")]
    return commit.finalise(shards=[], files=files, metrics={}).url


def make_flow(folder: Path) -> dict[str, str]:
    """train_adapter's inputs by name: 50 pictures in train, 20 in val, 4 in test."""
    store = str(folder / "store")
    images = download(
        DownloadParams(image_size=16, num_train=50, num_val=20, num_test=4, shard_size=25), store=store
    ).url
    splats = splat_fit(SplatFitParams(num_gaussians=8, num_iters=15, threads=1), images=images, store=store).url
    return {"images": images, "teacher": put_teacher(store, folder), "splats": splats, "store": store}
