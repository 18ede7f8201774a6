"""One run's figures, wherever they are shown: terminal, page, MLflow, DVC, model card, CLIP_benchmark's JSON."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from downloads import balls, flat

from components import FLOW

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Run:
    """A tracked run of the command. table: what it printed; scores: scores.json; uri: of its MLflow."""

    folder: Path
    table: str
    scores: dict[str, Any]
    uri: str

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.scores["rows"] if row["name"] == name)


def command(*words: str, cwd: Path, **environment: str) -> str:
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", **environment}
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=env, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked_run(folder: Path, download: dict[str, Any]) -> Run:
    params = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text(encoding="utf-8"))
    params["download"] |= {"source": "webdataset", **download}
    params["train_teacher"] |= {"epochs": 8, "learning_rate": 0.001}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    uri = f"sqlite:///{folder}/mlflow.db"
    words = ("splatclip", "run", "--params", "params.yaml", "--store", "runs/store", "--out", "out")
    table = command(*words, cwd=folder, SPLATCLIP_TRACKING="on", MLFLOW_TRACKING_URI=uri)
    scores = json.loads((folder / "out/scores.json").read_text(encoding="utf-8"))
    return Run(folder, table, scores, uri)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("numbers")
    return tracked_run(folder, {"path": str(balls(folder / "balls")), "dataset": "balls"})


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("captions")
    return tracked_run(folder, {"path": str(flat(folder / "pairs", [80])), "dataset": "pairs"})


# What people read has the digits of the table; what machines read has all of them.


def percent(figure: Mapping[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{100 * figure['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def ratio(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "undefined"
    return f"{figure['value']:.3f} [{figure['interval'][0]:.3f}, {figure['interval'][1]:.3f}]"


def cells(scores: Mapping[str, Any], metric: str) -> list[list[str]]:
    """The figures of each row, as people should read them."""
    found = []
    for row in scores["rows"]:
        figure = row["figures"][metric]
        kinds = (figure[kind] for kind in ("ratio", "chance_corrected_ratio"))
        ratios = ["1", "1"] if row["name"] == "control" else [ratio(kind["to_control"]) for kind in kinds]
        found.append([percent(figure), *ratios])
    return found


def facts(scores: Mapping[str, Any]) -> list[str]:
    sizes, splats = scores["bytes_per_picture"], scores["splats"]
    return [
        f"{splats['psnr_db_mean']:.2f} dB",
        f".gs2d {sizes['gs2d']:,.0f} | ",
        f"JPEG quality 90 {sizes['jpeg90']:,.0f} | raw RGB {sizes['raw']:,.0f}",
        f"{splats['compression']['paper']:.2f}x against raw RGB",
    ]


class Tables(HTMLParser):
    """The tables of a page, as rows of cells' texts, and all of its text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._in_cell = False
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in {"td", "th"} and self.tables:
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data


def printed(table: str) -> list[list[str]]:
    """The figures of each line of the terminal's table."""
    figure = r"-?\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\]"
    line = re.compile(rf".*?\s({figure})\s+({figure}|1|undefined)\s+({figure}|1|undefined)$")
    return [list(found.groups()) for found in map(line.match, table.splitlines()) if found]


def check_what_people_read(run: Run) -> None:
    page = Tables((run.folder / "out/report.html").read_bytes())
    card = next((run.folder / "runs/store/promote").glob("*/README-*.md")).read_text(encoding="utf-8")
    expected = [cells(run.scores, metric) for metric in run.scores["headline"]]
    assert printed(run.table) == [row for rows in expected for row in rows]
    for rows in expected:
        assert rows in [[row[1:] for row in table[1:]] for table in page.tables]
        for value, to_control, _ in rows:
            assert f"| {value} |" in card
            assert to_control in {"1", "undefined"} or f"| {to_control} |" in card
    for fact in facts(run.scores):
        assert fact in run.table
        assert fact in page.text
    assert f"PSNR {run.scores['splats']['psnr_db_mean']:.2f} dB" in card


