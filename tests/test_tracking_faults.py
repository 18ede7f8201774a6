"""Deliveries that go wrong: busy databases, refused runs, doubles, runs that are deleted, processes that died."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gates
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import DataError, InterfaceError
from sqlalchemy.exc import TimeoutError as SqlTimeoutError
from test_tracking_runs import SMALL, STEPS, info_of, pipelines, runs_of

from components import tracking, tracking_journal
from components.operations import PromoteParams
from components.runner import run_step
from components.runs import list_runs, print_runs
from components.tracking_client import artifact_location, database_of, fingerprint, is_permanent, may_pass, tracking_uri
from components.tracking_delivery import Delivery
from components.tracking_journal import Journal, leftovers, now_ms, read_journal
from components.tracking_outbox import sweep

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("work")
    gates.default_database(found)
    return found


@pytest.fixture
def client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of the default database, in a working directory that the module's tests share."""
    for name in ("MLFLOW_RUN_ID", "KUBERNETES_SERVICE_HOST", "MLFLOW_TRACKING_URI", "SPLATCLIP_TRACKING_WAIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.chdir(folder)
    return MlflowClient(tracking_uri())


def test_a_database_that_is_busy_refuses_nothing(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, uri = info_of(tmp_path), tracking_uri()
    journal = Journal(str(tmp_path), fingerprint(uri), ready=True)
    tracking.open_runs(journal, info, tracking.provenance(), "step")
    delivery = Delivery(uri)
    # what MLflow makes of them: mlflow.store.db.utils
    for fault in (SqlTimeoutError("QueuePool limit of size 5 reached"), InterfaceError("select", {}, OSError("cut"))):
        error = MlflowException(str(fault), error_code=BAD_REQUEST)
        assert may_pass(error)

        def busy(*given: object, error: MlflowException = error, **more: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(delivery.client, "create_run", busy)
            with pytest.raises(MlflowException):
                delivery.deliver(journal)
    too_long = MlflowException(str(DataError("insert", {}, OSError("value too long"))), error_code=BAD_REQUEST)
    assert is_permanent(too_long)
    assert not may_pass(too_long)
    delivery.deliver(journal)
    assert not journal.refused
    assert len(runs_of(client, info)) == 2


def test_a_journal_whose_run_is_refused_stays_in_the_store(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given, store = client.create_run("0").info.run_id, str(tmp_path)
    client.delete_run(given)
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    info = info_of(tmp_path)
    run_step(STEPS["download"], SMALL, {}, store, info)
    before = time.monotonic()
    tracking.close_run(info, store, "FINISHED")
    assert time.monotonic() - before < 10  # it does not wait for what is refused
    assert len(leftovers(store)) == 2
    assert "MLflow refuses its run" in capsys.readouterr().err
    uri = tracking_uri()
    other = Journal(store, fingerprint(uri), ready=True, closed=True)
    tracking.open_runs(other, replace(info, given=""), tracking.provenance())
    other.keep()
    assert sweep(Delivery(uri), store, None) == (1, "")  # those before it do not stop it
    client.restore_run(given)
    assert sweep(Delivery(uri), store, None) == (2, "")
    assert client.get_run(given).data.params["download.num_train"] == "8"
    assert client.get_run(given).info.status == "FINISHED"


def test_a_double_is_merged_with_all_that_it_holds(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answered too late made an older parent; the one that everybody wrote to is merged into it."""
    info, uri, store = info_of(tmp_path, "doubled"), tracking_uri(), str(tmp_path)
    late = []

    def slow(*given: Any, **more: Any) -> None:
        late.append((given, more))
        raise ConnectionError("timed out")

    delivery = Delivery(uri)
    journal = Journal(store, fingerprint(uri), ready=True)
    tracking.open_runs(journal, info, tracking.provenance(), "download")
    with monkeypatch.context() as patch:
        patch.setattr(delivery.client, "create_run", slow)
        with pytest.raises(ConnectionError):
            delivery.deliver(journal)
    points = [("parent/loss", i / 7, 1000 + i, i) for i in range(900)]
    journal.log("parent", params={"download.num_train": "8"}, metrics=points, tags={"data.hash": "abc"})
    dataset = dict.fromkeys(("digest", "source_type", "source", "profile", "context"), "{}") | {"name": "n"}
    journal.add("inputs", to="parent", datasets=[dataset])
    journal.add("artifact", to="parent", name="report.html", data=base64.b64encode(b"<p>").decode())
    journal.add("name", to="parent", data="abcdefg")
    delivery.deliver(journal)
    assert not any("metrics" in op or "data" in op for op in journal.ops)  # no memory is held for what is delivered
    begun, both = Journal(store, fingerprint(uri), ready=True), Journal(store, fingerprint(uri))
    tracking.open_runs(both, info, tracking.provenance(), "splat_fit")
    begun.ops.append(both.ops[0])
    delivery.deliver(begun)  # knows the parent, and makes its step when that is merged already
    given, more = late[0]
    client.create_run(*given, **more)
    other = Journal(store, fingerprint(uri), ready=True)
    tracking.open_runs(other, info, tracking.provenance(), "train_teacher")
    other.log("parent", params={"train_teacher.seed": "0"})
    Delivery(uri).deliver(other)
    journal.log("parent", metrics=[("parent/loss", 1.0, 2000, 900)])
    delivery.deliver(journal)
    begun.ops.append(both.ops[1])
    begun.log("parent", params={"splat_fit.seed": "0"})
    delivery.deliver(begun)
    assert not journal.refused
    assert not begun.refused
    (parent,) = pipelines(runs_of(client, info))
    assert parent.data.tags["splatclip.created_ns"] == more["tags"]["splatclip.created_ns"]
    assert parent.data.params == {"download.num_train": "8", "train_teacher.seed": "0", "splat_fit.seed": "0"}
    assert len(client.get_metric_history(parent.info.run_id, "parent/loss")) == 901
    assert parent.data.tags["data.hash"] == "abc"
    assert "-abcdefg-" in parent.info.run_name
    assert [one.dataset.name for one in parent.inputs.dataset_inputs] == ["n"]
    assert [one.path for one in client.list_artifacts(parent.info.run_id)] == ["report.html"]
    nested = [run for run in runs_of(client, info) if run.info.run_id != parent.info.run_id]
    assert [run.data.tags["mlflow.parentRunId"] for run in nested] == 3 * [parent.info.run_id]


def test_a_run_that_somebody_deletes_holds_nothing_up(client: MlflowClient, tmp_path: Path) -> None:
    info, uri = info_of(tmp_path), tracking_uri()
    journal = Journal(str(tmp_path), fingerprint(uri), ready=True)
    tracking.open_runs(journal, info, tracking.provenance(), "step")
    delivery = Delivery(uri)
    delivery.deliver(journal)
    client.delete_run(journal.runs["step"])
    for number in range(5):
        journal.log("step", metrics=[("m", float(i), i, i) for i in range(40)])
        journal.log("parent", metrics=[("m", 1.0, number, number)])
    before = time.monotonic()
    delivery.deliver(journal)
    assert time.monotonic() - before < 2.5
    assert {why for _, why in journal.refused} == {"its run was deleted"}
    assert sum(len(op["metrics"]) for op, _ in journal.refused) == 200
    assert len(client.get_metric_history(journal.runs["parent"], "m")) == 5


def test_a_step_killed_while_the_server_is_away_ends(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info, store, uri = info_of(tmp_path, "kubeflow-id"), str(tmp_path), tracking_uri()
    journal = Journal(store, fingerprint(uri), ready=True)
    tracking.open_runs(journal, info, tracking.provenance(), "train_teacher")
    journal.keep()
    tracking.close_run(info, store, "FAILED")
    print_runs(None, None, as_json=True, sync_store=store)
    said = capsys.readouterr().err
    assert f"{journal.name}: its process may be at work" in said
    assert "nothing to deliver" not in said
    now = now_ms()
    for ahead, live in ((86_400_000, False), (-50_000, True), (50_000, True), (-86_400_000, False)):
        with monkeypatch.context() as patch:
            patch.setattr(tracking_journal, "now_ms", lambda ahead=ahead: now + ahead)
            journal.keep()
        assert read_journal(store, journal.name)[1] == live
    assert sweep(Delivery(uri), store, fingerprint(uri), {journal.id}) == (0, "")  # by its own process
    assert sweep(Delivery(uri), store, fingerprint(uri)) == (1, "")
    assert leftovers(store) == []
    (step,) = [run for run in runs_of(client, info) if run.info.run_name == "train_teacher"]
    assert (step.info.status, step.info.end_time) == ("KILLED", now - 86_400_000)


@pytest.mark.parametrize("name", ["a#b", "100%41 c?d"])
def test_working_directories_of_odd_names(
    name: str, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / name
    here.mkdir()
    gates.default_database(here)
    monkeypatch.chdir(here)
    assert artifact_location(tracking_uri()) == (here / "runs/mlartifacts").as_uri()
    assert database_of(tracking_uri()) == here / "runs/mlflow.db"
    info = info_of(tmp_path)
    with tracking.track_step(STEPS["promote"], PromoteParams(), {}, "store", info) as tracker:
        tracker.artifact("report.html", b"<p>")
    tracking.close_run(info, "store", "FINISHED")
    (run,) = list_runs()
    assert [one.path for one in MlflowClient(tracking_uri()).list_artifacts(run.id)] == ["report.html"]
    assert fingerprint("sqlite:////a#b/m.db") != fingerprint("sqlite:////a#c/m.db")
