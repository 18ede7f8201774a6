"""What the tests of the download stage share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.config import DownloadParams
from components.download import stage
from components.images import decode_rgb, encode
from components.manifest import SampleNote, open_artifact
from components.report import Report
from components.shards import Sample, read_shard, write_shard
from components.store import open_store

TINY: dict[str, Any] = {"image_size": 16, "shard_size": 8, "num_train": 20, "num_val": 5, "num_test": 9}


def photo(seed: int, height: int = 20, width: int = 26) -> np.ndarray:
    low = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC))


def download(store: Path | str, **params: Any) -> Report:
    return stage.run(DownloadParams(**(TINY | params)), store=str(store))


def samples(report: Report, split: str | None = None) -> list[Sample]:
    artifact = open_artifact(report.url, open_store("."))
    found = []
    for shard in artifact.manifest.split(split) if split else artifact.manifest.shards:
        with artifact.local(shard) as path:
            found += list(read_shard(path))
    return found


def notes(report: Report) -> dict[str, SampleNote]:
    """Every sample that is not ok, by key, as the entries name them."""
    place = open_store(report.url)
    entries = [json.loads(place.get_bytes(name)) for name in place.list("_done/")]
    return {note["key"]: SampleNote(**note) for entry in entries for note in entry["samples"]}


def numbers(report: Report) -> dict[str, int]:
    return {split: sum(s.ok for s in report.manifest.split(split)) for split in report.manifest.splits()}


def image_of(sample: Sample) -> np.ndarray:
    return decode_rgb(next(data for ext, data in sample.fields.items() if ext in {"jpg", "png", "webp"}))


def classified(folder: Path, numbers_: dict[str, list[int]], repeat: bool = False) -> Path:
    """CLIP_benchmark's layout; with repeat every tar counts its keys from 0, as some writers do."""
    label = 0
    for split, sizes in numbers_.items():
        (folder / split).mkdir(parents=True)
        (folder / split / "nshards.txt").write_text(str(len(sizes)))
        first = 0
        for number, size in enumerate(sizes):
            rows = []
            for i in range(size):
                key = f"s{i if repeat else first + i:07d}"
                rows.append(Sample(key, {"cls": str(label % 3).encode(), "jpg": encode(photo(label, 16, 16), "jpg")}))
                label += 1
            first += size
            write_shard(folder / split / f"{number}.tar", rows)
    (folder / "classnames.txt").write_text("cat\ndog\nowl\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}.\n")
    return folder


def flat(folder: Path, sizes: list[int]) -> Path:
    folder.mkdir(parents=True)
    count = 0
    for number, size in enumerate(sizes):
        rows = []
        for _ in range(size):
            text = {"caption": f"one of {count}", "captions": [f"one of {count}", f"two of {count}"]}
            fields = {
                "jpg": encode(photo(count), "jpg"),
                "txt": f"one of {count}".encode(),
                "json": json.dumps(text).encode(),
            }
            rows.append(Sample(f"{count:06d}", fields))
            count += 1
        write_shard(folder / f"{number:05d}.tar", rows)
    return folder


def balls(folder: Path) -> Path:
    """Pictures whose class is a colour, in CLIP_benchmark's layout: learnt in seconds, so that ratios are defined."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 120), ("test", 60)):
        rows = []
        for i in range(count):
            pixels = rng.integers(60, 130, (32, 32, 3), dtype=np.uint8)
            x, y = rng.integers(4, 14, 2)
            pixels[y : y + 14, x : x + 14, i % 3] += 110
            rows.append(Sample(f"{split}{i:04d}", {"png": encode(pixels, "png"), "cls": str(i % 3).encode()}))
        (folder / split).mkdir(parents=True)
        write_shard(folder / split / "0.tar", rows)
    (folder / "classnames.txt").write_text("red ball\ngreen ball\nblue ball\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}.\n")
    return folder
