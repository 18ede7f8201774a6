"""CLIP_benchmark itself reads what the evaluation writes, and agrees with its figures.

It pins what this project does not want (transformers, pycocoevalcap), so it gets an environment of its own.
"""

from __future__ import annotations

import csv
import json
import math
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import ROOT
from worlds import World, make_world

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
from clip_benchmark.metrics.zeroshot_classification import accuracy, average_precision_per_class
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
from sklearn.metrics import balanced_accuracy_score

given = json.load(sys.stdin)
logits, classes = torch.tensor(given["logits"]), torch.tensor(given["classes"])
acc1, acc5 = accuracy(logits, classes, topk=(1, 5))
found = {"acc1": acc1, "acc5": acc5, "mean_per_class_recall": balanced_accuracy_score(classes, logits.argmax(1))}
scores, truth = torch.tensor(given["scores"]), torch.tensor(given["truth"])
found["mean_average_precision"] = average_precision_per_class(scores, truth).mean().item()
similar, owners = torch.tensor(given["similarity"]), torch.tensor(given["owners"])
positive = torch.zeros_like(similar, dtype=bool)
positive[torch.arange(len(owners)), owners] = True
for k in (1, 5):
    found[f"image_retrieval_recall@{k}"] = (recall_at_k(similar, positive, k) > 0).float().mean().item()
    found[f"text_retrieval_recall@{k}"] = (recall_at_k(similar.T, positive.T, k) > 0).float().mean().item()
print(json.dumps(found))
"""

# its own loader of the layout, its own evaluation, our teacher's weights; pictures are of the teacher's size already
EVALUATED = """
import json, sys
import numpy as np, torch
from components.openclip import import_open_clip, load_teacher, normalize_images
import_open_clip()
from clip_benchmark.datasets.builder import build_wds_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from components.manifest import open_artifact
from components.store import open_store

given = json.load(sys.stdin)
teacher = load_teacher(open_artifact(given["teacher"], open_store(given["store"])))

def transform(picture):
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return normalize_images(pixels[None], teacher.mean, teacher.std)[0]

found = {}
for name, folder in given["sets"].items():
    dataset = build_wds_dataset(name, transform, "test", folder)
    loader = torch.utils.data.DataLoader(dataset.batched(256), batch_size=None, shuffle=False)
    if dataset.classes is None:
        ks = {"recall_k_list": [1, 5]}
        found[name] = zeroshot_retrieval.evaluate(teacher.model, loader, teacher.tokenizer, "cpu", amp=False, **ks)
    else:
        texts = (dataset.classes, dataset.templates)
        found[name] = zeroshot_classification.evaluate(
            teacher.model, loader, teacher.tokenizer, *texts, "cpu", amp=False)
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
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "base.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet", "--no-compile"]
    pip += ["--disable-pip-version-check"]
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

    from components.zero_shot_eval.rows import classification_row, multilabel_row, retrieval_row

    rng = np.random.default_rng(0)
    logits, classes = rng.normal(size=(200, 7)).astype(np.float32), rng.integers(0, 7, 200)
    logits[np.arange(200), classes] += 1
    owners = np.sort(np.concatenate([np.arange(40), rng.integers(0, 40, 50)]))
    similarity = rng.normal(size=(90, 40)).astype(np.float32)
    similarity[np.arange(90), owners] += 1
    truth = rng.random((500, 20)) < 0.1
    truth[:, 7] = False
    scores = (rng.normal(size=truth.shape) + 2 * truth).astype(np.float32)
    given = {
        "scores": scores.tolist(),
        "truth": truth.tolist(),
        "logits": logits.tolist(),
        "classes": classes.tolist(),
        "similarity": similarity.tolist(),
        "owners": owners.tolist(),
    }
    theirs = json.loads(ask(clip_benchmark, COUNTED, given=given).splitlines()[-1])
    ours = classification_row("splats", "", logits, classes).metrics
    ours |= retrieval_row("splats", "", similarity, owners).metrics
    ours |= multilabel_row("splats", "", scores, truth).metrics
    assert theirs == pytest.approx(ours, abs=1e-6)


