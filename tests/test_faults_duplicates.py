"""Row "duplicates": workers at the same shards at the same time, some of them killed, leave one manifest."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_worlds import fit, folder_download
from faults import (
    Action,
    Blow,
    Command,
    ForkServer,
    Row,
    Whole,
    contents,
    is_sound,
    manifests,
    seed,
    tidied,
    undisturbed,
)
from s3 import new_bucket
from test_faults_kill import Servers

pytestmark = pytest.mark.faults
ROW = "duplicates"
Make = Callable[[Path], Command]


def together(
    server: ForkServer, what: Command, whole: Whole, store: str, workers: int, killed: int, at: int, plant: str = ""
) -> int:
    """Run a command in several processes at once, some of them killed on their way; how many of these the blow met."""
    blows = [Blow(at, Action.KILL)] * killed + [Blow()] * (workers - killed)
    ran = server.run_all([what.argv(store)] * workers, store, blows, plant=plant)
    codes = [one.code for one in ran]
    assert codes[killed:] == [0] * (workers - killed), [one.stderr for one in ran]
    assert set(codes[:killed]) <= {0, -signal.SIGKILL}
    assert manifests(contents(store)) == manifests(whole.files), "another manifest"
    is_sound(store, finished=True)
    assert tidied(store) == whole.files, "a file that the manifest does not name"
    return codes.count(-signal.SIGKILL)


@pytest.mark.parametrize("make", [fit, pytest.param(folder_download, marks=pytest.mark.full)])
def test_one_manifest_for_any_number_of_workers(servers: Servers, tmp_path: Path, make: Make, fault_row: Row) -> None:
    """One, two, four and eight: the same bytes as of one by itself."""
    what = make(tmp_path)
    server = servers(what.stage)
    whole = undisturbed(server, what, str(tmp_path / "whole"))
    for workers in (1, 2, 4, 8):
        together(server, what, whole, str(tmp_path / f"store{workers}"), workers, 0, 0)
    fault_row(ROW, what.stage, 15, None, "1, 2, 4 and 8 workers")


@pytest.mark.full
def test_eight_workers_on_s3(servers: Servers, tmp_path: Path, endpoint: str, fault_row: Row) -> None:
    what = fit(tmp_path)
    server = servers(what.stage)
    whole = undisturbed(server, what, str(tmp_path / "whole"))
    together(server, what, whole, f"{new_bucket()}/store", 8, 0, 0)
    fault_row(ROW, f"{what.stage}, S3", 8, None, "8 workers")


@pytest.mark.full
@pytest.mark.parametrize("make", [fit, folder_download])
def test_eight_workers_some_of_which_are_killed(servers: Servers, tmp_path: Path, make: Make, fault_row: Row) -> None:
    what, times, met = make(tmp_path), 20, 0
    rng = random.Random(chance := seed())
    server = servers(what.stage)
    whole = undisturbed(server, what, str(tmp_path / "whole"))
    for turn in range(times):
        at = rng.randrange(1, len(whole.ran.points) // 2)
        met += together(server, what, whole, str(tmp_path / f"store{turn}"), 8, rng.randrange(1, 8), at)
    assert met > times, "workers were killed while others went on"
    fault_row(ROW, f"{what.stage}, killed", 8 * times, chance, f"{times} times 8 workers, {met} of them killed")
