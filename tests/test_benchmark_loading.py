"""benchmarks/loading.py: it makes shards, reads them in every way, and reports what it measured."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.images import encode
from components.shards import Sample, write_shard

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import loading
import loading_readers
from records import Journal


@pytest.fixture
def own_core() -> Iterator[None]:
    """The script binds the process to one core."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


def picture(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_measures_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_core: None) -> None:
    images, originals = tmp_path / "images", tmp_path / "originals"
    images.mkdir()
    originals.mkdir()
    write_shard(
        images / "00000.tar",
        [Sample(f"k{i}", {"jpg": encode(picture(i, 16), "jpg"), "txt": b"words"}) for i in range(11)],
    )
    Image.fromarray(picture(0, 40)).save(originals / "a.png")
    arguments = ["loading.py", "--images", str(images), "--originals", str(originals), "--size", "16", "--repeats", "2"]
    arguments += ["--num-gaussians", "5", "9", "--shard-size", "4", "--batch-size", "3", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "out")])
    loading.main()
    rows = json.loads((tmp_path / "out.json").read_text())
    measured = [row for row in rows if row["key"].get("where") in {"disk", "s3"}]
    assert len(measured) == 2 * ((2 + 3 * 2 + 2) + (2 + 3))
    assert all(row["num_samples"] == 10 and row["cpu_us"] > 0 and row["passes"] == 1 for row in measured)
    (sizes,) = [row["sizes"] for row in rows if row["key"] == {"kind": "bytes"}]
    assert sizes["raw RGB"]["file"] == 16 * 16 * 3
    assert sizes["splats, N = 9"]["file"] == 24 + 16 * 9
    assert sizes["splats, N = 9"]["tar"] > 512 * 4
    text = (tmp_path / "out.md").read_text()
    for part in ("hardware", "commit", "command", "webdataset 1.", "## From disk", "## From an S3 server", "40 x 40"):
        assert part in text
    before = (tmp_path / "out.json").read_text()
    loading.main()  # goes on: nothing is left to do
    assert (tmp_path / "out.json").read_text() == before


def test_ratios_are_medians_over_the_repeats() -> None:
    journal = Journal(None, {})

    def add(repeat: int, microseconds: float, **key: Any) -> None:
        times = {"cpu_us": microseconds, "wall_us": 2 * microseconds}
        journal.once({"where": "disk", **key, "repeat": repeat}, lambda: times)

    splats = {"reader": "splatclip", "form": "float32", "N": 400}
    for repeat, slow in enumerate((1.0, 3.0, 1.1)):
        add(repeat, 600 * slow, **loading.BASE)
        add(repeat, (20 if repeat else 15) * slow, **splats)
    add(0, 60, **splats | {"first": True})
    add(0, 30, **splats | {"shuffled": True})
    text = loading.markdown(journal)
    assert "| our loader, splats, N = 400 | 22.0 | 44.0 | 30.0 (paper 31.33: missed) |" in text
    assert "| our loader, splats, N = 400, shuffled | 30.0 | 60.0 | 20.0 (paper 31.33: missed) |" in text
    assert "| our loader, splats, N = 400, first pass | 60.0 | 120.0 | 10.0 (paper 31.33: missed) |" in text


def test_a_pass_that_lacks_samples_is_refused() -> None:
    with pytest.raises(RuntimeError, match="7 samples instead of 8"):
        loading_readers.timed(lambda: 7, 8, 0.0)
    calls: list[int] = []
    row = loading_readers.timed(lambda: 8, 8, 0.0, lambda: calls.append(1))
    assert row["passes"] == 1
    assert len(calls) == 2  # ahead of the pass that is not counted, too
