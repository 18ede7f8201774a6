"""Rows "kill -9 / SIGTERM": every stage struck at its changes on disk and in S3, one after the other (faults.py)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fault_worlds import fit, folder_download, large_download, trained_flow, url_download
from faults import (
    Action,
    Blow,
    Command,
    ForkServer,
    Ran,
    Row,
    When,
    contents,
    in_order,
    killing,
    seed,
    survives_kill,
    undisturbed,
)
from s3 import new_bucket
from web import web_server

pytestmark = pytest.mark.faults
ROW = "kill -9 / SIGTERM"


@contextmanager
def splat_fit(tmp: Path) -> Iterator[Command]:
    yield fit(tmp)


@contextmanager
def download(tmp: Path) -> Iterator[Command]:
    yield folder_download(tmp)


@contextmanager
def urls(tmp: Path) -> Iterator[Command]:
    from url_lists import PICTURES

    with web_server(PICTURES) as web:
        yield url_download(tmp, web.url)


MAKERS = {"splat_fit": splat_fit, "download": download, "urls": urls}


Servers = Callable[[str], ForkServer]


def elsewhere(ran: Ran, store: str) -> list[str]:
    """What a run that was watched everywhere wrote beside its store, its temporary folder and its two streams.

    Not the sync of the folder that the store itself was made in.
    """
    assert any(point.path.startswith(f"{store}/") for point in ran.points)
    own = (f"{store}/", f"{ran.scratch.parent}/")
    others = [point.path for point in ran.points if not point.path.startswith(own)]
    return [path for path in others if not f"{store}/".startswith(f"{path}/")]


def strike(servers: Servers, tmp: Path, what: Command, bar: int, row: Row, *, name: str = "") -> None:
    """Strike a command at `bar` points of its store in a folder."""
    chance, server, store = seed(), servers(what.stage), str(tmp / "whole")
    whole = undisturbed(server, what, store)
    assert elsewhere(server.run(what.argv(anew := str(tmp / "anew")), anew, also="/"), anew) == []
    in_order(whole.ran.points, store)
    cached = server.run(what.argv(store), store)
    assert (cached.code, cached.points, cached.work) == (0, [], 0), "a finished output is found, nothing is written"
    blows = killing(whole.ran.points, bar, random.Random(chance))
    assert len(blows) == bar
    assert {blow.action for blow in blows} == {Action.KILL, Action.TERM}
    for number, blow in enumerate(blows):
        survives_kill(server, what, whole, str(tmp / f"store{number}"), blow)
    struck = len({blow.point for blow in blows})
    row(ROW, name or what.stage, bar, chance, f"{struck} of {len(whole.ran.points)} points ({whole.kinds})")


@pytest.mark.parametrize(("name", "bar"), [("splat_fit", 12), ("download", 10), ("urls", 5)])
def test_some_points(servers: Servers, tmp_path: Path, name: str, bar: int, fault_row: Row) -> None:
    with MAKERS[name](tmp_path) as what:
        strike(servers, tmp_path, what, bar, fault_row, name=name)


@pytest.mark.full
@pytest.mark.parametrize("name", ["splat_fit", "download", "urls"])
def test_two_hundred_points(servers: Servers, tmp_path: Path, name: str, fault_row: Row) -> None:
    with MAKERS[name](tmp_path) as what:
        strike(servers, tmp_path, what, 200, fault_row, name=name)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    return trained_flow(tmp_path_factory.mktemp("flow"))


@pytest.mark.full
@pytest.mark.parametrize("stage", ["train_teacher", "train_adapter", "zero_shot_eval", "promote"])
def test_forty_points(servers: Servers, tmp_path: Path, stage: str, flow: dict[str, Command], fault_row: Row) -> None:
    strike(servers, tmp_path, flow[stage], 40, fault_row)


def strike_s3(server: ForkServer, what: Command, bar: int, endpoint: str, row: Row) -> None:
    """The same where the store is on S3: the points are the requests that change something, as they are sent."""
    chance = seed()
    port = urlsplit(endpoint).port or 0
    bucket = new_bucket()
    whole = undisturbed(server, what, f"{bucket}/whole", port=port)
    puts = [point for point in whole.ran.points if point.operation == "put"]
    assert len(puts) >= 13, "three files a shard and a manifest"
    blows = killing(puts, bar, random.Random(chance))
    assert len(blows) == bar
    for number, blow in enumerate(blows):
        survives_kill(server, what, whole, f"{bucket}/store{number}", blow, port=port)
    row(ROW, f"{what.stage}, S3", bar, chance, f"{len({b.point for b in blows})} of {len(puts)} sent requests")


def test_some_requests_to_s3(servers: Servers, tmp_path: Path, endpoint: str, fault_row: Row) -> None:
    strike_s3(servers("splat_fit"), fit(tmp_path), 4, endpoint, fault_row)


@pytest.mark.full
@pytest.mark.parametrize("make", [fit, folder_download])
def test_eighty_requests_to_s3(
    servers: Servers, tmp_path: Path, make: Callable[[Path], Command], endpoint: str, fault_row: Row
) -> None:
    what = make(tmp_path)
    strike_s3(servers(what.stage), what, 80, endpoint, fault_row)


def strike_parts(server: ForkServer, what: Command, bar: int, endpoint: str, row: Row) -> None:
    """The same within the upload in parts of a 12 MB shard, from its beginning until its parts are one file."""
    chance, bucket = seed(), new_bucket()
    more = {"port": urlsplit(endpoint).port or 0, "part_size": 5 << 20}
    whole = undisturbed(server, what, f"{bucket}/whole", **more)
    requests = [point for point in whole.ran.points if re.match("(PUT|POST) ", point.path)]
    begun, *parts, completing = (point.number for point in requests if re.search(r"[?&]upload", point.path))
    assert len(parts) == 3
    puts = [point for point in whole.ran.points if begun < point.number <= completing]
    blows = [
        Blow(begun, Action.KILL, When.AFTER), Blow(completing, Action.KILL), Blow(parts[1] + 2, Action.TERM, When.TORN),
        *killing(puts, max(bar - 3, 4), random.Random(chance)),
    ][:bar]  # fmt: skip
    left = [survives_kill(server, what, whole, f"{bucket}/store{i}", blow, **more) for i, blow in enumerate(blows)]
    assert any(left[:2]), "begun, or with all its parts, for gc to take"
    seen = f"{len({blow.point for blow in blows})} of {len(puts)} pieces sent, {sum(left)} uploads left behind"
    row(ROW, f"{what.stage}, S3, in parts", bar, chance, seen)


@pytest.mark.parametrize("bar", [3, pytest.param(40, marks=pytest.mark.full)])
def test_an_upload_in_parts(servers: Servers, tmp_path: Path, bar: int, endpoint: str, fault_row: Row) -> None:
    strike_parts(servers("download"), large_download(tmp_path), bar, endpoint, fault_row)


def test_the_choice_of_points_keeps_its_promises() -> None:
    from faults import Point

    points = [Point(n, "write" if n % 3 else "rename", "x") for n in range(1, 501)]
    blows = killing(points, 200, random.Random(3))
    assert blows == killing(points, 200, random.Random(3)), "a seed gives the choice again"
    assert len({blow.point for blow in blows}) == 200
    assert {1, 500} <= {blow.point for blow in blows}
    before = sum(blow.when is When.BEFORE for blow in blows)
    assert before == 100
    assert sum(blow.action is Action.TERM for blow in blows) == 40
    few = killing(points[:20], 60, random.Random(3))
    assert {blow.point for blow in few} == set(range(1, 21))
    assert len({(blow.point, blow.action, blow.when) for blow in few}) == len(few) == 60


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.full)])
def test_what_is_written_for_people_and_dvc(servers: Servers, tmp_path: Path, every: int, fault_row: Row) -> None:
    """--manifest-out and --metrics-out: whole or not there, whatever happens while they are written."""
    server, store = servers("splat_fit"), str(tmp_path / "store")
    what, nothing = fit(tmp_path, shards=1), Blow()

    def exported(out: Path, blow: Blow) -> Ran:
        files = ["--manifest-out", str(out / "manifest.json"), "--metrics-out", str(out / "a" / "metrics.json")]
        return server.run([*what.argv(store), *files], store, blow, also=str(out))

    assert server.run(what.argv(store), store).code == 0
    watched = server.run([*what.argv(f"{store}2"), "--manifest-out", str(tmp_path / "m")], f"{store}2", also="/")
    assert {Path(path).name for path in elsewhere(watched, f"{store}2")} >= {"m"}, "what is written elsewhere is seen"
    ran = exported(tmp_path / "whole", nothing)
    assert ran.code == 0, ran.stderr
    files, count = contents(str(tmp_path / "whole")), 0
    assert set(files) == {"manifest.json", "a/metrics.json"}
    for point in ran.points[::every]:
        for action in (Action.KILL, Action.TERM, Action.FULL):
            out, count = tmp_path / f"out{count}", count + 1
            struck = exported(out, Blow(point.number, action, When.TORN))
            assert struck.code == {Action.KILL: -9, Action.TERM: 143, Action.FULL: 75}[action], struck.stderr
            left = contents(str(out))
            hidden = [name for name in left if name.rpartition("/")[2].startswith(".")]
            assert {name: digest for name, digest in left.items() if name not in hidden}.items() <= files.items()
            if action is not Action.KILL:
                assert not hidden, f"{point}: {hidden}"
                assert "Traceback" not in struck.stderr
            if action is Action.FULL:
                assert re.search(rf"{out}\S*: No space left on device; free some space", struck.stderr), struck.stderr
            assert exported(out, nothing).code == 0
            again = contents(str(out))
            assert {name: again[name] for name in again if name not in hidden} == files
    fault_row(
        ROW, "files for people", count, None, f"{len(ran.points[::every])} points, killed, stopped and with a full disk"
    )
