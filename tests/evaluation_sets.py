"""Small sets as CLIP_benchmark writes them: of several classes a picture, and of captions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT
from downloads import photo

from components.images import encode
from components.shards import Sample, write_shard

TINY = ROOT / "tests/tiny.yaml"


def npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def several_classes(folder: Path, count: int = 12) -> Path:
    """A multilabel set as CLIP_benchmark writes one: .npy of zeros and ones."""
    (folder / "test").mkdir(parents=True)
    rng = np.random.default_rng(0)
    marks = (rng.random((count, 4)) < 0.4).astype(np.float32)
    marks[0], marks[:, 3] = 0, 0  # a picture without a class, and a class without pictures
    rows = [
        Sample(f"s{i:07d}", {"png": encode(photo(i, 32, 32), "png"), "npy": npy(mark)}) for i, mark in enumerate(marks)
    ]
    write_shard(folder / "test/0.tar", rows)
    (folder / "classnames.txt").write_text("red\ngreen\nblue\ngrey\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} thing.\n")
    (folder / "dataset_type.txt").write_text("multilabel\n")
    return folder


def captions(folder: Path, count: int = 12) -> Path:
    """A retrieval set as CLIP_benchmark writes one: a caption a line, one of them twice."""
    (folder / "test").mkdir(parents=True)
    texts = ["\n".join([f"one of {i}", *([f"two of {i}", f"one of {i}"] if i % 2 else [])]) for i in range(count)]
    rows = [
        Sample(f"s{i:07d}", {"png": encode(photo(i, 32, 32), "png"), "txt": text.encode()})
        for i, text in enumerate(texts)
    ]
    write_shard(folder / "test/0.tar", rows)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder
