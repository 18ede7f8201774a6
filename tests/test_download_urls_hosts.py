"""Hosts that addresses name: their rules, their share of requests, slow ones and those that are down."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from url_lists import HERE, PICTURES, params, table
from web import web_server

from components.download import http, robots, stage
from components.download.http import Fetched, Fetcher, Job
from components.download.request import Client, forbids, retry_after
from components.images import ImageError
from components.url_params import UrlParams


@pytest.mark.parametrize("slow", ["hang", "drip"])
def test_slow_ones_hold_up_no_others(slow: str) -> None:
    """Forty of one host that never end, first in the list and more than may run at a time: the host has its share of
    these, and the others are there before its second round has ended.
    """
    with web_server(PICTURES) as web, web_server(PICTURES) as other:
        jobs = [Job(f"{web.url}/{slow}/{number}", slow) for number in range(40)]
        jobs += [Job(f"{other.url}/ok/{number}", "ok") for number in range(40)]
        given = UrlParams(allow_networks=HERE, timeout_s=1.0, retries=0, concurrency=8, per_host=4)
        with Fetcher(given, max_bytes=1 << 20) as fetcher:
            found = [(job.payload, outcome) for job, outcome in filter(None, fetcher.fetch(iter(jobs)))]
    kinds = [kind for kind, _ in found]
    assert {outcome.reason for kind, outcome in found if kind == slow} == {"timeout", "host_down"}
    assert all(isinstance(outcome, Fetched) for kind, outcome in found if kind == "ok")
    last = len(kinds) - 1 - kinds[::-1].index("ok")
    assert kinds[:last].count(slow) <= 4, "one round of them at most"
    assert len(found) == 80


def test_a_host_is_asked_for_no_more_than_its_share_at_a_time(tmp_path: Path) -> None:
    with web_server(PICTURES) as web:
        path = table(tmp_path / "list.csv", [f"{web.url}/wait/{number}" for number in range(40)])
        stage.run(params(path, per_host=3, robots=False), store=str(tmp_path / "store"))
        assert web.most == 3
        assert sum(web.requests.values()) == 40


def test_robots_txt_is_read_once_and_respected(tmp_path: Path) -> None:
    robots = "User-agent: splatclip\nDisallow: /ok/1\n\nUser-agent: *\nDisallow: /\n"
    with web_server(PICTURES, robots) as web:
        path = table(tmp_path / "list.csv", [f"{web.url}/ok/{number}" for number in range(30)])
        report = stage.run(params(path), store=str(tmp_path / "store"))
        assert report.manifest.counts["reasons"] == {"robots": 11}  # 1 and 10 to 19
        assert not any(name.startswith("/ok/1") for name in web.requests)


def test_a_directive_for_another_robot_is_not_ours(tmp_path: Path) -> None:
    with web_server(PICTURES) as web:
        path = table(
            tmp_path / "list.csv", [f"{web.url}/{how}/{number}" for how in ("noai", "ok") for number in range(5)]
        )
        report = stage.run(params(path), store=str(tmp_path / "a"))
        assert report.manifest.counts["reasons"] == {"noai": 4, "duplicate": 1}
        report = stage.run(params(path, robots=False, dedup=False), store=str(tmp_path / "b"))
        assert report.manifest.counts["ok"] == 10


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("7") == 7
    assert retry_after("soon") == retry_after(None) == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_dead_host_does_not_hold_up_the_list(tmp_path: Path) -> None:
    """Three hundred rows of a host that never answers, first: most of them fail without a request."""
    with web_server(PICTURES) as dead, web_server(PICTURES) as web:
        urls = [f"{dead.url}/hang/{row}" for row in range(300)] + [f"{web.url}/ok/{row}" for row in range(40)]
        given = params(table(tmp_path / "list.csv", urls), timeout_s=0.5, retries=0, per_host=4, concurrency=8)
        started = time.monotonic()
        report = stage.run(replace(given, num_test=30), store=str(tmp_path / "store"))
        seconds = time.monotonic() - started
        asked = sum(count for path, count in dead.requests.items() if path.startswith("/hang"))
    assert report.manifest.counts["ok"] == 40
    assert set(report.manifest.counts["reasons"]) == {"timeout", "host_down"}
    assert 8 <= asked < 40
    assert seconds < 25  # one round after the other they take 37


def test_a_host_that_comes_back_is_asked_again() -> None:
    with (
        web_server(PICTURES) as web,
        Fetcher(UrlParams(allow_networks=HERE, timeout_s=0.5, retries=0, per_host=2), max_bytes=1 << 20) as f,
    ):
        urls = [f"{web.url}/hang/{row}" for row in range(6)] + [f"{web.url}/ok/{row % 40}" for row in range(200)]
        found = [result for result in f.fetch(Job(url, url) for url in urls) if result is not None]
    assert len(found) == 206
    good = [job.url for job, outcome in found if isinstance(outcome, Fetched)]
    assert len(good) > 100, "a probe found it up again"


def test_a_row_that_comes_when_its_host_is_down_already_is_the_fiftieth_too() -> None:
    """Each of these was counted twice, when it came and when its turn had come, and the fiftieth was never tried."""
    heard = [threading.Event(), threading.Event()]

    def jobs() -> Iterator[Job[int] | None]:
        yield from (Job(f"{web.url}/hang/{row}", row) for row in range(4))
        yield None
        heard[0].wait(10)
        yield from (Job(f"{web.url}/ok/{row % 40}", row) for row in range(4, 64))
        yield None
        heard[1].wait(10)
        yield from (Job(f"{web.url}/ok/{row % 40}", row) for row in range(64, 94))

    found: dict[int, Any] = {}
    with (
        web_server(PICTURES) as web,
        Fetcher(UrlParams(allow_networks=HERE, timeout_s=0.2, retries=0, per_host=2), max_bytes=1 << 20) as fetcher,
    ):
        for job, outcome in filter(None, fetcher.fetch(jobs())):
            found[job.payload] = outcome
            if len(found) in {4, 64}:
                heard[len(found) // 64].set()
    good = [row for row in sorted(found) if isinstance(found[row], Fetched)]
    assert good == [4 + 49, *range(64, 94)], "one of the first fifty, and all that came after it"
    assert {found[row].reason for row in range(4, 64) if row != 53} == {"host_down"}


@pytest.mark.parametrize(
    ("more", "read"), [("Disallow: /b\n" * 1000, 4), (f"Disallow: /{'b' * 150_000}\n", 4), ("", 3)],
    ids=["many", "long", "few"],
)  # fmt: skip
def test_rules_of_many_hosts_do_not_add_up(more: str, read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each host may have 500 KiB of them, which are megabytes in memory. Here two hosts' fit in, and not three's."""
    monkeypatch.setattr(robots, "MAX_HELD", 400_000)

    async def look() -> None:
        async with aiohttp.ClientSession() as session:
            rules = robots.Robots(session, agent="splatclip", timeout_s=5.0)
            for name in "abacac":
                host = web.url.replace("//", f"//{name}@")
                assert await rules.allow(f"{host}/ok/1")
                assert not await rules.allow(f"{host}/a")

    with web_server(PICTURES, f"User-agent: *\nDisallow: /a\n{more}") as web:
        asyncio.run(look())
    assert web.requests["/robots.txt"] == read


