"""Runs recorded on a real `mlflow server`, also while it is away: nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer

from components import FLOW, Step, tracking
from components.config import DownloadParams, SplatFitParams, TrainTeacherParams
from components.operations import TrackingParams
from components.runner import run_step
from components.series import emit
from components.tracking_journal import leftovers

# MLflow's own use of SQLAlchemy, where a test reads the sqlite database itself
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
STEPS = {step.name: step for step in FLOW}
TEACHER = TrainTeacherParams(threads=1)
SMALL = DownloadParams(image_size=16, num_train=40, num_val=0, num_test=8, shard_size=16)
FIT = SplatFitParams(num_gaussians=6, num_iters=5, threads=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def client(server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MlflowClient]:
    """A client of the server, with tracking switched on and nothing else given."""
    for name in ("MLFLOW_RUN_ID", "KUBERNETES_SERVICE_HOST", "SPLATCLIP_TRACKING_WAIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    return MlflowClient(server.uri)


def params(tmp_path: Path) -> TrackingParams:
    """An experiment of the test's own."""
    return TrackingParams(environment=tmp_path.name.replace("_", "-").lower(), gpu_hour_price=2.0)


def info_of(tmp_path: Path, run_id: str = "") -> tracking.RunInfo:
    info = tracking.run_info(params(tmp_path), run_id)
    assert info is not None
    return info


def runs_of(client: MlflowClient, info: tracking.RunInfo) -> dict[str, Run]:
    experiment = client.get_experiment_by_name(info.experiment)
    found = [] if experiment is None else list(client.search_runs([experiment.experiment_id]))
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def history(client: MlflowClient, run: Run, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))


def test_a_run_and_its_steps(client: MlflowClient, tmp_path: Path) -> None:
    info, store = info_of(tmp_path), f"{tmp_path}/store"
    images = run_step(STEPS["download"], SMALL, {}, store, info).report
    first = run_step(STEPS["splat_fit"], FIT, {"images": images.url}, store, info).report
    again = run_step(STEPS["splat_fit_eval"], FIT, {"images": images.url}, store, info).report
    with tracking.track_step(STEPS["zero_shot_eval"], SMALL, {"images": images.url}, store, info) as tracker:
        assert tracker.tags["data.hash"] == images.manifest_sha256
        run_id = tracking.current_run_id(20)
        tracker.artifact("report.html", b"<p>hello")
    tracking.close_run(info, store, "FINISHED")
    runs = runs_of(client, info)
    fit, parent = runs["splat_fit"], next(run for run in runs.values() if run.data.tags["splatclip.kind"] == "pipeline")
    assert set(runs) == {"download", "splat_fit", "splat_fit_eval", "zero_shot_eval", parent.info.run_name}
    git, data, began = parent.info.run_name.split("-")
    assert (git, data) == (parent.data.tags["git.sha"][:7], images.manifest_sha256[:7])
    assert began.startswith("20")
    for run in runs.values():
        assert {"git.sha", "git.dirty", "dvc.hash", "data.hash", "params.hash", "image.digest"} <= set(run.data.tags)
        assert run.data.tags["kfp.run_id"] == "none"
        assert run.data.tags["data.hash"] == images.manifest_sha256
        assert run.info.status == "FINISHED"
        assert (run is parent) == ("mlflow.parentRunId" not in run.data.tags)
    assert runs["zero_shot_eval"].info.run_id == run_id
    assert fit.data.params["num_gaussians"] == "6"
    assert parent.data.params["splat_fit.num_gaussians"] == "6"
    assert parent.data.params["download.source"] == "sample"
    assert fit.data.metrics["psnr_db_mean"] == first.metrics["psnr_db_mean"]
    assert parent.data.metrics["splat_fit/psnr_db_mean"] == first.metrics["psnr_db_mean"]
    assert fit.data.metrics["seconds"] == first.seconds == parent.data.metrics["splat_fit/seconds"]
    assert parent.data.metrics["seconds"] == pytest.approx(sum(r.data.metrics["seconds"] for r in runs.values()) / 2)
    assert fit.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert [one.dataset.digest for one in fit.inputs.dataset_inputs] == [images.manifest_sha256[:36]]
    assert fit.inputs.dataset_inputs[0].tags[0].value == "training"
    assert [one.dataset.digest for one in parent.inputs.dataset_inputs] == [images.manifest_sha256[:36]]
    for run in (parent, runs["zero_shot_eval"]):
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]
    # the same curve, whether it was told live or read from what was found
    live, found = (history(client, runs[name], "splat_fit/psnr_db") for name in ("splat_fit", "splat_fit_eval"))
    assert again.cached
    assert live == found
    assert len(live) == len(first.manifest.shards)


