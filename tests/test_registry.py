"""Champion and challenger in a real registry (sqlite): decisions by hand, other evaluations, a server that is away."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import gates
import pytest
from mlflow_server import MlflowServer, free_port

from components import registry
from components.errors import Interrupted, TransientError, UsageError
from components.registry_calls import CHALLENGER, CHAMPION, Registry
from components.signals import Stop

# SQLAlchemy 2.1 on what MLflow 3.17 asks of it; seen where a test's own process opens the database
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The registered model's name, in a registry of the test's own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.chdir(tmp_path)
    gates.default_database(tmp_path)
    return gates.MODEL


def aliases(model: str) -> dict[str, int]:
    return Registry(model).state().aliases


def test_rollback_restores_the_former_champion_and_keeps_it(tmp_path: Path, model: str) -> None:
    store = str(tmp_path / "store")
    for value in (0.4, 0.5, 0.6):
        assert gates.promote(store, value).facts["alias"] == "champion"
    said = registry.rollback(model)
    assert "version 2" in said
    assert "version 3" in said
    assert aliases(model) == {CHAMPION: 2, CHALLENGER: 3}
    assert gates.promote(store, 0.6).facts["alias"] == "challenger"  # the withdrawn one, promoted again
    assert aliases(model)[CHAMPION] == 2
    registry.rollback(model)
    assert aliases(model)[CHAMPION] == 1
    with pytest.raises(UsageError, match="nothing to roll back to"):
        registry.rollback(model)
    assert gates.promote(store, 0.45).facts == {
        "model": model,
        "version": "4",
        "alias": "champion",
        "verdict": "acc1 0.4500 [0.4490, 0.4510] is better than version 1 (acc1 0.4000 [0.3990, 0.4010])",
    }
    registry.rollback(model)
    assert aliases(model)[CHAMPION] == 1


def test_a_champion_by_hand_moves_to_another_evaluation(tmp_path: Path, model: str) -> None:
    store = str(tmp_path / "store")
    gates.promote(store, 0.5)
    other = gates.promote(store, 0.9, split="val")
    assert other.facts["alias"] == "challenger"
    assert "--set-champion 2" in other.facts["verdict"]
    assert "version 2" in registry.set_champion(model, "2")
    assert aliases(model) == {CHAMPION: 2, CHALLENGER: 1}
    assert "already" in registry.set_champion(model, 2)
    assert gates.promote(store, 0.95).facts["alias"] == "challenger"  # of the first evaluation
    assert gates.promote(store, 0.95, split="val").facts["alias"] == "champion"
    registry.rollback(model)
    registry.rollback(model)
    assert aliases(model)[CHAMPION] == 1
    with pytest.raises(UsageError, match="has no version 9"):
        registry.set_champion(model, 9)
    with pytest.raises(UsageError, match="give its number"):
        registry.set_champion(model, "best")


@pytest.mark.parametrize(
    "change",
    [
        {"split": "val"},
        {"num_pictures": 99},
        {"class_names": ["red", "blue"]},
        {"templates": ["the {c}."]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_makes_scores_incomparable(tmp_path: Path, model: str, change: dict[str, Any]) -> None:
    gates.promote(str(tmp_path), 0.5)
    assert "not compared" in gates.promote(str(tmp_path), 0.9, **change).facts["verdict"]


def test_no_such_model(model: str) -> None:
    for call in (lambda: registry.rollback(model), lambda: registry.set_champion(model, 1)):
        with pytest.raises(UsageError, match="has no model"):
            call()


def test_an_alias_written_too_late_is_put_right(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gates: the weaker one has read before the stronger one came, and writes after it."""
    store, write, others = str(tmp_path / "store"), Registry.set_alias, [0.9]
    gates.promote(store, 0.5)

    def late(self: Registry, alias: str, number: int | None) -> None:
        if others:
            gates.promote(store, others.pop())
            assert aliases(model)[CHAMPION] == 3
        write(self, alias, number)

    monkeypatch.setattr(Registry, "set_alias", late)
    assert gates.promote(store, 0.6).facts["alias"] == "challenger"
    assert aliases(model) == {CHAMPION: 3, CHALLENGER: 2}


def test_an_answer_that_is_lost_makes_no_second_version(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, place, lost, placed = Registry.create, registry.package_source, [True], []

    def losing(self: Registry, *given: Any) -> None:
        create(self, *given)
        if lost:
            lost.pop()
            raise ConnectionResetError("after it was done")

    def placing(*given: Any) -> Any:
        placed.append(given)
        return place(*given)

    monkeypatch.setattr(Registry, "create", losing)
    monkeypatch.setattr(registry, "package_source", placing)
    assert gates.promote(str(tmp_path / "store"), 0.5).facts["version"] == "1"
    assert not lost
    assert len(placed) == 1  # nor is the package uploaded again
    assert len(Registry(model).state().versions) == 1


def test_aliases_set_by_hand_in_mlflow_are_put_right(tmp_path: Path, model: str) -> None:
    gates.promote(str(tmp_path), 0.5)
    gates.promote(str(tmp_path), 0.6)
    Registry(model).client.set_registered_model_alias(model, CHAMPION, "1")
    gates.promote(str(tmp_path), 0.1)
    assert aliases(model) == {CHAMPION: 2, CHALLENGER: 3}


def test_versions_of_others_are_left_alone(tmp_path: Path, model: str) -> None:
    gates.promote(str(tmp_path), 0.5)
    Registry(model).client.create_model_version(model, "s3://elsewhere/model")
    gates.promote(str(tmp_path), 0.6)
    assert aliases(model) == {CHAMPION: 3, CHALLENGER: 1}
    with pytest.raises(UsageError, match="has no version 2"):
        registry.set_champion(model, 2)


def test_a_server_that_is_away_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.setenv("SPLATCLIP_REGISTRY_WAIT", "1")
    before = time.monotonic()
    with pytest.raises(TransientError, match="does not answer"):
        gates.promote(str(tmp_path), 0.5)
    assert time.monotonic() - before < 60
    assert len(list((tmp_path / "promote").iterdir())) == 1  # committed all the same


@pytest.mark.parametrize(
    ("own", "wait", "expected"), [(None, None, "120"), (None, "5", "5"), ("33", None, "33"), ("33", "5", "33")]
)
def test_how_long_one_request_may_take(
    model: str, monkeypatch: pytest.MonkeyPatch, own: str | None, wait: str | None, expected: str
) -> None:
    """Long, or a slow server never catches up with many gates; but not longer than promote waits, nor the user."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    for name, value in (("MLFLOW_HTTP_REQUEST_TIMEOUT", own), ("SPLATCLIP_REGISTRY_WAIT", wait)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert Registry(model).call("ask", lambda: os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) == expected
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == (own or "10")  # the tracker's stay short


def test_a_stop_does_not_wait_out_a_pause(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop()
    calls = Registry(model, stop)
    monkeypatch.setattr("components.registry_calls.random.uniform", lambda low, high: 60.0)

    def away() -> None:
        threading.Timer(0.1, stop.request, ["SIGTERM"]).start()
        raise ConnectionError("away")

    before = time.monotonic()
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        calls.call("ask", away)
    assert time.monotonic() - before < 30


@pytest.mark.full
def test_a_server_that_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = MlflowServer(tmp_path / "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away.uri)
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.setattr(gates, "MODEL", "patient")
    later = threading.Timer(1.0, away.start)
    later.start()
    try:
        assert gates.promote(str(tmp_path), 0.5).facts["alias"] == "champion"
    finally:
        later.join()
        away.kill()