def test_robots_that_are_away_for_a_moment_do_not_lose_the_host(tmp_path: Path) -> None:
    with web_server(PICTURES, robots_at_first="503") as web:
        path = table(tmp_path / "list.csv", [f"{web.url}/ok/{row}" for row in range(20)])
        report = stage.run(params(path), store=str(tmp_path / "store"))
        assert web.requests["/robots.txt"] == 2
    assert report.manifest.counts["ok"] == 20


@pytest.mark.parametrize("how", ["reset", "short", "hang", "503"])
def test_robots_that_are_not_whole_at_first_are_asked_for_again(how: str, tmp_path: Path) -> None:
    """They counted as a host that allows everything, for the rest of the run."""
    with web_server(PICTURES, "User-agent: *\nDisallow: /ok/1\n", robots_at_first=how) as web:
        path = table(tmp_path / "list.csv", [f"{web.url}/ok/{row}" for row in range(20)])
        report = stage.run(params(path, timeout_s=0.5, retries=2), store=str(tmp_path / "store"))
        assert web.requests["/robots.txt"] == 2 + (how == "reset")  # aiohttp itself tries those again once
        assert not any(name.startswith("/ok/1") for name in web.requests)
    assert report.manifest.counts["reasons"] == {"robots": 11}
    assert report.manifest.counts["ok"] == 9


