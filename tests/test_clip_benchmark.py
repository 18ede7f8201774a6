"""CLIP_benchmark itself reads what the evaluation writes, and agrees with its figures.

It pins what this project does not want (transformers, pycocoevalcap), so it gets an environment of its own.
"""

from __future__ import annotations

import csv
import json
import os
import site
import subprocess
import venv
from pathlib import Path

import pytest
from conftest import ROOT
from worlds import make_world

from components.store import open_store

VERSION = "1.6.2"
FIELDS = {"dataset", "model", "pretrained", "task", "metrics", "language"}  # of its own `eval`
METRICS = {
    "zeroshot_classification": {"acc1", "acc5", "mean_per_class_recall"},
    "zeroshot_retrieval": {f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5)},
}
# torchvision has to be imported through components.openclip, which mends it on CPU builds of torch
PROGRAM = """
import sys
from components.openclip import import_open_clip
import_open_clip()
from clip_benchmark.cli import main
sys.argv[0] = "clip_benchmark"
main()
"""
COUNTED = """
import json, sys
import torch
from components.openclip import import_open_clip
import_open_clip()
from clip_benchmark.metrics.zeroshot_classification import accuracy
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
from sklearn.metrics import balanced_accuracy_score

given = json.load(sys.stdin)
logits, classes = torch.tensor(given["logits"]), torch.tensor(given["classes"])
acc1, acc5 = accuracy(logits, classes, topk=(1, 5))
found = {"acc1": acc1, "acc5": acc5, "mean_per_class_recall": balanced_accuracy_score(classes, logits.argmax(1))}
similar, owners = torch.tensor(given["similarity"]), torch.tensor(given["owners"])
positive = torch.zeros_like(similar, dtype=bool)
positive[torch.arange(len(owners)), owners] = True
for k in (1, 5):
    found[f"image_retrieval_recall@{k}"] = (recall_at_k(similar, positive, k) > 0).float().mean().item()
    found[f"text_retrieval_recall@{k}"] = (recall_at_k(similar.T, positive.T, k) > 0).float().mean().item()
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=["zeroshot_classification", "zeroshot_retrieval"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The task, and a folder with an evaluation's benchmark/*.json."""
    folder = tmp_path_factory.mktemp("world")
    world = make_world(folder, captions=request.param == "zeroshot_retrieval")
    place = open_store(world.run().url)
    (folder / "benchmark").mkdir()
    for name in place.list("benchmark/"):
        (folder / name).write_bytes(place.get_bytes(name))
    return request.param, folder / "benchmark"


def test_each_row_is_a_result_as_clip_benchmark_writes_them(results: tuple[str, Path]) -> None:
    task, folder = results
    read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.iterdir())]
    assert len(read) == len({f"{one['model']} {one['pretrained']}" for one in read}) == 4, "rows can be told apart"
    for one in read:
        assert set(one) >= FIELDS
        assert (one["task"], one["dataset"], one["language"]) == (task, "balls", "en")
        assert set(one["metrics"]) == METRICS[task]
        assert all(isinstance(value, float) and 0 <= value <= 1 for value in one["metrics"].values())


@pytest.fixture(scope="session")
def clip_benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has it, and all that this one has."""
    folder = tmp_path_factory.mktemp("clip_benchmark")
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "base.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", str(ROOT / "requirements.lock"), f"clip_benchmark=={VERSION}"], check=True)
    # its accuracy() makes a float of an array with one element, which NumPy refuses from 2.4 on
    subprocess.run([*pip, "--ignore-installed", "--no-deps", "numpy>=2.2,<2.4"], check=True)
    return folder / "bin/python"


def ask(python: Path, program: str, *words: str, given: object = None) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(python), "-c", program, *words],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=env,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.full
def test_build_reads_ours(clip_benchmark: Path, results: tuple[str, Path], tmp_path: Path) -> None:
    task, folder = results
    table = tmp_path / "benchmark.csv"
    ask(clip_benchmark, PROGRAM, "build", str(folder), "--output", str(table))
    with table.open(encoding="utf-8", newline="") as stream:
        rows = {row["model_fullname"]: row for row in csv.DictReader(stream)}
    read = [json.loads(path.read_text(encoding="utf-8")) for path in folder.iterdir()]
    assert len(rows) == len(read) == 4
    for one in read:
        row = rows[f"{one['model']} {one['pretrained']}"]
        assert {name: float(row[name]) for name in METRICS[task]} == one["metrics"]
        assert (row["dataset"], row["task"], row["language"]) == (one["dataset"], task, "en")


@pytest.mark.full
def test_its_figures_are_ours(clip_benchmark: Path) -> None:
    """The same logits and similarities, counted by both."""
    import numpy as np

    from components.zero_shot_eval.rows import classification_row, retrieval_row

    rng = np.random.default_rng(0)
    logits, classes = rng.normal(size=(200, 7)).astype(np.float32), rng.integers(0, 7, 200)
    logits[np.arange(200), classes] += 1
    owners = np.sort(np.concatenate([np.arange(40), rng.integers(0, 40, 50)]))
    similarity = rng.normal(size=(90, 40)).astype(np.float32)
    similarity[np.arange(90), owners] += 1
    given = {
        "logits": logits.tolist(),
        "classes": classes.tolist(),
        "similarity": similarity.tolist(),
        "owners": owners.tolist(),
    }
    theirs = json.loads(ask(clip_benchmark, COUNTED, given=given).splitlines()[-1])
    ours = classification_row("splats", "", logits, classes).metrics
    ours |= retrieval_row("splats", "", similarity, owners).metrics
    assert theirs == pytest.approx(ours, abs=1e-6)
