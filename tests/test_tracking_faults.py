"""Deliveries that go wrong: busy databases, refused runs, doubles, runs that are deleted, processes that died."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import gates
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import DataError, InterfaceError
from sqlalchemy.exc import TimeoutError as SqlTimeoutError
from test_tracking_runs import SMALL, STEPS, info_of, runs_of

from components import tracking
from components.runner import run_step
from components.tracking_client import fingerprint, is_permanent, may_pass, tracking_uri
from components.tracking_delivery import Delivery
from components.tracking_journal import Journal, leftovers
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
