"""Outages on this machine's side in the middle of a list: rows that they cost are asked again, not kept as failed."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from url_lists import PICTURES, outcomes, params, table
from web import web_server

from components.download import request, stage
from components.download.names import HostUnanswered, Names
from components.download.outage import check_outage
from components.download.request import Client
from components.download.table import Row
from components.errors import TransientError
from components.images import ImageError
from components.manifest import SampleNote
from components.url_params import UrlParams

resolve = socket.getaddrinfo
Known = Callable[[str], bool]


def names(monkeypatch: pytest.MonkeyPatch, known: Known, unanswered: Known = lambda host: False) -> None:
    """A resolver for *.test: this machine, or "try again", or, where it is neither, that there is no such name."""

    def answer(host: Any, *more: Any, **options: Any) -> Any:
        if not str(host).endswith(".test"):
            return resolve(host, *more, **options)
        if unanswered(host):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if known(host):
            return resolve("127.0.0.1", *more, **options)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", answer)


def test_an_outage_of_a_whole_shard_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, lambda host: False, lambda host: True)
    urls = [f"http://pictures.test/{row}" for row in range(12)]
    urls[::5] = ["", "http://10.0.0.1/x", "ftp://x/"]  # which nobody is asked for
    path = table(tmp_path / "list.csv", urls)
    with pytest.raises(TransientError, match=r"no_name_server.*run the same command again"):
        stage.run(params(path, retries=0), store=str(tmp_path / "store"))
    assert not list((tmp_path / "store").rglob("_done/*"))


def test_an_outage_in_the_middle_of_a_shard_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty hosts; the name servers go away after the fifteenth row, and are back for the second run."""
    away = threading.Event()
    names(monkeypatch, lambda host: True, lambda host: away.is_set())
    answer = socket.getaddrinfo

    def counted(host: Any, *more: Any, **options: Any) -> Any:
        asked.append(host)
        if len(asked) > 15 and not back.is_set():
            away.set()
        return answer(host, *more, **options)

    asked: list[Any] = []
    back = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", counted)
    with web_server(PICTURES) as web:
        port = web.url.rpartition(":")[2]
        path = table(tmp_path / "list.csv", [f"http://h{row}.test:{port}/ok/{row}" for row in range(30)])
        given = params(path, retries=0, robots=False, concurrency=1)
        with pytest.raises(TransientError, match=r"addresses of shard 1 .*no_name_server.*name servers, and run"):
            stage.run(given, store=str(tmp_path / "store"))
        kept = list((tmp_path / "store").rglob("_done/*"))
        back.set()
        away.clear()
        report = stage.run(given, store=str(tmp_path / "store"))
    assert len(kept) == 1
    assert report.manifest.counts["ok"] == 30


def test_a_host_whose_own_name_servers_fail_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, lambda host: True, lambda host: host == "broken.test")
    with web_server(PICTURES) as web:
        port = web.url.rpartition(":")[2]
        hosts = ["broken.test" if row % 4 == 3 else f"h{row}.test" for row in range(40)]
        path = table(tmp_path / "list.csv", [f"http://{host}:{port}/ok/{row}" for row, host in enumerate(hosts)])
        report = stage.run(params(path, retries=0), store=str(tmp_path / "store"))
    found = outcomes(report.url)
    assert {row for row, (outcome, _) in found.items() if outcome == "failed"} == set(range(3, 40, 4))
    assert {reason for _, reason in found.values()} <= {"", "no_name_server", "name_unanswered"}


def broken_late(row: int, every: int) -> str:
    return f"broken{row}.test" if row >= 20 and row % every == 0 else f"h{row}.test"


@pytest.mark.parametrize("retries", [0, 2])
def test_a_few_broken_hosts_stop_nothing_however_fast_they_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    """Nobody else's name is answered meanwhile: the resolver has kept their failure."""
    monkeypatch.setattr(request, "BACKOFF_S", 0.01)
    names(monkeypatch, lambda host: True, lambda host: host.startswith("broken"))
    with web_server(PICTURES) as web:
        port = web.url.rpartition(":")[2]
        hosts = [broken_late(row, 25) for row in range(120)]
        path = table(tmp_path / "list.csv", [f"http://{host}:{port}/ok/{row % 40}" for row, host in enumerate(hosts)])
        given = params(path, retries=retries, robots=False, dedup=False, concurrency=4)
        report = stage.run(replace(given, shard_size=500), store=str(tmp_path / "store"))
    failed = {row: reason for row, (outcome, reason) in outcomes(report.url).items() if outcome == "failed"}
    assert failed == dict.fromkeys(range(25, 120, 25), "name_unanswered")


def test_an_outage_behind_a_cache_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four in five names are answered; the others' servers are away."""
    names(monkeypatch, lambda host: True, lambda host: host.startswith("broken"))
    with web_server(PICTURES) as web:
        port = web.url.rpartition(":")[2]
        hosts = [broken_late(row, 5) for row in range(100)]
        path = table(tmp_path / "list.csv", [f"http://{host}:{port}/ok/{row % 40}" for row, host in enumerate(hosts)])
        given = replace(params(path, retries=0, robots=False), shard_size=100)
        with pytest.raises(TransientError, match=r"16 of the 98 .*name_unanswered .*name servers"):
            stage.run(given, store=str(tmp_path / "store"))


