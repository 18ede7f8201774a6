"""A whole run, its tracking server killed in the middle of training and started again on the same database."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer

from components.tracking_journal import leftovers

pytestmark = pytest.mark.full
EXPERIMENT = "splatclip/outage/train-eval"


def until(condition: Callable[[], object], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def spawn(folder: Path, uri: str, *more: str) -> subprocess.Popen[str]:
    words = ["run", "--params", "tests/tiny.yaml", "--store", f"{folder}/store", "--out", f"{folder}/out"]
    for value in ("tracking.environment=outage", "train_teacher.epochs=60", *more):
        words += ["--set", value]
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri, "SPLATCLIP_TRACKING": "on", "SPLATCLIP_TRACKING_WAIT": "90"}
    command = [sys.executable, "-m", "components", *words]
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def names(client: MlflowClient) -> dict[str, list[str]]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found: dict[str, list[str]] = {}
    for run in client.search_runs([experiment.experiment_id]) if experiment else ():
        found.setdefault(run.info.run_name, []).append(run.info.run_id)
    return found


def test_a_run_through_an_outage_has_every_point_once(tmp_path: Path) -> None:
    with MlflowServer(tmp_path / "server") as server:
        client = MlflowClient(server.uri)
        process = spawn(tmp_path, server.uri)
        try:
            until(lambda: "train_teacher" in names(client), "training did not begin")
            server.kill()
            until(lambda: leftovers(f"{tmp_path}/store") or process.poll() is not None, "no journal was kept")
            kept = len(leftovers(f"{tmp_path}/store"))
            server.start()
            said = process.communicate(timeout=300)[1]
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert kept > 0
        assert "answers again" in said
        assert leftovers(f"{tmp_path}/store") == []
        runs = {name: ids[0] for name, ids in names(client).items() if len(ids) == 1}
        assert len(runs) == len(names(client)) == 9
        for step, phase in (("train_teacher", "train_teacher"), ("train_adapter", "control_lr0.001")):
            path = next((tmp_path / "store" / step).glob("*/curve-*.csv"))
            rows = [row for row in csv.DictReader(path.read_text().splitlines()) if row["phase"] == phase]
            points = client.get_metric_history(runs[step], f"{phase}/loss")
            assert sorted((p.step, p.value) for p in points) == [(int(row["step"]), float(row["loss"])) for row in rows]
        parent = next(id_ for name, id_ in runs.items() if name.count("-") == 2)
        scores = json.loads((tmp_path / "out/scores.json").read_text())
        row = next(row for row in scores["rows"] if row["name"] == "splats")
        metrics = client.get_run(parent).data.metrics
        assert metrics["acc1_splats"] == row["figures"]["acc1"]["value"]
        assert [metrics["acc1_splats_low"], metrics["acc1_splats_high"]] == row["figures"]["acc1"]["interval"]
        assert metrics["psnr_db_mean"] == scores["splats"]["psnr_db_mean"]
        assert {client.get_run(run_id).info.status for run_id in runs.values()} == {"FINISHED"}
        assert "report.html" in [file.path for file in client.list_artifacts(parent)]


def test_a_run_killed_while_the_server_is_away_is_recorded_by_the_next(tmp_path: Path) -> None:
    with MlflowServer(tmp_path / "server") as server:
        client = MlflowClient(server.uri)
        process = spawn(tmp_path, server.uri, "train_teacher.epochs=4000")
        until(lambda: "train_teacher" in names(client), "training did not begin")
        server.kill()
        until(lambda: leftovers(f"{tmp_path}/store"), "no journal was kept")
        process.send_signal(signal.SIGTERM)  # in good order: what is pending is put into the store before it ends
        process.communicate(timeout=60)
        assert process.returncode == 143
        assert leftovers(f"{tmp_path}/store")
        server.start()
        killed = set(names(client)["train_teacher"])
        process = spawn(tmp_path, server.uri, "train_teacher.epochs=4000", "train_teacher.checkpoint_steps=50")
        until(lambda: not leftovers(f"{tmp_path}/store"), "the next run did not deliver what was left")
        until(lambda: len(names(client).get("train_teacher", ())) == 2, "the second run did not begin its training")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert [client.get_run(run_id).info.status for run_id in killed] == ["KILLED"]
        parents = [client.get_run(ids[0]) for name, ids in names(client).items() if name.count("-") == 2]
        assert {parent.info.status for parent in parents} == {"KILLED"}
        assert len(parents) == 2
