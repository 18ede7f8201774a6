"""`splatclip evaluate`: what is found again, what fails, and the figures over all sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downloads import balls
from evaluation_sets import TINY, captions, several_classes
from pages import Page
from test_download_remote import served
from worlds import World, put_adapter

from components import evaluate
from components.__main__ import main
from components.class_scores import average_precision, average_precision_chance
from components.evalsets import SETS
from components.evaluate import exit_code
from components.manifest import Artifact, open_artifact
from components.store import open_store
from components.zero_shot_eval.page import report_html
from components.zero_shot_eval.page_scores import signed
from components.zero_shot_eval.predictions import read_predictions


def test_a_run_that_may_be_mended_by_trying_again_says_so() -> None:
    assert exit_code([]) == 0
    assert exit_code([{"exit_code": 42}, {"exit_code": 75}]) == 75
    assert exit_code([{"exit_code": 42}]) == 42


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sets in CLIP_benchmark's layout; the one called mnist is damaged."""
    folder = tmp_path_factory.mktemp("sets")
    balls(folder / "wds_vtab-cifar10")
    shutil.rmtree(folder / "wds_vtab-cifar10/train")
    shutil.copytree(folder / "wds_vtab-cifar10", folder / "vtab/pets")
    several_classes(folder / "wds_voc2007_multilabel")
    captions(folder / "wds_flickr8k")
    (folder / "wds_mnist/test").mkdir(parents=True)
    (folder / "wds_mnist/test/0.tar").write_bytes(b"not a tar")
    return folder


def words(world: World, root: Path, out: Path, *more: str) -> list[str]:
    given = ["--params", str(TINY), "--root", str(root), "--out", str(out), "--store", str(world.store)]
    refs = ["--teacher", world.teacher.url, "--adapter", world.adapter.url]
    return ["evaluate", *given, *refs, *more, "--set", "splat_fit.num_iters=5"]


ASKED = ("--sets", "cifar10", "mnist", "pets", "voc2007_multilabel", "flickr8k")


