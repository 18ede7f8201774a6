"""`splatclip runs`: the table, one run, the difference of two, and what it says when there is no such run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components import FLOW, tracking
from components.config import DownloadParams
from components.errors import TransientError, UsageError
from components.operations import TrackingParams
from components.runner import run_step
from components.runs import RecordedRun, compare, find_run, list_runs, print_runs

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
STEPS = {step.name: step for step in FLOW}
SMALL = DownloadParams(image_size=16, num_train=8, num_val=0, num_test=4, shard_size=16)
RUN = RecordedRun(
    id="0123456789",
    name="1234567-aaaaaaa-20260101T000000Z",
    started="2026-01-01T00:00:00+00:00",
    status="FINISHED",
    experiment="splatclip/dev/train-eval",
    params={"splat_fit.num_gaussians": "400", "splat_fit.seed": "0", "train_adapter.stem": "paper"},
    metrics={
        "acc1_splats": 0.5,
        "acc1_splats_low": 0.4,
        "acc1_splats_high": 0.6,
        "acc1_splats_ratio_to_control": 0.8,
        "acc1_splats_ratio_to_control_low": 0.7,
        "acc1_splats_ratio_to_control_high": 0.9,
        "bytes_gs2d": 6400.0,
        "psnr_db_mean": 30.0,
        "seconds": 100.0,
        "zero": 0.0,
    },
    tags={"data.hash": "aaaaaaaaaa", "params.hash": "bbbbbbbbbb", "git.dirty": "false", "splatclip.run_id": "x"},
)


def other(**metrics: float) -> RecordedRun:
    return replace(RUN, id="0129", name="1239999-aaaaaaa-20260102T000000Z", metrics={**RUN.metrics, **metrics})


def test_what_differs_and_by_how_much() -> None:
    params = {name: value for name, value in RUN.params.items() if "stem" not in name}
    against = replace(
        other(acc1_splats=0.4, acc1_splats_low=0.3, acc1_splats_high=0.5, seconds=80.0, zero=2.0),
        params={**params, "splat_fit.num_gaussians": "900"},
        tags={**RUN.tags, "git.dirty": "true", "splatclip.run_id": "y"},
    )
    found = compare(RUN, against)
    assert found["params"] == {"splat_fit.num_gaussians": ["400", "900"], "train_adapter.stem": ["paper", None]}
    assert found["tags"] == {"git.dirty": ["false", "true"]}
    assert set(found["metrics"]) == {"acc1_splats", "seconds", "zero"}
    assert found["metrics"]["seconds"] == {"run": 100.0, "against": 80.0, "difference": 20.0, "percent": 25.0}
    assert found["metrics"]["acc1_splats"]["overlap"] is True
    assert found["metrics"]["acc1_splats"]["percent"] == pytest.approx(25.0)
    assert compare(against, RUN)["metrics"]["zero"]["percent"] is None
    apart = compare(RUN, other(acc1_splats=0.2, acc1_splats_low=0.1, acc1_splats_high=0.39))
    assert apart["metrics"]["acc1_splats"]["overlap"] is False
    assert compare(RUN, RUN)["metrics"] == {}


def test_a_run_is_found_by_name_id_or_beginning() -> None:
    runs = [other(), RUN]
    assert find_run(runs, None) is runs[0]
    assert find_run(runs, RUN.name) is find_run(runs, "1234") is find_run(runs, "01234") is RUN
    for wanted, message in (("12", "2 runs begin with"), ("1234567-aaaaaaa-2026O", "did you mean"), ("x", "is called")):
        with pytest.raises(UsageError, match=message):
            find_run(runs, wanted)
    with pytest.raises(UsageError, match="no run is recorded yet"):
        find_run([], None)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with two real runs of one step in its default database."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SPLATCLIP_TRACKING", "on")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        for number in (8, 9):
            info = tracking.run_info(TrackingParams(environment=f"env-{number}"))
            run_step(STEPS["download"], replace(SMALL, num_train=number), {}, "store", info)
            tracking.close_run(info, "store", "FINISHED")
    return folder


@pytest.fixture
def here(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(recorded)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return recorded


def said(capsys: pytest.CaptureFixture[str], *args: Any, **more: Any) -> str:
    capsys.readouterr()
    print_runs(*args, **more)
    return capsys.readouterr().out


def test_the_table_of_recorded_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = list_runs()
    assert [run.experiment for run in runs] == ["splatclip/env-9/train-eval", "splatclip/env-8/train-eval"]
    table = said(capsys, None, None, as_json=False, sync_store=None)
    for run in runs:
        assert run.name in table
        assert run.tags["data.hash"][:7] in table
    assert "FINISHED" in table
    listed = json.loads(said(capsys, None, None, as_json=True, sync_store=None))
    assert [one["params"]["download.num_train"] for one in listed] == ["9", "8"]
    one = json.loads(said(capsys, runs[1].id, None, as_json=True, sync_store=None))
    assert [step["name"] for step in one["steps"]] == ["download"]
    assert "download" in said(capsys, runs[1].id[:12], None, as_json=False, sync_store=None)


def test_two_recorded_runs_against_each_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest, older = list_runs()
    found = json.loads(said(capsys, None, older.id, as_json=True, sync_store=None))
    assert found["run"]["id"] == newest.id
    assert found["params"] == {"download.num_train": ["9", "8"], "tracking.environment": ["env-9", "env-8"]}
    assert "data.hash" in found["tags"]
    assert "download/seconds" in found["metrics"]
    table = said(capsys, newest.id, older.id, as_json=False, sync_store="store")
    row = next(line for line in table.splitlines() if "download.num_train" in line)
    assert row.split() == ["download.num_train", "9", "8"]


def test_nothing_recorded_and_nobody_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "no run is recorded yet" in said(capsys, None, None, as_json=False, sync_store=None)
    assert json.loads(said(capsys, None, None, as_json=True, sync_store=None)) == []
    assert not (tmp_path / "runs/mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(TransientError, match="connection refused") as caught:
        list_runs()
    assert "secret" not in str(caught.value)
