"""Which runs are made, found, joined, merged, refused and ended: on the sqlite default."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from components import FLOW, tracking
from components.config import DownloadParams, PromoteParams, SplatFitParams
from components.errors import Interrupted, PermanentError
from components.local_run import VARIABLE, LocalRun
from components.operations import TrackingParams
from components.runner import run_step
from components.store import open_store
from components.tracking_client import fingerprint, tracking_uri
from components.tracking_delivery import Delivery
from components.tracking_journal import REFUSED, Journal, leftovers, read_journal
from components.tracking_outbox import sweep
from components.tracking_tree import RunTree

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
STEPS = {step.name: step for step in FLOW}
SMALL = DownloadParams(image_size=16, num_train=8, num_val=0, num_test=4, shard_size=16)
NOTHING = PromoteParams()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of the default database, in a working directory that the module's tests share."""
    for name in ("MLFLOW_RUN_ID", "KUBERNETES_SERVICE_HOST", "MLFLOW_TRACKING_URI", "SPLATCLIP_TRACKING_WAIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.chdir(folder)
    return MlflowClient(tracking_uri())


def info_of(tmp_path: Path, run_id: str = "") -> tracking.RunInfo:
    """Of an experiment of the test's own."""
    environment = tmp_path.name.replace("_", "-").lower()
    info = tracking.run_info(TrackingParams(environment=environment), run_id)
    assert info is not None
    return info


def runs_of(client: MlflowClient, info: tracking.RunInfo) -> list[Run]:
    experiment = client.get_experiment_by_name(info.experiment)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def pipelines(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.data.tags.get("splatclip.kind") == "pipeline"]


def test_the_default_lies_in_the_working_directory(client: MlflowClient, folder: Path, tmp_path: Path) -> None:
    info = info_of(tmp_path)
    tracking.close_run(info, str(tmp_path), "FINISHED")
    assert (folder / "runs/mlflow.db").is_file()
    experiment = client.get_experiment_by_name(info.experiment)
    assert experiment is not None
    assert experiment.artifact_location == (folder / "runs/mlartifacts").as_uri()


@pytest.mark.parametrize(
    ("error", "status"),
    [(PermanentError("bad"), "FAILED"), (Interrupted("stopped"), "KILLED"), (KeyboardInterrupt(), "KILLED")],
)
def test_how_it_ended(client: MlflowClient, tmp_path: Path, error: BaseException, status: str) -> None:
    info = info_of(tmp_path)
    with (
        pytest.raises(type(error)),
        tracking.track_step(STEPS["promote"], NOTHING, {}, str(tmp_path), info),
    ):
        raise error
    tracking.close_run(info, str(tmp_path), tracking.status_of(error))
    assert [run.info.status for run in runs_of(client, info)] == [status, status]


def test_closing_ends_what_a_kill_left_running(client: MlflowClient, tmp_path: Path) -> None:
    info = info_of(tmp_path)
    context = tracking.track_step(STEPS["promote"], NOTHING, {}, str(tmp_path), info)
    context.__enter__()
    killed = tracking.current_run_id(20)
    assert killed is not None
    tracking.close_run(info, str(tmp_path), "FAILED")
    assert client.get_run(killed).info.status == "KILLED"
    assert pipelines(runs_of(client, info))[0].info.status == "FAILED"
    context.__exit__(None, None, None)


def test_a_given_run_is_the_parent_of_a_run(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = client.create_run("0", run_name="mine").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    info = info_of(tmp_path)
    run_step(STEPS["download"], SMALL, {}, str(tmp_path), info)
    tracking.close_run(info, str(tmp_path), "FINISHED")
    parent = client.get_run(given)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "mine"
    assert parent.data.params["download.num_train"] == "8"
    assert runs_of(client, info) == []
    (step,) = client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{given}'")
    assert parent.data.metrics["seconds"] == step.data.metrics["seconds"]


def test_a_given_run_is_a_step_of_kubeflows(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = client.create_run("0", run_name="pipeline").info.run_id
    given = client.create_run("0", run_name="task", tags={"mlflow.parentRunId": parent}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    info = info_of(tmp_path, "kubeflow-id")
    run_step(STEPS["download"], SMALL, {}, str(tmp_path), info)
    assert runs_of(client, info) == []
    assert client.get_run(given).data.params["num_train"] == "8"
    assert client.get_run(given).data.tags["kfp.run_id"] == "kubeflow-id"
    assert client.get_run(parent).data.params["download.num_train"] == "8"
    LocalRun.start(tmp_path, run_id="local", out=tmp_path)
    with monkeypatch.context() as patch:  # run-local in a pod: it is the parent of all that it starts
        patch.setenv(VARIABLE, str(tmp_path))
        assert info_of(tmp_path, "local").given_to == "parent"
    other = client.create_run("0", run_name="finish", tags={"mlflow.parentRunId": parent}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", other)
    tracking.close_run(info_of(tmp_path, "kubeflow-id"), str(tmp_path), "FINISHED")
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(other).info.status == "RUNNING"  # Kubeflow's own: the step that closes is still at work


def test_a_stage_by_itself(client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = replace(info_of(tmp_path), id="")
    run_step(STEPS["download"], SMALL, {}, str(tmp_path), info)
    (run,) = runs_of(client, info)
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.info.run_name == "download"
    assert run.info.status == "FINISHED"
    assert run_step(STEPS["download"], SMALL, {}, str(tmp_path), info).report.cached
    assert len(runs_of(client, info)) == 1
    given = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    attached = replace(info_of(tmp_path), id="")
    run_step(STEPS["download"], replace(SMALL, seed=1), {}, str(tmp_path), attached)
    assert client.get_run(given).data.params["seed"] == "1"
    assert len(runs_of(client, info)) == 1


def test_a_commit_while_a_run_works_changes_nothing(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sha in ("1" * 40, "2" * 40 + "-dirty"):
        monkeypatch.setenv("SPLATCLIP_GIT_SHA", sha)
        info = info_of(tmp_path, "kubeflow-id")  # Kubeflow's steps are processes of their own
        run_step(STEPS["download"], SMALL, {}, str(tmp_path), info)
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", "3" * 40)
    tracking.close_run(info, str(tmp_path), "FINISHED")
    runs = runs_of(client, info)
    (parent,) = pipelines(runs)
    assert (parent.data.tags["git.sha"], parent.data.tags["git.dirty"]) == ("1" * 40, "false")
    assert parent.data.tags["mlflow.source.git.commit"] == "1" * 40
    assert parent.info.run_name.startswith("1" * 7)
    assert {run.data.tags["git.sha"][0] for run in runs if run is not parent} == {"1", "2"}
    with monkeypatch.context() as patch:
        LocalRun.start(tmp_path, run_id="local", out=tmp_path)
        patch.setenv(VARIABLE, str(tmp_path))
        patch.setenv("SPLATCLIP_GIT_SHA", "4" * 40)
        assert info_of(tmp_path, "local").origin["git.sha"] == "3" * 40


def test_many_at_once_make_one_parent(client: MlflowClient, tmp_path: Path) -> None:
    info = info_of(tmp_path, "one-run")
    uri, store = tracking_uri(), str(tmp_path)
    together = threading.Barrier(4)  # MLflow takes up to 3 of its 15 connections for a thread

    def deliver(number: int) -> None:
        journal = Journal(store, fingerprint(uri), ready=True)
        tracking.open_runs(journal, info, tracking.provenance(), "step")
        journal.log("step", metrics=[("m", float(number), 1, 0)])
        journal.log("parent", metrics=[(f"m{number}", float(number), 1, 0)])
        delivery = Delivery(uri)
        together.wait()
        delivery.deliver(journal)
        assert not journal.refused

    workers = [threading.Thread(target=deliver, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    runs = runs_of(client, info)
    (parent,) = pipelines(runs)
    assert len(runs) == 5
    assert parent.data.metrics == {f"m{number}": number for number in range(4)}
    nested = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}


@pytest.mark.parametrize("before", ["set_tag", "delete_run"])
def test_doubles_that_others_merge_at_the_same_time(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    info = info_of(tmp_path, "doubled-often")
    uri = tracking_uri()
    experiment = client.create_experiment(info.experiment)
    kept, *doubles = (
        client.create_run(
            experiment,
            tags={"splatclip.run_id": "doubled-often", "splatclip.created_ns": str(age), "splatclip.kind": "pipeline"},
        ).info.run_id
        for age in range(1, 6)
    )
    for double in doubles:
        client.log_metric(double, double, 1.0)
    journal = Journal(str(tmp_path), fingerprint(uri), ready=True)
    tracking.open_runs(journal, info, tracking.provenance(), "step")
    delivery, other = Delivery(uri), RunTree(client, uri)
    as_before = getattr(delivery.client, before)

    def after_the_other(run_id: str, *args: object) -> object:
        """Each double was merged by another one, from beginning to end, just before we do so."""
        if run_id in doubles and not other.deleted(run_id)[0]:
            other._merge(experiment, run_id, kept)
        return as_before(run_id, *args)

    monkeypatch.setattr(delivery.client, before, after_the_other)
    delivery.deliver(journal)
    assert journal.runs["parent"] == kept
    assert client.get_run(kept).data.metrics == dict.fromkeys(doubles, 1.0)
    assert [run.info.run_id for run in pipelines(runs_of(client, info))] == [kept]


def test_what_went_to_a_double_is_told_again(client: MlflowClient, tmp_path: Path) -> None:
    info = info_of(tmp_path, "doubled")
    uri = tracking_uri()
    journal = Journal(str(tmp_path), fingerprint(uri), ready=True)
    tracking.open_runs(journal, info, tracking.provenance(), "step")
    journal.log("parent", metrics=[("before", 1.0, 1, 0)])
    delivery = Delivery(uri)
    delivery.deliver(journal)
    mine = journal.runs["parent"]
    older = client.create_run(
        client.get_experiment_by_name(info.experiment).experiment_id,  # type: ignore[union-attr]
        tags={"splatclip.run_id": "doubled", "splatclip.created_ns": "1", "splatclip.kind": "pipeline"},
    ).info.run_id
    other = Journal(str(tmp_path), fingerprint(uri), ready=True)
    tracking.open_runs(other, info, tracking.provenance(), "another")
    Delivery(uri).deliver(other)  # merges ours into the older one
    journal.log("parent", metrics=[("after", 2.0, 2, 0)])
    delivery.deliver(journal)
    assert journal.runs["parent"] == older != mine
    assert client.get_run(older).data.metrics == {"before": 1.0, "after": 2.0}
    nested = [run for run in runs_of(client, info) if run.info.run_id != older]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {older}


def test_what_is_refused_is_kept_and_said_and_stops_nothing(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info, uri = info_of(tmp_path), tracking_uri()
    journal = Journal(str(tmp_path), fingerprint(uri), ready=True)
    tracking.open_runs(journal, info, tracking.provenance(), "step")
    journal.log("step", params={"a": "1"})
    journal.log("step", params={"a": "2", "b": "3"}, metrics=[("good", 1.0, 1, 0), ("b@d", 1.0, 1, 0)])
    journal.closed = True
    journal.keep()
    assert sweep(Delivery(uri), str(tmp_path), None) == (1, "")
    (run,) = [run for run in runs_of(client, info) if run.info.run_name == "step"]
    assert run.data.params == {"a": "1", "b": "3"}
    assert run.data.metrics == {"good": 1.0}
    (name,) = [path.name for path in (tmp_path / REFUSED).iterdir()]
    kept = [json.loads(line) for line in (tmp_path / REFUSED / name).read_text().splitlines()]
    assert [line.get("params", line.get("metrics")) for line in kept] == [[["b@d", 1.0, 1, 0]], {"a": "2"}]
    assert "MLflow refused some" in capsys.readouterr().err
    assert leftovers(str(tmp_path)) == []


def test_delivered_twice_is_there_once(client: MlflowClient, tmp_path: Path) -> None:
    info, uri = info_of(tmp_path), tracking_uri()
    journal = Journal(str(tmp_path), fingerprint(uri), ready=True, closed=True)
    tracking.open_runs(journal, info, tracking.provenance(), "step")
    journal.log("step", metrics=[("m", i / 3, 1000 + i, i) for i in range(2000)])
    journal.add("end", to="step", status="FINISHED", time=5000)
    for _ in range(2):
        journal.keep()
        assert sweep(Delivery(uri), str(tmp_path), fingerprint(uri)) == (1, "")
    (run,) = [run for run in runs_of(client, info) if run.info.run_name == "step"]
    assert len(client.get_metric_history(run.info.run_id, "m")) == 2000
    assert run.info.end_time == 5000


def test_away_to_the_end_and_delivered_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, store = f"sqlite:///{tmp_path}/later/mlflow.db", f"{tmp_path}/store"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.setenv("SPLATCLIP_TRACKING_WAIT", "0.2")
    info = info_of(tmp_path, "kubeflow-id")
    images = run_step(STEPS["download"], SMALL, {}, store, info).report.url
    assert "is kept in" in capsys.readouterr().err
    assert len(leftovers(store)) == 1
    (tmp_path / "later").mkdir()
    monkeypatch.setenv("SPLATCLIP_TRACKING_WAIT", "30")
    run_step(
        STEPS["splat_fit"], SplatFitParams(num_gaussians=6, num_iters=5, threads=1), {"images": images}, store, info
    )
    tracking.close_run(info, store, "FINISHED")
    assert leftovers(store) == []
    runs = {run.info.run_name: run for run in runs_of(MlflowClient(uri), info)}
    (parent,) = pipelines(list(runs.values()))
    assert set(runs) == {"download", "splat_fit", parent.info.run_name}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert parent.data.metrics["seconds"] == sum(
        runs[name].data.metrics["seconds"] for name in ("download", "splat_fit")
    )


def test_journals_of_others_are_left_alone(client: MlflowClient, tmp_path: Path) -> None:
    store, uri = str(tmp_path), tracking_uri()
    elsewhere = Journal(store, fingerprint("http://elsewhere:5000"), ready=True, closed=True)
    at_work = Journal(store, fingerprint(uri), ready=True)
    damaged = f"_tracking/{'0' * 16}.jsonl"
    for journal in (elsewhere, at_work):
        journal.keep()
    open_store(store).put_bytes(damaged, b"{")
    assert sweep(Delivery(uri), store, fingerprint(uri)) == (0, "")
    assert set(leftovers(store)) == {elsewhere.name, at_work.name, damaged}
    with pytest.raises(PermanentError, match="not a readable journal"):
        read_journal(store, damaged)


def test_a_journal_that_cannot_be_delivered_stops_no_other(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info, uri, store = info_of(tmp_path), tracking_uri(), str(tmp_path)
    gone = replace(info, params=TrackingParams(environment="gone"))
    client.delete_experiment(client.create_experiment(gone.experiment))
    journal = Journal(store, fingerprint(uri), closed=True)
    tracking.open_runs(journal, gone, tracking.provenance(), "step")
    journal.keep()
    run_step(STEPS["download"], SMALL, {}, store, info)
    tracking.close_run(info, store, "FINISHED")
    assert {run.info.status for run in runs_of(client, info)} == {"FINISHED"}
    assert leftovers(store) == [journal.name]
    assert "mlflow experiments restore" in capsys.readouterr().err
