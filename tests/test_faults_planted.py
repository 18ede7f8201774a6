"""Mistakes planted into the stages (fault_planted.py): each is caught by the checks named here, and by these tests."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_planted import PLANTED
from fault_worlds import STAGE_MODULES, fit, url_download
from faults import (
    Action,
    Blow,
    Command,
    ForkServer,
    Row,
    When,
    Whole,
    contents,
    finished_before,
    in_order,
    killing,
    survives_full_disk,
    survives_kill,
    undisturbed,
)
from test_faults_duplicates import together
from url_lists import PICTURES
from web import web_server

pytestmark = pytest.mark.faults


@dataclass
class Bench:
    """A command, its undisturbed run, and the server that runs it."""

    server: ForkServer
    what: Command
    whole: Whole
    tmp: Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    tmp = tmp_path_factory.mktemp("planted")
    what = fit(tmp, shards=3)
    modules = STAGE_MODULES["splat_fit"] + STAGE_MODULES["download"]
    with ForkServer(tmp / "server", modules) as server:
        yield Bench(server, what, undisturbed(server, what, str(tmp / "whole")), tmp)


def sound(bench: Bench, plant: str, tmp: Path) -> Whole:
    """An undisturbed run is what `splatclip verify` calls sound."""
    return undisturbed(bench.server, bench.what, str(tmp / "sound"), plant=plant)


def order(bench: Bench, plant: str, tmp: Path) -> None:
    """Written, synced, renamed, the folder synced."""
    whole = sound(bench, plant, tmp)
    in_order(whole.ran.points, str(tmp / "sound"))


def _points(bench: Bench, plant: str, tmp: Path, *, beside: bool = False) -> Whole:
    if beside:
        finished_before(str(tmp / "count"), bench.what.stage)
    ran = bench.server.run(bench.what.argv(str(tmp / "count")), str(tmp / "count"), plant=plant)
    return Whole(bench.whole.files, ran)


def kill(bench: Bench, plant: str, tmp: Path) -> None:
    """SIGKILL and SIGTERM: in the midst of the store's writes, and at points all over."""
    whole = _points(bench, plant, tmp)
    inside = [point for point in whole.ran.points if point.path.startswith(str(tmp / "count"))]
    blows = [Blow(point.number, Action.KILL, When.TORN) for point in inside if point.operation == "write"][::3]
    blows += [Blow(point.number, Action.TERM) for point in inside if point.operation == "fsync"][-4::3]
    blows += killing(whole.ran.points, 8, random.Random(1))
    for number, blow in enumerate(blows):
        survives_kill(bench.server, bench.what, bench.whole, str(tmp / f"kill{number}"), blow, plant=plant)


def disk(bench: Bench, plant: str, tmp: Path) -> None:
    """A full disk, with another stage's output beside."""
    whole = _points(bench, plant, tmp, beside=True)
    for number, point in enumerate([p for p in whole.ran.points if p.path.startswith(str(tmp / "count"))][::7]):
        blow = Blow(point.number, Action.FULL)
        store = finished_before(str(tmp / f"disk{number}"), bench.what.stage)
        survives_full_disk(bench.server, bench.what, bench.whole, store, blow, plant=plant)


def workers(bench: Bench, plant: str, tmp: Path) -> None:
    """Several at the same shards."""
    together(bench.server, bench.what, bench.whole, str(tmp / "workers"), 4, 0, 0, plant=plant)


def damage(bench: Bench, plant: str, tmp: Path) -> None:
    """A flipped byte in what the stage reads: refused by the shard's name, and nothing is committed."""
    shutil.copytree(bench.tmp / "inputs", tmp / "inputs")
    shard = sorted((tmp / "inputs").rglob("*.tar"))[1]
    data = bytearray(shard.read_bytes())
    data[data.index(b"a picture of a")] ^= 1
    shard.write_bytes(data)
    argv = [part.replace(str(bench.tmp / "inputs"), str(tmp / "inputs")) for part in bench.what.argv(str(tmp / "out"))]
    ran = bench.server.run(argv, str(tmp / "out"), plant=plant)
    assert ran.code == 42, f"exit {ran.code}: {ran.stderr}"
    assert shard.name in ran.stderr
    assert not list((tmp / "out").rglob("manifest.json"))