@pytest.fixture(scope="module")
def evaluated(world: World, root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of an evaluation of the sets in `root`, and its exit code."""
    out = tmp_path_factory.mktemp("out")
    return out, main(words(world, root, out, *ASKED))


def summary_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def test_a_set_that_fails_is_named_and_the_others_go_on(evaluated: tuple[Path, int]) -> None:
    out, code = evaluated
    summary = summary_of(out)
    assert code == 42
    assert [(one["set"], one["exit_code"]) for one in summary["failed"]] == [("mnist", 42)]
    assert "wds_mnist" in summary["failed"][0]["message"] or "0.tar" in summary["failed"][0]["message"]
    (budget,) = summary["budgets"]
    assert budget["num_gaussians"] == 12
    assert [one["set"] for one in budget["sets"]] == ["vtab/cifar10", "vtab/pets", "voc2007_multilabel", "flickr8k"]
    assert [next(iter(one["metrics"])) for one in budget["sets"]] == [
        *("acc1", "mean_per_class_recall", "mean_average_precision", "image_retrieval_recall@1")
    ]


def test_a_model_that_returns_nan_fails_each_set_by_itself(world: World, root: Path, tmp_path: Path) -> None:
    adapter = put_adapter(world.store, tmp_path, world.images, world.teacher, world.splats, diverged=True)
    given = words(world, root, tmp_path / "out", "--sets", "cifar10", "flickr8k", "--adapter", adapter.url)
    assert main(given) == 42
    summary = summary_of(tmp_path / "out")
    assert [(one["set"], one["exit_code"]) for one in summary["failed"]] == [("vtab/cifar10", 42), ("flickr8k", 42)]
    assert all(one["message"].startswith("row 'splats': its model returns") for one in summary["failed"])
    assert (summary["budgets"], summary["benchmark"]) == ([], [])


def test_a_run_that_is_killed_leaves_the_summary_of_the_sets_before(
    world: World, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: Any, **more: Any) -> Any:
        if given[2].name == "flickr8k":
            raise MemoryError
        return one(*given, **more)

    one = evaluate._one
    monkeypatch.setattr(evaluate, "_one", killed)
    with pytest.raises(MemoryError):
        main(words(world, root, tmp_path, "--sets", "cifar10", "flickr8k"))
    summary = summary_of(tmp_path)
    (budget,) = summary["budgets"]
    assert [found["set"] for found in budget["sets"]] == ["vtab/cifar10"]
    assert summary["asked"] == ["vtab/cifar10", "flickr8k"]
    assert sorted(path.name for path in (tmp_path / "benchmark").iterdir()) == [
        Path(name).name for name in summary["benchmark"]
    ]


def test_means_and_both_readings_of_the_relative_score(evaluated: tuple[Path, int]) -> None:
    (budget,) = summary_of(evaluated[0])["budgets"]
    of_classes = budget["means"]["classification"]
    assert of_classes["sets"] == 3
    mean = of_classes["metrics"]["score"]
    values = {
        row: [next(iter(one["metrics"].values()))["rows"][row]["value"] for one in budget["sets"][:3]]
        for row in ("teacher", "control", "rendered", "splats")
    }
    for row, each in values.items():
        assert mean["rows"][row]["value"] == pytest.approx(np.mean(each), abs=2e-6)
    found = mean["relative"]["splats"]["to_control"]
    of_means = np.mean(values["splats"]) / np.mean(values["control"])
    assert found["ratio_of_means"]["value"] == pytest.approx(of_means, abs=1e-5)
    ratios = [
        next(iter(one["metrics"].values()))["rows"]["splats"]["ratio"]["to_control"] for one in budget["sets"][:3]
    ]
    told = [one["value"] for one in ratios if one is not None]
    assert 0 < found["mean_of_ratios_sets"] == len(told) < 3, (
        "where the control cannot be told from 0 there is no ratio"
    )
    assert found["mean_of_ratios"]["value"] == pytest.approx(np.mean(told), abs=1e-5)
    for figure in (mean["rows"]["splats"], found["ratio_of_means"], found["mean_of_ratios"]):
        low, high = figure["interval"]
        assert low < figure["value"] < high
    widths = [np.ptp(next(iter(one["metrics"].values()))["rows"]["splats"]["interval"]) for one in budget["sets"][:3]]
    expected = np.sqrt(np.square(widths).sum()) / 3  # of a mean of independent figures
    assert np.ptp(mean["rows"]["splats"]["interval"]) == pytest.approx(expected, rel=0.35)
    same = mean["relative"]["teacher"]["to_control"]["mean_of_ratios"]
    assert same == {"value": 1.0, "interval": [1.0, 1.0]}, "the control of this world is the teacher"
    assert set(budget["means"]["retrieval"]["metrics"]) == set(SETS["flickr8k"].metrics)


def test_what_is_finished_is_found_again(
    world: World, root: Path, evaluated: tuple[Path, int], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = evaluated
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(words(world, root, out, *ASKED)) == 42
    shown = capsys.readouterr()
    assert shown.err.count("found, nothing to do") == 3 * 4
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert "4 sets, at most 12 Gaussians" in shown.out
    assert "failed: mnist" in shown.out
    assert "mean of the sets' ratios (" in " ".join(shown.out.split())
    table = [line for line in shown.out.splitlines() if "failed" not in line and "summary" not in line]
    assert max(map(len, table)) <= 118
    assert main(["show", str(out / "sets/vtab-cifar10")]) == 0
    assert "60 pictures of vtab/cifar10" in capsys.readouterr().out


def test_files_for_clip_benchmark(evaluated: tuple[Path, int]) -> None:
    out, _ = evaluated
    read = [json.loads(path.read_text()) for path in sorted((out / "benchmark").iterdir())]
    assert len(read) == 4 * 4
    assert len({(one["dataset"], one["model"], one["pretrained"]) for one in read}) == 16
    by_set = {one["dataset"]: one for one in read}
    assert set(by_set["voc2007_multilabel"]["metrics"]) == {"mean_average_precision"}
    assert by_set["voc2007_multilabel"]["task"] == "zeroshot_classification"
    assert set(by_set["vtab/cifar10"]["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
    assert by_set["flickr8k"]["task"] == "zeroshot_retrieval"


def test_several_numbers_of_gaussians(world: World, root: Path, tmp_path: Path) -> None:
    more = ("--sets", "cifar10", "--num-gaussians", "4", "6", "--limit", "10")
    assert main(words(world, root, tmp_path, *more)) == 0
    summary = summary_of(tmp_path)
    assert [one["num_gaussians"] for one in summary["budgets"]] == [4, 6]
    assert [one["sets"][0]["num_pictures"] for one in summary["budgets"]] == [10, 10]
    names = {path.name for path in (tmp_path / "benchmark").iterdir()}
    assert len(names) == 2 + 2 * 2
    assert main(words(world, root, tmp_path, "--sets", "cifar10", "--num-gaussians", "4", "--limit", "10")) == 0
    assert len(list((tmp_path / "benchmark").iterdir())) == 4, "those of the earlier summary are gone"


def test_what_does_not_belong_together_is_refused_first(
    world: World, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = words(world, root, tmp_path, "--sets", "cifar10", "--adapter", world.teacher.url)
    assert main(swapped) == 2
    assert "was made by train_teacher; give train_adapter's output" in capsys.readouterr().err
    assert main(words(world, root, tmp_path, "--sets", "imagnet1k")) == 2
    assert "did you mean 'imagenet1k'" in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()


def test_a_set_behind_http(world: World, root: Path, tmp_path: Path) -> None:
    """Found by nshards.txt, as on the hub; its bytes are those of the folder's, so nothing is scored again."""
    for name in ("wds_voc2007_multilabel", "wds_flickr8k"):
        (root / name / "test/nshards.txt").write_text("1\n")
    with served(root) as url:
        place = f"{url}/wds_{{dataset_cleaned}}"
        assert main(words(world, root, tmp_path, "--sets", "voc2007_multilabel", "flickr8k", "--root", place)) == 0
    (budget,) = summary_of(tmp_path)["budgets"]
    assert [one["task"] for one in budget["sets"]] == ["multilabel", "retrieval"]
    assert [one["num_pictures"] for one in budget["sets"]] == [12, 12]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
def test_each_set_is_a_run_of_its_own(
    world: World, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.runs import list_runs

    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    store = ("--store", str(tmp_path / "store"))
    shutil.copytree(world.store, tmp_path / "store")
    assert main(words(world, root, tmp_path / "out", "--sets", "cifar10", "mnist", "flickr8k", *store)) == 42
    runs = list_runs()
    assert sorted(run.status for run in runs) == ["FAILED", "FINISHED", "FINISHED"]
    scored = {metric for run in runs for metric in run.metrics if metric.endswith("_splats")}
    assert {"acc1_splats", "text_retrieval_recall_at_5_splats"} <= scored


def scored_by_labels(world: World, out: Path) -> tuple[Artifact, dict[str, Any]]:
    ref = out / "sets/voc2007_multilabel"
    scores = json.loads((ref / "scores.json").read_text())
    return open_artifact(str(ref / "manifests/zero_shot_eval.json"), open_store(str(world.store))), scores


def test_average_precision_of_a_multilabel_set(
    world: World, root: Path, evaluated: tuple[Path, int], tmp_path: Path
) -> None:
    out, _ = evaluated
    artifact, scores = scored_by_labels(world, out)
    seen = read_predictions((out / "sets/voc2007_multilabel/predictions.csv").read_bytes(), "here")
    assert seen.truth is not None
    assert (scores["task"], scores["num_pictures"], seen.truth.shape) == ("multilabel", 12, (12, 4))
    chance = average_precision_chance(seen.truth).mean()
    assert scores["chance"] == {"mean_average_precision": pytest.approx(chance, abs=1e-6)}
    for row in scores["rows"]:
        found = average_precision(seen.class_scores[row["name"]], seen.truth).mean()
        assert row["metrics"] == {"mean_average_precision": pytest.approx(found, abs=1e-5)}
        figure = row["figures"]["mean_average_precision"]
        assert figure["interval"][0] < figure["value"] < figure["interval"][1]
    lines = (out / "sets/voc2007_multilabel/per_class.csv").read_text().splitlines()
    assert lines[0].startswith("class,pictures,average_precision,average_precision_teacher")
    assert lines[4] == "grey,0,,,,"
    page = Page(report_html(artifact.url, str(world.store), tags={}))
    page.check()
    assert "mean average precision" in page.text
    assert next(name for name in page.tables if name.startswith("Average precision by class"))
    assert "none of the classes" in page.text
    more = ("--sets", "voc2007_multilabel", "--num-gaussians", "4")
    assert main(words(world, root, tmp_path, *more)) == 0
    other = tmp_path / "sets/voc2007_multilabel"
    both = Page(report_html(artifact.url, str(world.store), tags={}, against=str(other)))
    both.check()
    (row,) = [line for line in both.tables["mean average precision"] if line[0] == "splats"]
    against = json.loads((other / "scores.json").read_text())["rows"][-1]["metrics"]["mean_average_precision"]
    mine = scores["rows"][-1]["metrics"]["mean_average_precision"]
    assert row[3].startswith(signed(100 * (mine - against)))
    assert next(name for name in both.tables if name.startswith("Average precision by class"))
