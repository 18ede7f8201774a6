"""Many promotions at once, as processes of their own: against one MLflow server, and on one sqlite database."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import forks
import gates
import pytest
from faults import Row
from mlflow_server import MlflowServer

from components.registry_calls import CHALLENGER, CHAMPION, Registry

# SQLAlchemy 2.1 on what MLflow 3.17 asks of it; seen where a test's own process opens the database
pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
MEET_S = 600.0  # for all gates to be ready; if one is not, the others fail and the test with them


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    """One for each test: what a test leaves in a server's queue would slow the next one."""
    with MlflowServer(tmp_path / "mlflow") as running:
        yield running


@pytest.fixture
def model(server: MlflowServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A registered model's name of the test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    name = re.sub(r"[^a-z0-9_]+", "-", request.node.name).strip("-")
    monkeypatch.setattr(gates, "MODEL", name)
    return name


def champion_score(model: str) -> float:
    state = Registry(model).state()
    return next(one.score for one in state.versions if one.number == state.aliases[CHAMPION])


def at_once(uri: str, folder: Path, model: str, values: list[float]) -> None:
    barrier = forks.CONTEXT.Barrier(len(values), timeout=MEET_S)
    processes = [forks.process(gates.gate, uri, str(folder), model, value, barrier) for value in values]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(values)


def shuffled(count: int) -> list[float]:
    values = [0.3 + number / 200 for number in range(count)]
    random.Random(count).shuffle(values)
    return values


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.full)])
def test_of_many_at_once_the_best_is_champion(
    server: MlflowServer, tmp_path: Path, model: str, count: int, fault_row: Row
) -> None:
    values = shuffled(count)
    at_once(server.uri, tmp_path, model, values)
    state = Registry(model).state()
    assert sorted(one.score for one in state.versions) == sorted(values)
    assert champion_score(model) == max(values)
    newest = max(one.number for one in state.versions if one.number != state.aliases[CHAMPION])
    assert state.aliases[CHALLENGER] == newest
    fault_row("promotion", "gates at once", count, None, "the best is champion")


@pytest.mark.full
def test_one_package_is_one_version_also_at_once(server: MlflowServer, tmp_path: Path, model: str) -> None:
    at_once(server.uri, tmp_path, model, [0.5] * 4)
    gates.promote(str(tmp_path / "store"), 0.5)
    state = Registry(model).state()
    assert len(state.versions) == 1
    assert state.aliases == {CHAMPION: state.versions[0].number}


def test_the_next_gate_mends_one_killed_before_its_alias(server: MlflowServer, tmp_path: Path, model: str) -> None:
    store = str(tmp_path / "store")
    gates.promote(store, 0.5)
    killed = forks.process(gates.gate_killed_before_alias, server.uri, str(tmp_path), model, 0.7)
    killed.join()
    assert killed.exitcode == -9
    assert len(Registry(model).state().versions) == 2
    assert champion_score(model) == 0.5  # whoever reads the alias meanwhile gets a whole version
    report = gates.promote(store, 0.4)
    assert report.facts["alias"] == "challenger"
    assert champion_score(model) == 0.7


@pytest.mark.full
def test_many_at_once_on_a_database_that_is_yet_to_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    at_once(uri, tmp_path, "local", shuffled(8))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert champion_score("local") == max(shuffled(8))
    assert len(Registry("local").state().versions) == 8


@pytest.mark.full
def test_gates_killed_anywhere_leave_nothing_that_the_next_does_not_mend(
    server: MlflowServer, tmp_path: Path, model: str, fault_row: Row
) -> None:
    values = shuffled(40)
    barrier = forks.CONTEXT.Barrier(len(values), timeout=MEET_S)
    rng = random.Random(0)
    # by the number of requests, not by the clock: a slow machine kills at the same places
    places = [(rng.randint(1, 40), rng.choice([0.0, 0.05, 0.2])) for _ in values]
    processes = [
        forks.process(gates.gate_killed_at, server.uri, str(tmp_path), model, value, *place, barrier)
        for value, place in zip(values, places, strict=True)
    ]
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert set(codes) == {0, -9}, codes
    assert all(code == -9 for code, (request, _) in zip(codes, places, strict=True) if request <= 10)
    gates.promote(str(tmp_path / "store"), 0.01)
    state = Registry(model).state()
    assert champion_score(model) == max(one.score for one in state.versions)
    assert len({one.package for one in state.versions}) == len(state.versions)
    fault_row("promotion", "gates killed", codes.count(-9), 0, f"of {len(values)}; the next one mended what they left")