def addresses(bench: Bench, plant: str, tmp: Path) -> None:
    """Servers that fail once: each picture is there in the end."""
    with web_server(PICTURES) as web:
        what = url_download(tmp, web.url, addresses=24, how="then-503")
        ran = bench.server.run(what.argv(str(tmp / "urls")), str(tmp / "urls"), plant=plant)
    assert ran.code == 0, ran.stderr
    assert "in 24 = ok 22 + skipped 0 + failed 2 (http_404 2)" in ran.stderr, ran.stderr


def inside(bench: Bench, plant: str, tmp: Path) -> None:
    """A server on this machine, spelled in two ways: no picture of it is taken, and it is not even asked."""
    with web_server(PICTURES) as web:
        for name in ("127.0.0.1", "[::ffff:127.0.0.1]"):
            what = url_download(tmp, web.url.replace("127.0.0.1", name), addresses=8, allow=())
            ran = bench.server.run(what.argv(store := str(tmp / f"from-{len(name)}")), store, plant=plant)
            assert not web.requests, f"{name}: {sum(web.requests.values())} requests"
            assert (ran.code, "blocked_address" in ran.stderr) == (42, True), ran.stderr


CAUGHT: dict[str, tuple[Callable[[Bench, str, Path], object], ...]] = {
    "direct_write": (order, kill),
    "no_hash_check": (damage,),
    "no_retry": (addresses,),
    "no_address_check": (inside,),
    "mapped_address_passes": (inside,),
    "count_off_by_one": (sound,),
    "entry_off_by_one": (sound,),
    "no_fsync": (order,),
    "temporary_file_stays": (disk,),
    "nothing_is_kept": (kill,),
    "manifest_first": (kill,),
    "bytes_that_vary": (kill, workers),
    "disk_error_swallowed": (disk,),
    "disk_error_untyped": (disk,),
    "room_is_made": (disk,),
    "signal_ignored": (kill,),
}
ASKED_FOR = ("direct_write", "no_hash_check", "no_retry", "no_address_check", "count_off_by_one")


def test_each_mistake_is_listed() -> None:
    assert set(CAUGHT) == set(PLANTED)


def caught(bench: Bench, plant: str, tmp: Path, row: Row) -> None:
    for check in CAUGHT[plant]:
        place = tmp / check.__name__
        place.mkdir()
        with pytest.raises(AssertionError) as found:
            check(bench, plant, place)
        row("planted", plant, 1, None, f"caught by {check.__name__}: {str(found.value).splitlines()[0][-90:]}")


@pytest.mark.parametrize("plant", ASKED_FOR)
def test_a_planted_mistake_is_caught(bench: Bench, plant: str, tmp_path: Path, fault_row: Row) -> None:
    caught(bench, plant, tmp_path, fault_row)


@pytest.mark.full
@pytest.mark.parametrize("plant", [name for name in CAUGHT if name not in ASKED_FOR])
def test_another_planted_mistake_is_caught(bench: Bench, plant: str, tmp_path: Path, fault_row: Row) -> None:
    caught(bench, plant, tmp_path, fault_row)


@pytest.mark.parametrize("check", [damage, addresses, inside])
def test_without_a_mistake_inputs_are_judged_rightly(
    bench: Bench, check: Callable[[Bench, str, Path], object], tmp_path: Path
) -> None:
    check(bench, "", tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("check", [sound, order, kill, disk, workers])
def test_without_a_mistake_nothing_is_found(
    bench: Bench, check: Callable[[Bench, str, Path], object], tmp_path: Path
) -> None:
    before = dict(contents(str(bench.tmp / "whole")))
    check(bench, "", tmp_path)
    assert contents(str(bench.tmp / "whole")) == before