@pytest.mark.parametrize(("how", "reason"), [("short", "robots_unavailable"), ("reset", "no_connection")])
def test_nothing_is_fetched_where_there_are_no_robots_to_be_had(how: str, reason: str, tmp_path: Path) -> None:
    with web_server(PICTURES, robots_at_first=how) as web, web_server(PICTURES) as other:
        path = table(tmp_path / "list.csv", [f"{web.url}/ok/0", *(f"{other.url}/ok/{row}" for row in range(1, 9))])
        report = stage.run(params(path, retries=0), store=str(tmp_path / "store"))
        assert set(web.requests) == {"/robots.txt"}
    assert report.manifest.counts["reasons"] == {reason: 1}


@pytest.mark.parametrize(
    ("where", "reason"), [("10.0.0.1/", "robots_unavailable"), ("127.0.0.1:1/", "robots_unavailable"), ("[", "")]
)
def test_robots_that_lead_elsewhere(where: str, reason: str) -> None:
    """To where nothing can be reached: nothing is fetched; to what is no address: there are no rules."""

    async def look() -> str:
        async with Client(UrlParams(allow_networks=HERE), max_bytes=1 << 20) as client:
            found = await client.get(f"{web.url}/ok/1", retries=0)
            return "" if isinstance(found, Fetched) else found.reason

    with web_server(PICTURES, robots_at_first=f"out/{where}") as web:
        assert asyncio.run(look()) == reason
    assert web.requests["/ok/1"] == (not reason)


def test_rules_that_nobody_waits_for_any_more_end_without_a_word() -> None:
    """They have the time of an attempt, and begin within one."""
    said: list[Any] = []

    async def look() -> str:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
        async with Client(UrlParams(allow_networks=HERE, timeout_s=0.3), max_bytes=1 << 20) as client:
            found = await client.get(f"{web.url}/ok/1", retries=0)
            await asyncio.sleep(0.3)
            return found.reason if isinstance(found, ImageError) else ""

    with web_server(PICTURES, robots_at_first="hang") as web:
        assert asyncio.run(look()) in {"timeout", "robots_unavailable"}
        gc.collect()
    assert said == []


def test_requests_go_on_while_a_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were held up with it, and took the pause for their servers'."""
    monkeypatch.setattr(http, "WINDOW", 2)
    with web_server(PICTURES) as web:

        def jobs() -> Iterator[Job[int]]:
            for row in range(10):
                if row == 7:
                    time.sleep(1.5)
                yield Job(f"{web.url}/{'ok' if row else 'slow'}/{row}", row)

        given = UrlParams(allow_networks=HERE, timeout_s=0.7, retries=0, concurrency=2, per_host=2)
        with Fetcher(given, max_bytes=1 << 20) as fetcher:
            found = {job.payload: outcome for job, outcome in filter(None, fetcher.fetch(jobs()))}
    assert {row: type(outcome) for row, outcome in found.items()} == dict.fromkeys(range(10), Fetched)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("noai, noimageai, max-image-preview:large", "noai"), ("noindex, max-snippet:-1", "noindex"),
        ("max-video-preview:-1, noai", "noai"), ("splatclip: noai", "noai"), ("other: noai", ""), ("all", ""),
    ],
)  # fmt: skip
def test_directives_of_headers(line: str, found: str) -> None:
    assert forbids({"X-Robots-Tag": line}, "splatclip") == found
