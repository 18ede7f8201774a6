"""Small sets of image shards for the tests of later stages, committed as download commits them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from components.images import encode
from components.manifest import Artifact, Commit, open_artifact
from components.shards import Sample, ShardIndex, write_shard
from components.store import open_store

CLASSES = ("disc", "stripes", "ramp")


def committed(url: str, name: str) -> bytes:
    """A file of a finished output, by the name that it is asked for by."""
    with open_artifact(url, open_store(url)).local(name) as path:
        return path.read_bytes()


def picture(seed: int, height: int = 24, width: int = 24) -> np.ndarray:
    """A smooth coloured scene with one edge: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base, slope = rng.uniform(40, 160, 3), rng.uniform(-2, 2, (2, 3))
    out = base + x[..., None] * slope[0] + y[..., None] * slope[1]
    cx, cy, r = rng.uniform(0.3, 0.7) * width, rng.uniform(0.3, 0.7) * height, rng.uniform(0.15, 0.35) * width
    out[np.hypot(x - cx, y - cy) < r] += rng.uniform(-90, 90, 3)
    return np.clip(out, 0, 255).astype(np.uint8)


def sample(key: str, data: bytes, ext: str = "png", label: int = 0, **about: object) -> Sample:
    """A sample as download writes it, with a caption, a class and json."""
    text = f"a picture of a {CLASSES[label]}"
    json_bytes = json.dumps({"key": key, "caption": text, "class": label, **about}).encode()
    return Sample(key, {ext: data, "txt": text.encode(), "json": json_bytes, "cls": str(label).encode()})


def png_samples(first: int, count: int, height: int = 24, width: int = 24) -> list[Sample]:
    """Samples of numbered pictures."""
    numbers = range(first, first + count)
    return [sample(f"{i:06d}", encode(picture(i, height, width), "png"), label=i % 3) for i in numbers]


def commit_images(
    store: str, shards: Sequence[tuple[str, Sequence[Sample]]], source: str = "test", stage: str = "download"
) -> Artifact:
    """Commit (split, samples) shards as an output of download, or of another stage by name; returns it."""
    commit = Commit(open_store(store), stage=stage, version=1, params={}, inputs={}, source=source)
    entries = []
    for index, (split, samples) in enumerate(shards):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.tar"
            layout = write_shard(path, samples)
            side = {".idx": ShardIndex.of(layout).to_bytes()}
            entries.append(commit.put_shard(path, index=index, split=split, ok=len(samples), side_files=side))
    metrics: Mapping[str, object] = {"num_classes": len(CLASSES), "image_size": 24, "dataset": "test"}
    return commit.finalise(shards=entries, files=[], metrics=metrics)
