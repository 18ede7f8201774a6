"""Lists of web addresses for tests: pictures to serve, tables that name them, how each row ended."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from components.config import DownloadParams
from components.manifest import open_artifact
from components.shards import read_shard
from components.store import open_store
from components.url_params import UrlParams

HERE = ("127.0.0.0/8",)


def jpeg(seed: int, size: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(stream, "JPEG")
    return stream.getvalue()


PICTURES = {str(number): jpeg(number) for number in range(40)}


def table(path: Path, urls: list[str], **columns: list[str]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["url", "caption", *columns])
        for row, url in enumerate(urls):
            writer.writerow([url, f"picture {row}", *(values[row] for values in columns.values())])
    return path


def params(path: Path, **urls: object) -> DownloadParams:
    fast = {"timeout_s": 1.5, "retries": 1, "allow_networks": HERE, "per_host": 32, **urls}
    return DownloadParams(
        source="urls", path=str(path), dataset="web", image_size=16, image_format="jpg", shard_size=10,
        num_train=0, num_val=0, num_test=2, max_bytes=1 << 20, urls=UrlParams(**fast),  # type: ignore[arg-type]
    )  # fmt: skip


def outcomes(url: str) -> dict[int, tuple[str, str]]:
    """By row: its outcome and reason."""
    found = open_artifact(url, open_store(url))
    by_row = {}
    for shard in found.manifest.shards:
        with found.local(shard) as path:
            by_row |= {int(sample.key): ("ok", "") for sample in read_shard(path)}
    for name in found.store.list("_done/"):
        entry = json.loads(found.store.get_bytes(name))
        by_row |= {int(note["key"]): (note["outcome"], note["reason"]) for note in entry["samples"]}
    return by_row
