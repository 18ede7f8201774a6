"""Row "disk full": at every change on disk; a typed exit that says where, nothing partial, then the same bytes."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_worlds import fit, trained_flow
from faults import Action, Blow, Command, Row, contents, finished_before, survives_full_disk, tidied, undisturbed
from test_faults_kill import MAKERS, Servers

from components.errors import TransientError
from components.scratch import in_scratch, scratch_folder

pytestmark = pytest.mark.faults
ROW = "disk full"


def fill(servers: Servers, tmp: Path, what: Command, row: Row, *, every: int, name: str = "") -> None:
    """Fill the disk from each `every`th point on; at others a quota ends a single write, or a write comes out short.

    Another stage's finished output lies beside, but where the first point is the store's own folder.
    """
    server = servers(what.stage)
    alone = undisturbed(server, what, str(tmp / "alone"))
    [made] = [point for point in alone.ran.points if point.path == str(tmp / "alone") and point.operation == "mkdir"]
    survives_full_disk(server, what, alone, str(tmp / "none"), Blow(made.number, Action.FULL))
    whole = undisturbed(server, what, finished_before(str(tmp / "whole"), what.stage))
    points = [point for point in whole.ran.points if point.operation != "unlink"]
    last = len(points) - 1 if not what.varies else 0
    numbers = sorted({*range(0, len(points), every), last})
    blows = [Blow(points[i].number, Action.FULL) for i in numbers]
    blows += [Blow(points[i].number, Action.ONCE, error=errno.EDQUOT) for i in numbers[::3]]
    blows += [Blow(points[i].number, Action.SHORT) for i in numbers[1::3]]
    for number, blow in enumerate(blows):
        store = finished_before(str(tmp / f"store{number}"), what.stage)
        survives_full_disk(server, what, whole, store, blow)
    row(ROW, name or what.stage, 1 + len(blows), None, f"{len(numbers)} of {len(points)} points ({whole.kinds})")


@pytest.mark.parametrize(("name", "every"), [("splat_fit", 37), ("download", 64), ("urls", 106)])
def test_some_points(servers: Servers, tmp_path: Path, name: str, every: int, fault_row: Row) -> None:
    with MAKERS[name](tmp_path) as what:
        fill(servers, tmp_path, what, fault_row, every=every, name=name)


@pytest.mark.full
@pytest.mark.parametrize("name", ["splat_fit", "download", "urls"])
def test_every_point(servers: Servers, tmp_path: Path, name: str, fault_row: Row) -> None:
    with MAKERS[name](tmp_path) as what:
        fill(servers, tmp_path, what, fault_row, every=1, name=name)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    return trained_flow(tmp_path_factory.mktemp("flow"))


@pytest.mark.full
@pytest.mark.parametrize("stage", ["train_teacher", "train_adapter", "zero_shot_eval", "promote"])
def test_every_point_of_later_stages(
    servers: Servers, tmp_path: Path, stage: str, flow: dict[str, Command], fault_row: Row
) -> None:
    fill(servers, tmp_path, flow[stage], fault_row, every=1)


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A file system of its own. Wants root."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=False, capture_output=True
    )
    assert made.returncode == 0, f"root and the right to mount are needed here: {made.stderr.decode()}"
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.full
@pytest.mark.parametrize("which", ["store", "scratch"])
def test_a_disk_that_is_really_full(servers: Servers, tmp_path: Path, which: str, fault_row: Row) -> None:
    """A tmpfs too small for the stage, then made larger: the store's, or the temporary folder's."""
    what, disk = fit(tmp_path, shards=8, per_shard=8), tmp_path / "disk"
    server = servers(what.stage)
    whole = undisturbed(server, what, str(tmp_path / "whole"))
    with small_disk(disk, "40k" if which == "store" else "8k"):
        store = str(disk / "store" if which == "store" else tmp_path / "store")
        more = {} if which == "store" else {"scratch": disk}
        ran = server.run(what.argv(store), store, **more)
        assert ran.code == 75, ran.stderr
        assert f"{disk}" in ran.stderr
        assert "No space left on device; free some space" in ran.stderr
        for name, digest in contents(store).items():
            assert whole.files[name] == digest
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert server.run(what.argv(store), store, **more).code == 0
        assert tidied(store) == whole.files
    fault_row(ROW, f"a real {which}", 1, None, "tmpfs")


def test_a_temporary_folder_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tempfile tries all it knows by writing a file there."""

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr("components.scratch.tempfile.gettempdir", nowhere)
    with pytest.raises(TransientError, match=r"No usable temporary .*; free some space there, or name another one"):
        scratch_folder().__enter__()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE])
def test_what_the_temporary_folder_refuses_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr("components.scratch.tempfile.tempdir", str(tmp_path))

    def work(error: OSError) -> None:
        with in_scratch():
            raise error

    with pytest.raises(TransientError, match=f"^{tmp_path}: {os.strerror(code)}"):
        work(OSError(code, os.strerror(code)))
    with pytest.raises(TransientError, match=f"^{tmp_path}/a: "):
        work(FileNotFoundError(errno.ENOENT, "gone", f"{tmp_path}/a"))
    with pytest.raises(BrokenPipeError):
        work(BrokenPipeError(errno.EPIPE, "the reader of the output has gone"))