def leaves(scores: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures that have a name of their own in `dvc metrics` and in MLflow, by it."""
    yield "num_pictures", scores["num_pictures"]
    yield "psnr_db_mean", scores["splats"]["psnr_db_mean"]
    yield "num_gaussians_mean", scores["splats"]["num_gaussians_mean"]
    yield from ((f"compression_{name}", value) for name, value in scores["splats"]["compression"].items())
    yield from ((f"bytes_{name}", value) for name, value in scores["bytes_per_picture"].items())
    yield from scores["trained"].items()
    for row in scores["rows"]:
        for metric in scores["headline"]:
            yield f"{metric}_{row['name']}", row["figures"][metric]["value"]
    for metric in scores["headline"]:
        figure = next(row for row in scores["rows"] if row["name"] == "splats")["figures"][metric]
        for kind in ("ratio", "chance_corrected_ratio"):
            found = figure[kind]["to_control"]
            if found is not None:
                name = f"{metric}_splats_{kind}_to_control"
                yield name, found["value"]
                yield f"{name}_low", found["interval"][0]
                yield f"{name}_high", found["interval"][1]


def parent_metrics(uri: str) -> dict[str, float]:
    code = (
        "import json, sys; from components.tracking_client import connect; client = connect(sys.argv[1]);"
        "ids = [one.experiment_id for one in client.search_experiments()];"
        "runs = client.search_runs(ids, \"tags.`splatclip.kind` = 'pipeline'\");"
        "print(json.dumps([dict(run.data.metrics) for run in runs]))"
    )
    runs = json.loads(command(sys.executable, "-c", code, uri, cwd=ROOT).splitlines()[-1])
    assert len(runs) == 1
    return dict(runs[0])


def check_mlflow(run: Run) -> None:
    metrics = parent_metrics(run.uri)
    expected = {name.replace("@", "_at_"): value for name, value in leaves(run.scores)}
    for row in run.scores["rows"]:
        for metric in run.scores["headline"]:
            name = f"{metric}_{row['name']}".replace("@", "_at_")
            expected[f"{name}_low"], expected[f"{name}_high"] = row["figures"][metric]["interval"]
    assert {name: metrics.get(name) for name in expected} == expected
    environment = {"MLFLOW_TRACKING_URI": run.uri, "COLUMNS": "200"}
    (told,) = json.loads(command("splatclip", "runs", "--json", cwd=run.folder, **environment))
    assert {name: told["metrics"].get(name) for name in expected} == expected
    listed = command("splatclip", "runs", cwd=run.folder, **environment)
    figure = run.row("splats")["figures"][run.scores["headline"][0]]
    assert percent(figure) in listed
    assert f" {run.scores['splats']['psnr_db_mean']:.2f} " in listed


def check_dvc(run: Run) -> None:
    """The command of DVC's own stage, on the run's store, then `dvc metrics show`."""
    shutil.copytree(ROOT / ".dvc", run.folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    shutil.copy(ROOT / "dvc.yaml", run.folder / "dvc.yaml")
    command("git", "init", "-q", cwd=run.folder)
    (run.folder / "runs/dvc").mkdir()
    for step in FLOW:
        shutil.copy(run.folder / f"out/manifests/{step.name}.json", run.folder / "runs/dvc")
    graph = yaml.safe_load((run.folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    command(*graph["zero_shot_eval"]["cmd"].split(), cwd=run.folder)
    shown = json.loads(command("dvc", "metrics", "show", "--json", cwd=run.folder))
    metrics = shown[""]["data"]["runs/dvc/zero_shot_eval.metrics.json"]["data"]
    assert metrics == dict(leaves(run.scores))
    files = run.folder / "runs/dvc/scores"
    assert json.loads((files / "scores.json").read_text(encoding="utf-8")) == run.scores
    assert (
        Tables((files / "report.html").read_bytes()).tables[0]
        == Tables((run.folder / "out/report.html").read_bytes()).tables[0]
    )


def check_benchmark(run: Run) -> None:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in (run.folder / "out/benchmark").iterdir()]
    assert len(results) == len(run.scores["rows"])
    for row in run.scores["rows"]:
        suffix = "" if row["name"] == "teacher" else f"+{row['name']}"
        one = next(result for result in results if result["pretrained"] == f"trained-here{suffix}")
        assert one["metrics"] == row["metrics"]
        assert (one["dataset"], one["task"]) == (run.scores["dataset"], f"zeroshot_{run.scores['task']}")
        assert all(row["figures"][metric]["value"] == one["metrics"][metric] for metric in row["figures"])


def test_the_run_is_one_whose_ratios_mean_something(run: Run) -> None:
    for name in ("teacher", "splats", "control_stage1"):
        assert run.row(name)["figures"]["acc1"]["chance_corrected_ratio"]["to_control"] is not None
    assert "undefined" not in run.table


def test_terminal_page_and_model_card_say_the_same(run: Run) -> None:
    check_what_people_read(run)


def test_counting_the_predictions_again_gives_the_same(run: Run) -> None:
    with (run.folder / "out/predictions.csv").open(encoding="utf-8", newline="") as stream:
        pictures = list(csv.DictReader(stream))
    assert len(pictures) == run.scores["num_pictures"]
    for row in run.scores["rows"]:
        hits = sum(picture["class"] == picture[f"class_{row['name']}"] for picture in pictures)
        assert row["figures"]["acc1"]["value"] == round(hits / len(pictures), 6)
    psnr = sum(float(picture["psnr_db"]) for picture in pictures) / len(pictures)
    assert run.scores["splats"]["psnr_db_mean"] == pytest.approx(psnr, abs=1e-4)


def test_showing_an_earlier_run_says_the_same(run: Run) -> None:
    assert command("splatclip", "show", "out", cwd=run.folder) == run.table


def test_mlflow_has_the_same_numbers_to_the_last_digit(run: Run) -> None:
    check_mlflow(run)


def test_dvc_has_the_same_numbers_to_the_last_digit(run: Run) -> None:
    check_dvc(run)


def test_clip_benchmarks_json_has_the_same_numbers(run: Run) -> None:
    check_benchmark(run)


@pytest.mark.full
def test_the_same_for_retrieval(retrieval: Run) -> None:
    assert len(retrieval.scores["headline"]) == 2
    check_what_people_read(retrieval)
    check_mlflow(retrieval)
    check_dvc(retrieval)
    check_benchmark(retrieval)
