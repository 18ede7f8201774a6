"""The gate against a real MLflow server: many at once, killed ones, decisions by hand, a server that is away."""

from __future__ import annotations

import multiprocessing
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gates
import pytest
from mlflow_server import MlflowServer, free_port

from components import registry
from components.errors import TransientError, UsageError
from components.registry_calls import CHALLENGER, CHAMPION, Registry

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["gates", "mlflow", "mlflow.tracking", "components.registry", "sqlalchemy"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def model(server: MlflowServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A registered model's name of the test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    name = re.sub(r"[^a-z0-9_]+", "-", request.node.name).strip("-")
    monkeypatch.setattr(gates, "MODEL", name)
    return name


def start(target: Callable[..., None], *args: Any) -> Any:
    process = CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def aliases(model: str) -> dict[str, int]:
    return Registry(model).state().aliases


def champion_score(model: str) -> float:
    state = Registry(model).state()
    return next(one.score for one in state.versions if one.number == state.aliases[CHAMPION])


def at_once(server: MlflowServer, folder: Path, model: str, values: list[float]) -> None:
    barrier = CONTEXT.Barrier(len(values))
    processes = [start(gates.gate, server.uri, str(folder), model, value, barrier) for value in values]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(values)


def shuffled(count: int) -> list[float]:
    values = [0.3 + number / 200 for number in range(count)]
    random.Random(count).shuffle(values)
    return values


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.full)])
def test_of_many_at_once_the_best_is_champion(server: MlflowServer, tmp_path: Path, model: str, count: int) -> None:
    values = shuffled(count)
    at_once(server, tmp_path, model, values)
    state = Registry(model).state()
    assert sorted(one.score for one in state.versions) == sorted(values)
    assert champion_score(model) == max(values)
    newest = max(one.number for one in state.versions if one.number != state.aliases[CHAMPION])
    assert state.aliases[CHALLENGER] == newest


def test_one_package_is_one_version_also_at_once(server: MlflowServer, tmp_path: Path, model: str) -> None:
    at_once(server, tmp_path, model, [0.5] * 4)
    gates.promote(str(tmp_path / "store"), 0.5)
    state = Registry(model).state()
    assert len(state.versions) == 1
    assert state.aliases == {CHAMPION: state.versions[0].number}


def test_the_next_gate_mends_one_killed_before_its_alias(server: MlflowServer, tmp_path: Path, model: str) -> None:
    store = str(tmp_path / "store")
    gates.promote(store, 0.5)
    killed = start(gates.gate_killed_before_alias, server.uri, str(tmp_path), model, 0.7)
    killed.join()
    assert killed.exitcode == -9
    assert len(Registry(model).state().versions) == 2
    assert champion_score(model) == 0.5  # whoever reads the alias meanwhile gets a whole version
    report = gates.promote(store, 0.4)
    assert report.facts["alias"] == "challenger"
    assert champion_score(model) == 0.7


@pytest.mark.full
def test_gates_killed_anywhere_leave_nothing_that_the_next_does_not_mend(
    server: MlflowServer, tmp_path: Path, model: str
) -> None:
    values = shuffled(40)
    barrier = CONTEXT.Barrier(len(values))
    rng = random.Random(0)
    processes = [
        start(gates.gate_killed_after, server.uri, str(tmp_path), model, value, rng.uniform(0.1, 8.0), barrier)
        for value in values
    ]
    for process in processes:
        process.join()
    assert sum(process.exitcode == -9 for process in processes) > 3
    gates.promote(str(tmp_path / "store"), 0.01)
    state = Registry(model).state()
    assert champion_score(model) == max(one.score for one in state.versions)
    assert len({one.package for one in state.versions}) == len(state.versions)


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
    assert time.monotonic() - before < 20
    assert len(list((tmp_path / "promote").iterdir())) == 1  # committed all the same


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