def teacher_of(cifar: Path, folder: Path) -> World:
    """A small teacher trained on a few of these pictures, and a reader of their splats that has seen nothing."""
    from worlds import MODEL, put_adapter

    from components.config import DownloadParams, SplatFitParams, TrainTeacherParams
    from components.download.stage import run as download
    from components.manifest import open_artifact
    from components.splat_fit.stage import run as fit
    from components.train_teacher.stage import run as train

    place = str(folder / "store")
    (folder / "model.json").write_text(json.dumps(MODEL), encoding="utf-8")
    section = DownloadParams(
        source="webdataset", path=str(cifar), dataset="training", image_size=32, num_train=2000, num_val=60, num_test=60
    )
    images = download(section, store=place).url
    training = TrainTeacherParams(
        model=str(folder / "model.json"), epochs=4, batch_size=32, warmup_steps=5, device="cpu", threads=1
    )
    teacher = train(training, images=images, store=place).url
    splats = fit(SplatFitParams(num_gaussians=4, num_iters=1, threads=1), images=images, store=place).url
    made = [open_artifact(url, open_store(place)) for url in (images, teacher, splats)]
    return World(folder / "store", *made, put_adapter(folder / "store", folder, *made), {}, {})


def linked(source: Path, target: Path) -> None:
    """`source`'s folders made anew with links to its files: what is added to `target` does not come into `source`."""
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, dict[str, str], Path]:
    """A teacher, the folders of three sets of three kinds, and what `splatclip evaluate` made of them.

    CIFAR-10 is the real one where its pictures are at hand, all 10,000 of the test split.
    """
    from downloads import balls
    from evaluation_sets import captions, several_classes

    from components.__main__ import main

    folder = tmp_path_factory.mktemp("evaluated")
    real = Path(os.environ.get("SPLATCLIP_TEST_DATA", ROOT.parent / "shared" / "data")) / "cifar10"
    cifar = real if real.is_dir() else balls(folder / "balls")
    world = teacher_of(cifar, folder)
    root = folder / "sets"
    root.mkdir()
    linked(cifar, root / "cifar10")
    several_classes(root / "voc2007_multilabel")
    captions(root / "flickr8k")
    folders = {"vtab/cifar10": "cifar10", "voc2007_multilabel": "voc2007_multilabel", "flickr8k": "flickr8k"}
    sets = {name: str(root / place) for name, place in folders.items()}
    for one in sets.values():
        if not (Path(one) / "test/nshards.txt").exists():
            (Path(one) / "test/nshards.txt").write_text("1\n", encoding="utf-8")
    given = ["--params", str(ROOT / "tests/tiny.yaml"), "--store", str(world.store), "--root", str(root)]
    refs = ["--teacher", world.teacher.url, "--adapter", world.adapter.url, "--out", str(folder / "out")]
    changes = ["--set", "splat_fit.num_iters=1", "--set", "splat_fit.num_gaussians=4"]
    assert main(["evaluate", *given, *refs, *changes, "--sets", *sets]) == 0
    return world, sets, folder / "out"


@pytest.mark.full
def test_its_own_evaluation_gives_our_figures(
    clip_benchmark: Path, evaluated: tuple[World, dict[str, str], Path]
) -> None:
    """The same pictures and the same teacher: top-1, top-5, mean per-class recall, average precision, recall@k."""
    world, sets, out = evaluated
    given = {"teacher": world.teacher.url, "store": str(world.store), "sets": sets}
    theirs = json.loads(ask(clip_benchmark, EVALUATED, given=given).splitlines()[-1])
    for name, metrics in theirs.items():
        ours = json.loads((out / "benchmark" / f"{name.replace('/', '-')}_teacher.json").read_text(encoding="utf-8"))
        assert (ours["dataset"], ours["metrics"].keys()) == (name, metrics.keys())
        if name == "vtab/cifar10" and "balls" in str(
            (Path(sets[name]) / "classnames.txt").resolve()
        ):  # three classes: it has no top-5, ours is of all
            assert ours["metrics"].pop("acc5") == 1.0
            assert math.isnan(metrics.pop("acc5"))
        assert ours["metrics"] == pytest.approx(metrics, abs=1e-6)
    assert theirs["vtab/cifar10"]["acc1"] > 0.2, "better than guessing, so that classes are told apart"


@pytest.mark.full
def test_build_reads_the_summary_of_many_sets(
    clip_benchmark: Path, evaluated: tuple[World, dict[str, str], Path], tmp_path: Path
) -> None:
    _, sets, out = evaluated
    ask(clip_benchmark, PROGRAM, "build", str(out / "benchmark"), "--output", str(tmp_path / "benchmark.csv"))
    with (tmp_path / "benchmark.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * len(sets)
    for path in (out / "benchmark").iterdir():
        one = json.loads(path.read_text(encoding="utf-8"))
        name = f"{one['model']} {one['pretrained']}"
        (row,) = [row for row in rows if (row["dataset"], row["model_fullname"]) == (one["dataset"], name)]
        assert {metric: float(row[metric]) for metric in one["metrics"]} == one["metrics"]