def emits(
    step: Step, store: str, info: tracking.RunInfo, count: int, between: dict[int, object] | None = None
) -> float:
    """A step that does nothing but emit `count` points; calls between[i] before point i. Returns its longest emit."""
    longest = 0.0
    with tracking.track_step(step, TEACHER, {}, store, info):
        for i in range(count):
            if between and i in between:
                between[i]()  # type: ignore[operator]
            started = time.monotonic()
            emit("phase", i, {"loss": 1.0 / (i + 1), "steps_per_s": 2.0})
            longest = max(longest, time.monotonic() - started)
            time.sleep(0.002)
    return longest


@pytest.mark.full
def test_the_server_killed_and_started_again(server: MlflowServer, client: MlflowClient, tmp_path: Path) -> None:
    info, store = info_of(tmp_path, "kubeflow-1"), f"{tmp_path}/store"
    kept: list[str] = []

    def start_again() -> None:
        deadline = time.monotonic() + 30
        while not leftovers(store) and time.monotonic() < deadline:
            time.sleep(0.05)
        kept.extend(leftovers(store))
        server.spawn()

    between = {50: lambda: tracking.current_run_id(30), 100: server.kill, 600: start_again}
    longest = emits(STEPS["train_teacher"], store, info, 1000, between)
    server.wait()
    assert longest < 2  # what waits for the server would wait for seconds, or until it is back
    assert len(kept) == 1  # a kill in that time would have lost nothing either
    assert leftovers(store) == []
    run = runs_of(client, info)["train_teacher"]
    assert history(client, run, "phase/loss") == [(i, 1.0 / (i + 1)) for i in range(1000)]
    assert run.data.metrics["phase/samples_per_s"] == 2.0 * TEACHER.batch_size
    assert run.info.status == "FINISHED"
    assert run.data.tags["kfp.run_id"] == "kubeflow-1"


def command(*words: str, uri: str, wait: str = "200") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri, "SPLATCLIP_TRACKING": "on", "SPLATCLIP_TRACKING_WAIT": wait}
    words = (sys.executable, "-m", "components", *words)
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, check=True, timeout=400)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["http", "sqlite"])
def test_away_to_the_end_and_delivered_by_the_next_command(kind: str, tmp_path: Path, server: MlflowServer) -> None:
    store = f"{tmp_path}/store"
    common = ("--params", "tests/tiny.yaml", "--store", store)
    common += ("--set", f"tracking.environment={kind}", "--set", "download.num_train=40")
    if (
        kind == "http"
    ):  # the server is away for a caller that asks at a port where nobody is; journals know it by target
        uri, port = server.uri, server.port
        server.kill()
    else:
        uri, port = f"sqlite:///{tmp_path}/later/mlflow.db", 0
    try:
        first = command("download", *common, uri=uri, wait="1")
    finally:
        if kind == "http":
            server.start()
            assert server.port == port
        else:
            (tmp_path / "later").mkdir()
    assert "is kept in" in first.stderr
    assert len(leftovers(store)) == 1
    second = command("splat-fit", *common, "--images", first.stdout.strip(), uri=uri)
    assert "delivered what earlier runs had to leave" in second.stderr
    assert leftovers(store) == []
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(f"splatclip/{kind}/train-eval")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"download", "splat_fit"}  # stages by themselves: no parent
    assert second.stdout.count("\n") == 1  # the output's address and nothing of MLflow's
    assert runs["download"].data.params["num_train"] == "40"
