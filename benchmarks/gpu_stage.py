"""The whole stage splat_fit over shards of JPEG files: read, decode, fit, pack, read each file back, commit."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pictures import Pixels
from records import Row

from components.config import SplatFitParams
from components.images import encode
from components.manifest import Commit
from components.shards import Sample, ShardIndex, write_shard
from components.splat_fit.stage import run
from components.store import open_store


def measured(images: Sequence[Pixels], number: int, num_iters: int, device: str, *, shards: int = 2) -> Row:
    """Pictures a second of one process, from shards in a folder to a committed output, after a shard that warms up.

    images: of one size; each shard holds them all. num_iters: of recipe `default`.
    """
    files = [encode(image, "jpg") for image in images]
    with tempfile.TemporaryDirectory(prefix="splatclip-stage-") as store:
        params = SplatFitParams(num_gaussians=number, num_iters=num_iters, device=device)
        run(replace(params, seed=1), images=committed(store, files[:16], 1), store=store)
        source = committed(store, files, shards)
        start = time.perf_counter()
        report = run(params, images=source, store=store)
        wall = time.perf_counter() - start
    count = report.manifest.counts["ok"]
    if count != len(files) * shards:
        raise RuntimeError(f"{count} of {len(files) * shards} pictures were fitted")
    return {"wall_s": wall, "images_per_s": count / wall, "psnr_db_mean": report.metrics["psnr_db_mean"]}


def committed(store: str, files: Sequence[bytes], shards: int) -> str:
    """An image set of so many shards, each of all files, as download commits them; its URL."""
    source = f"{shards} shards of {len(files)} files"
    commit = Commit(open_store(store), stage="download", version=1, params={}, inputs={}, source=source)
    entries = []
    for index in range(shards):
        samples = [
            Sample(key, {"jpg": data, "txt": b"a picture", "json": json.dumps({"key": key}).encode()})
            for key, data in ((f"{index:02d}{number:06d}", data) for number, data in enumerate(files))
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.tar"
            side = {".idx": ShardIndex.of(write_shard(path, samples)).to_bytes()}
            entries.append(commit.put_shard(path, index=index, split="train", ok=len(samples), side_files=side))
    return commit.finalise(shards=entries, files=[], metrics={}).url
