"""Large bodies beside others that send their beginning and then next to nothing."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from url_lists import HERE
from web import web_server

from components.download import large, request
from components.download.http import Fetched, Fetcher, Job
from components.download.request import Client
from components.images import ImageError
from components.url_params import UrlParams

SLOW, GOOD = 4, 12


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of bodies that asked to be read on, of which two are at a time, beyond 8 KiB; looked at after .3 s."""
    monkeypatch.setattr(request, "LARGE_BYTES", 8 << 10)
    monkeypatch.setattr(large, "NUM_LARGE", 2)
    monkeypatch.setattr(large, "SLOW_S", 0.3)
    monkeypatch.setattr(large, "SLOW_BYTES", 2048)
    sizes: list[int] = []
    enter = large.LargeBodies.enter

    async def counted(bodies: large.LargeBodies, size: int, *more: asyncio.Timeout) -> large.Large:
        sizes.append(size)
        return await enter(bodies, size, *more)

    monkeypatch.setattr(large.LargeBodies, "enter", counted)
    return sizes


def fetched(timeout_s: float, entered: list[int]) -> tuple[list[Any], list[Any]]:
    """What came of slow ones, which ask first, and of good ones."""
    bodies = {str(number): bytes([number]) * (40 << 10) for number in range(GOOD)}

    def jobs() -> Iterator[Job[str] | None]:
        yield from (Job(f"{web.url}/stall/{number}", "slow") for number in range(SLOW))
        while len(entered) < SLOW:
            yield None
        yield from (Job(f"{web.url}/ok/{number}", "good") for number in range(GOOD))

    given = UrlParams(
        allow_networks=HERE, timeout_s=timeout_s, retries=0, concurrency=64, per_host=64, robots=False
    )  # fmt: skip
    found: dict[str, list[Any]] = {"slow": [], "good": []}
    with web_server(bodies) as web, Fetcher(given, max_bytes=1 << 20) as fetcher:
        for job, outcome in filter(None, fetcher.fetch(jobs())):
            found[job.payload].append(outcome)
    return found["slow"], found["good"]


def test_slow_ones_keep_no_large_one_from_its_body(entered: list[int]) -> None:
    """Two rounds of two slow ones until the good ones' turn: the deadline is long, and nobody waits for it."""
    started = time.monotonic()
    slow, good = fetched(20.0, entered)
    assert [type(outcome) for outcome in good] == [Fetched] * GOOD
    assert {len(outcome.body) for outcome in good} == {40 << 10}
    assert [outcome.reason for outcome in slow] == ["timeout"] * SLOW
    assert all("while others waited" in outcome.detail for outcome in slow)
    assert time.monotonic() - started < 20.0, "one round of slow ones that are left to their deadline takes as long"


def test_who_waits_is_not_charged(monkeypatch: pytest.MonkeyPatch, entered: list[int]) -> None:
    """No slow one is ended before its deadline here, so that the good ones wait for longer than theirs."""
    monkeypatch.setattr(large, "SLOW_BYTES", 0)
    slow, good = fetched(1.0, entered)
    assert [type(outcome) for outcome in good] == [Fetched] * GOOD
    assert [outcome.reason for outcome in slow] == ["timeout"] * SLOW


def test_what_is_refused_holds_nothing_of_its_body() -> None:
    """A traceback would, and until a garbage collection: gigabytes where many bodies have no end."""
    with web_server({"1": bytes(3000)}) as web:
        url = f"{web.url}/ok/1"
        params = UrlParams(retries=0, timeout_s=5.0, allow_networks=("127.0.0.1/32",), robots=False)
        with Fetcher(params, max_bytes=1000) as fetcher:
            (found,) = [one for one in fetcher.fetch(iter([Job(url, url)])) if one is not None]
    assert isinstance(found[1], ImageError)
    assert (found[1].reason, found[1].__traceback__) == ("too_large", None)


def test_what_breaks_off_holds_nothing_of_its_body() -> None:
    """Nor until a garbage collection, for which the client's own reference to the error would wait."""
    size, count = 1 << 20, 8

    def held() -> int:
        return tracemalloc.get_traced_memory()[0]

    async def look() -> int:
        given = UrlParams(allow_networks=HERE, robots=False, timeout_s=5.0)
        async with Client(given, max_bytes=4 * size) as client:
            tracemalloc.start()
            before = held()
            for _ in range(count):
                found = await client.get(f"{web.url}/short/1", retries=0)
                assert isinstance(found, ImageError)
                assert found.reason == "truncated"
            return held() - before

    gc.disable()
    try:
        with web_server({"1": bytes(size)}) as web:
            assert asyncio.run(look()) < count * size / 4, "each has half of its body sent"
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_pause_while_nobody_waited_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stood still and now makes enough is read on; one that does not is ended."""
    monkeypatch.setattr(large, "NUM_LARGE", 1)

    async def ended(size: int) -> bool:
        bodies, scope = large.LargeBodies(), asyncio.timeout(None)
        async with asyncio.timeout(None) as deadline:
            try:
                async with scope:
                    body = await bodies.enter(0, deadline, scope)
                    body.since -= 60  # in which not a byte came
                    other = asyncio.ensure_future(wait(bodies))
                    await asyncio.sleep(0)
                    body.since -= large.SLOW_S
                    body.size = size
                    bodies._look()
                    await asyncio.sleep(0.01)
            except TimeoutError:
                return True
            finally:
                other.cancel()
        return False

    async def wait(bodies: large.LargeBodies) -> None:
        async with asyncio.timeout(None) as deadline, asyncio.timeout(None) as scope:
            await bodies.enter(0, deadline, scope)

    enough = int(large.SLOW_BYTES * (large.SLOW_S + 1))
    assert not asyncio.run(ended(enough))
    assert asyncio.run(ended(enough // 10))