def test_try_again_for_one_name_is_its_hosts_fault_where_another_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    begun, answered, away = threading.Event(), threading.Event(), threading.Event()

    def answer(host: str, *more: Any, **options: Any) -> Any:
        if host.endswith("good.test") and not away.is_set():
            asked.append(host)
            begun.wait(10)
            return resolve("127.0.0.1", *more, **options)
        begun.set()
        answered.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def both() -> None:
        resolver = Names()
        broken = asyncio.ensure_future(resolver.resolve("broken.test", 80))
        await resolver.resolve("good.test", 80)
        answered.set()
        with pytest.raises(HostUnanswered):
            await broken
        with pytest.raises(HostUnanswered):  # one below the other name is answered, that nobody was asked for before
            await resolver.resolve("broken.test", 80)
        assert len({*asked}) == len(asked) == 2
        away.set()
        with pytest.raises(socket.gaierror) as caught:
            await resolver.resolve("broken.test", 80)
        assert not isinstance(caught.value, HostUnanswered)
        with pytest.raises(socket.gaierror) as caught:  # nobody was ever answered
            await Names().resolve("broken.test", 80)
        assert not isinstance(caught.value, HostUnanswered)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    asyncio.run(both())


def test_no_descriptor_left_to_look_up_a_name_is_this_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*asked: Any, **options: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    async def look() -> str:
        async with Client(UrlParams(robots=False), max_bytes=1 << 20) as client:
            monkeypatch.setattr(socket, "getaddrinfo", answer)
            found = await client.get("http://pictures.test/1", retries=0)
            return found.reason if isinstance(found, ImageError) else ""

    assert asyncio.run(look()) == "too_many_files"


def shard(*ended: tuple[str, str, int]) -> tuple[list[Row], list[SampleNote]]:
    """Rows of a shard from (host, reason, how many), an empty reason for good ones."""
    rows: list[Row] = []
    notes = []
    for host, reason, count in ended:
        for _ in range(count):
            key = f"{len(rows):03d}"
            rows.append({"key": key, "url": f"http://{host}/{key}"})
            if reason:
                notes.append(SampleNote(key=key, outcome="failed", reason=reason, detail="detail"))
    return rows, notes


KEPT = {
    "good": [("a", "", 9)],
    "one host": [("a", "timeout", 9)],
    "two hosts": [("a", "timeout", 5), ("b", "no_connection", 5)],
    "unreached, but one": [("a", "timeout", 5), ("b", "host_down", 5), ("c", "no_connection", 5), ("d", "http_404", 1)],
    "one host with IPv6 alone": [("a", "no_network", 50), ("b", "", 50)],
    "a broken delegation": [("a", "no_name_server", 50), ("a", "name_unanswered", 9), ("b", "", 50)],
    "broken delegations": [
        ("a", "name_unanswered", 4),
        ("b", "name_unanswered", 4),
        ("c", "name_unanswered", 1),
        ("d", "", 9),
    ],
    "one in ten": [*((host, "name_unanswered", 10) for host in "abc"), ("d", "", 270)],
    "a redirect to one": [("a", "no_name_server", 2), ("a", "", 38)],
    "a redirect, and a host": [("a", "no_name_server", 1), ("a", "", 60), ("b", "no_name_server", 2)],
    "one in fifty": [("a", "no_name_server", 1), ("b", "no_network", 1), ("c", "no_name_server", 1), ("d", "", 147)],
    "nobody asked": [("a", "bad_url", 3), ("b", "blocked_address", 3), ("c", "no_caption", 3)],
}
NOT_KEPT = {
    "whole": ("no_name_server", [("a", "no_name_server", 9), ("", "bad_url", 3)]),
    "of several": ("no_network", [*((host, "no_network", 1) for host in "abc"), ("d", "", 50)]),
    "of one that answered": ("no_network", [("a", "", 50), ("a", "no_network", 5)]),
    "more than one in fifty": (
        "no_name_server",
        [("a", "no_name_server", 1), ("b", "no_network", 1), ("c", "no_name_server", 1), ("d", "", 146)],
    ),
    "names, but for a cache's": (
        "name_unanswered", [*((host, "name_unanswered", 10) for host in "abc"), ("d", "", 269)],
    ),
    "files": ("ulimit -n", [("a", "too_many_files", 1), ("a", "", 500)]),
    "none reached": (
        "timeout", [("a", "timeout", 5), ("b", "host_down", 3), ("c", "no_connection", 1), ("", "bad_url", 9)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_failures_of_hosts_are_kept(name: str) -> None:
    check_outage(3, *shard(*KEPT[name]))


@pytest.mark.parametrize("name", NOT_KEPT)
def test_failures_of_this_side_are_not(name: str) -> None:
    said, ended = NOT_KEPT[name]
    with pytest.raises(TransientError, match=rf"shard 3.*{said}.*run the same command again"):
        check_outage(3, *shard(*ended))
