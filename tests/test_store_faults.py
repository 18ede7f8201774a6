"""The S3 store behind a proxy that does wrong: the right bytes, or an error of ours before the deadline."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import Proxy, Rule, fault_proxy
from faults import Row
from s3 import moto_server, new_bucket, s3_environment
from swift import ACCESS, SECRET, missing, swift_server
from urllib3 import BaseHTTPResponse

import components.s3_retry
import components.store_s3
from components.errors import PermanentError, SplatClipError, TransientError, UsageError
from components.s3_deadline import DEADLINE_ENV, Limit
from components.s3_retry import Call, Requests
from components.store_s3 import S3Store, connect, open_s3

DEADLINE_S = 4.0  # one try has a quarter of it, on a busy machine, too
SMALL = os.urandom(3000)
LARGE = os.urandom(1 << 20) * 5 + bytes(100_000)  # two parts
Service = tuple[str, str, str]  # endpoint, access key, secret
ROW = "store faults"
FAULTS = ["500", "503", "429", "reset", "stall", "short", "flip"]


@pytest.fixture(scope="module", params=["moto", pytest.param("swift", marks=pytest.mark.full)])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    if request.param == "moto":
        with moto_server() as url:
            yield url, "test", "test-secret"
    elif why := missing():
        pytest.fail(f"{why} (`make test-full` does it where it may)")
    else:
        with swift_server() as url:
            yield url, ACCESS, SECRET


@pytest.fixture
def proxy(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.003)
    monkeypatch.setattr(components.store_s3, "PART_SIZE", 5 << 20)
    monkeypatch.setattr(components.s3_deadline, "SLOWEST_RATE", 1 << 40)  # no time by size: tests are to be short
    monkeypatch.setattr(components.s3_retry, "SLOWEST_RATE", 1 << 40)
    monkeypatch.setenv(DEADLINE_ENV, str(DEADLINE_S))
    url, access, secret = service
    with fault_proxy(url) as made, s3_environment(made.url, access, secret):
        yield made


@pytest.fixture
def place(proxy: Proxy) -> S3Store:
    store = open_s3(f"{new_bucket()}/p")
    proxy.reset()
    return store


@pytest.fixture
def large(tmp_path: Path) -> Path:
    file = tmp_path / "large"
    file.write_bytes(LARGE)
    return file


def uploads(store: S3Store) -> int:
    """Unfinished ones."""
    return len(store.uploads())


def get(store: S3Store, file: Path) -> None:
    assert store.get_bytes("small") == SMALL


def put(store: S3Store, file: Path) -> None:
    store.put_bytes("new", SMALL)


def put_large(store: S3Store, file: Path) -> None:
    store.put_file("new-large", file)


def listed(store: S3Store, file: Path) -> None:
    assert store.list() == ["large", "small"]


WORK: dict[str, tuple[Callable[[S3Store, Path], None], str, str]] = {
    "get": (get, "GET", r"/p/small"),
    "put": (put, "PUT", r"/p/new"),
    "part": (put_large, "PUT", r"partNumber=2"),
    "complete": (put_large, "POST", r"uploadId="),
    "list": (listed, "GET", r"list-type=2"),
}


def check_all_there(store: S3Store, proxy: Proxy, work: Callable[[S3Store, Path], None]) -> None:
    """What the work claims to have written is there, byte for byte."""
    proxy.reset()
    if work is put:
        assert store.get_bytes("new") == SMALL
    if work is put_large:
        assert store.get_bytes("new-large") == LARGE
        assert uploads(store) == 0


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_not_noticed(
    fault: str, name: str, place: S3Store, proxy: Proxy, large: Path, fault_row: Row
) -> None:
    work, method, pattern = WORK[name]
    place.put_bytes("small", SMALL)
    place.put_bytes("large", b"1")
    proxy.reset(Rule(fault, method, pattern, times=1))
    begun = time.monotonic()
    work(place, large)
    assert time.monotonic() - begun < DEADLINE_S
    assert proxy.rules[0].met == 1, "the fault was met, and hidden"
    assert proxy.requests <= 8
    check_all_there(place, proxy, work)
    fault_row(ROW, f"{name}, passes", 1)


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_in_an_error_before_the_deadline(
    fault: str, name: str, place: S3Store, proxy: Proxy, large: Path, service: Service, fault_row: Row
) -> None:
    fault_row(ROW, f"{name}, stays", 1)
    work, method, pattern = WORK[name]
    place.put_bytes("small", SMALL)
    place.put_bytes("large", b"1")
    proxy.reset(Rule(fault, method, pattern))
    begun = time.monotonic()
    done = name == "complete" and fault in {"stall", "short", "flip"}  # and nobody hears of it, but it is there
    with (
        nullcontext() if done else pytest.raises(SplatClipError, match=r"s3://.*(again|damaged in the store)") as caught
    ):
        work(place, large)
    if caught:
        assert isinstance(caught.value, TransientError) or (fault, name) == ("flip", "get")
        assert service[2] not in str(caught.value)
    assert time.monotonic() - begun < DEADLINE_S * 1.05
    assert proxy.requests <= 3 * (components.s3_retry.RETRIES + 1) + 3
    proxy.reset()
    assert uploads(place) == 0, "a failed upload was taken back"
    for written in place.list("new"):  # done, though nobody heard of it
        assert place.get_bytes(written) == (SMALL if written == "new" else LARGE)


def test_what_is_damaged_on_the_way_up_is_seen_by_the_service_or_by_us(
    place: S3Store, proxy: Proxy, large: Path, service: Service
) -> None:
    proxy.checks_sums = False
    for work, rule in ((put, Rule("flip", "PUT", "/p/new")), (put_large, Rule("flip", "PUT", "partNumber=1"))):
        proxy.reset(rule)
        with pytest.raises(
            TransientError, match="BadDigest" if service[1] == ACCESS else "received other bytes than were sent"
        ):
            work(place, large)
        proxy.reset(Rule("flip", rule.method, rule.pattern, times=1))
        work(place, large)
        check_all_there(place, proxy, work)


def test_at_ten_per_cent_errors_many_objects_cost_less_than_twice_the_requests(
    place: S3Store, proxy: Proxy, service: Service, fault_row: Row
) -> None:
    objects = 1000 if service[1] == ACCESS else 250
    proxy.reset(*(Rule(fault, probability=0.1 / 4) for fault in ("500", "503", "reset", "short")))
    print(f"FAULT_SEED={proxy.seed}")
    contents = [f"{number:04} ".encode() * 20 for number in range(objects)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda at: place.put_bytes(f"{at:04}", contents[at]), range(objects)))
        found = list(threads.map(lambda at: place.get_bytes(f"{at:04}"), range(objects)))
    assert found == contents
    assert 2 * objects * 1.03 < proxy.requests < 2 * objects * 2, f"faults: {[rule.met for rule in proxy.rules]}"
    fault_row(ROW, "10 % errors", objects, proxy.seed, f"{proxy.requests} requests, {2 * objects} without")


def test_a_dripping_body_ends_before_the_deadline(place: S3Store, proxy: Proxy) -> None:
    place.put_bytes("small", SMALL)
    for rule in (Rule("drip", "GET", "/p/small"), Rule("drip", "GET", "list-type=2")):
        proxy.reset(rule)
        begun = time.monotonic()
        with pytest.raises(TransientError, match=f"in time.*{DEADLINE_ENV}"):
            place.get_bytes("small") if "small" in rule.pattern else place.list()
        assert time.monotonic() - begun < DEADLINE_S
        assert proxy.requests > 1, "an attempt leaves time for another"


def test_a_service_that_hangs_ends_before_the_deadline(place: S3Store, proxy: Proxy) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        s3_environment(f"http://127.0.0.1:{silent.getsockname()[1]}"),
    ):
        store = open_s3("s3://bucket/p")
        begun = time.monotonic()
        for work in (store.list, lambda: store.put_bytes("a", LARGE[: 4 << 20])):
            begun = time.monotonic()
            with pytest.raises(TransientError, match="in time"):
                work()
            assert DEADLINE_S / 2 < time.monotonic() - begun < DEADLINE_S


def test_a_signature_that_is_old_is_not_sent_again(
    place: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a long deadline one try may take longer than services take a signature for: 900 s."""
    assert components.s3_retry.MOST_AGE_S < 900 - 120
    monkeypatch.setattr(components.s3_retry, "MOST_AGE_S", 0.5)  # a try has a second
    place.put_bytes("small", SMALL)
    for fault, requests in (("stall", 1), ("reset", 4)):
        proxy.reset(Rule(fault, "GET", times=3))
        if requests == 1:
            with pytest.raises(TransientError, match=r"in time.* \(1 request in"):
                place.get_bytes("small")
        else:
            assert place.get_bytes("small") == SMALL, "a young one is"
        assert proxy.requests == requests


def test_a_service_that_is_busy_for_ever_is_given_up_at_the_deadline(
    place: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components.s3_retry, "RETRIES", 1000)
    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.1)
    proxy.reset(Rule("503"))
    begun = time.monotonic()
    with pytest.raises(TransientError, match=r"SlowDown.*requests in"):
        place.put_bytes("a", b"x")
    assert time.monotonic() - begun < DEADLINE_S
    assert 3 < proxy.requests < 10, "each wait is twice as long as the one before"


def test_retry_after_is_heeded(place: S3Store, proxy: Proxy) -> None:
    proxy.reset(Rule("503", times=1, headers={"Retry-After": "1"}))
    begun = time.monotonic()
    place.put_bytes("a", b"x")
    assert 1 <= time.monotonic() - begun < DEADLINE_S
    for unreadable in ("soon", "9" * 5000):
        proxy.reset(Rule("503", times=1, headers={"Retry-After": unreadable}))
        place.put_bytes("a", b"x")
    proxy.reset(Rule("503", headers={"Retry-After": "30"}))
    begun = time.monotonic()
    with pytest.raises(TransientError):
        place.put_bytes("a", b"x")
    assert time.monotonic() - begun < DEADLINE_S / 2, "waiting that long would outlast the deadline"
    assert proxy.requests == 1


def test_what_is_refused_is_asked_once(place: S3Store, proxy: Proxy) -> None:
    proxy.reset(Rule("403"))
    with pytest.raises(PermanentError, match="access denied"):
        place.put_bytes("a", b"x")
    assert proxy.requests == 1


def test_a_completed_upload_whose_answer_is_lost_counts(place: S3Store, proxy: Proxy, large: Path) -> None:
    proxy.reset(Rule("stall", "POST", "uploadId=", times=1), Rule("404", "POST", "uploadId="))
    place.put_file("x", large)
    assert sum(seen.startswith("HEAD") for seen in proxy.seen) == 1, "the object itself was looked at"
    assert place.get_bytes("x") == LARGE


@pytest.mark.parametrize("status", ["502", "503", "504"])
def test_a_completed_upload_behind_a_gateway_that_gives_up_counts(
    status: str, place: S3Store, proxy: Proxy, large: Path
) -> None:
    """The gateway answers in the service's stead: once, and the service then knows of no upload; or always."""
    proxy.reset(Rule(f"done {status}", "POST", "uploadId=", times=1), Rule("404", "POST", "uploadId="))
    place.put_file("x", large)
    assert sum(seen.startswith("HEAD") for seen in proxy.seen) == 1
    proxy.reset(Rule(f"done {status}", "POST", "uploadId="))
    place.put_file("y", large)
    assert (place.get_bytes("x"), place.get_bytes("y")) == (LARGE, LARGE)
    proxy.reset(Rule(status, "POST", "uploadId="))
    with pytest.raises(TransientError, match="the S3 service"):
        place.put_file("z", large)
    assert not place.exists("z")
    place.put_bytes("z", b"another one")
    with pytest.raises(TransientError, match="the S3 service"):
        place.put_file("z", large)
    assert place.get_bytes("z") == b"another one", "what lies there is looked at, not only whether something does"


def test_parts_that_share_a_slow_line_have_the_time_of_all(
    place: S3Store, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the slowest rate that is promised three parts of 5 MiB at once take as long as 15 MiB."""
    rate = 10 << 20
    monkeypatch.setattr(components.s3_retry, "SLOWEST_RATE", rate)
    times: dict[str, float] = {}
    once = Requests._once

    def seen(self: Requests, call: Call, method: str, url: str, more: dict[str, Any], limit: Limit) -> BaseHTTPResponse:
        times[url] = limit.end - time.monotonic()
        return once(self, call, method, url, more, limit)

    monkeypatch.setattr(Requests, "_once", seen)
    file = tmp_path / "parts"
    file.write_bytes(LARGE * 3)
    place.put_file("x", file)
    place.put_bytes("y", LARGE[: 5 << 20])
    part, alone = (next(left for url, left in times.items() if text in url) for text in ("partNumber=1&", "/p/y"))
    assert part == pytest.approx(DEADLINE_S / 4 + 3 * (5 << 20) / rate, abs=0.2)
    assert alone == pytest.approx(DEADLINE_S / 4 + (5 << 20) / rate, abs=0.2)


def test_parts_stop_when_one_is_given_up(place: S3Store, proxy: Proxy, tmp_path: Path) -> None:
    file = tmp_path / "parts"
    file.write_bytes(LARGE * 10)
    proxy.reset(Rule("403", "PUT", "partNumber="))
    with pytest.raises(PermanentError, match="access denied"):
        place.put_file("x", file)
    assert sum("partNumber=" in seen for seen in proxy.seen) <= 6
    assert proxy.seen[-1].startswith("DELETE"), "taken back"
    proxy.reset()
    assert uploads(place) == 0


def test_an_upload_that_could_not_be_taken_back_is_not_counted(place: S3Store, proxy: Proxy) -> None:
    connect()._create_multipart_upload(place.url.split("/")[2], "p/left", {})
    (upload,) = place.uploads()
    proxy.reset(Rule("503", "DELETE", "uploadId="))
    with pytest.raises(TransientError, match="SlowDown"):
        place.abort(upload)
    proxy.reset(Rule("503", "DELETE", "uploadId=", times=1))
    place.abort(upload)
    assert place.uploads() == []
    place.abort(upload)  # gone already


def test_what_is_damaged_in_the_store_is_said_so(place: S3Store, proxy: Proxy) -> None:
    place.put_bytes("small", SMALL)
    proxy.reset(Rule("flip", "GET"))
    for work in (lambda: place.get_bytes("small"), lambda: place.local("small").__enter__()):
        with pytest.raises(PermanentError, match=r"MD5 is .* twice, the service's ETag says .*: damaged in the store"):
            work()
    proxy.reset(Rule("flip", "GET", times=1))
    with place.local("small") as path:
        assert path.read_bytes() == SMALL


@pytest.mark.parametrize("text", ["0", "soon", "-1", "inf", "nan"])
def test_a_deadline_is_a_number(text: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEADLINE_ENV, text)
    with pytest.raises(UsageError, match=f"{DEADLINE_ENV}={text!r}: give a number of seconds"):
        open_s3("s3://bucket")


def test_calls_in_threads_have_deadlines_of_their_own(place: S3Store, proxy: Proxy) -> None:
    place.put_bytes("small", SMALL)
    proxy.reset(Rule("stall", "GET", "/p/slow"))
    place_of_slow, errors = open_s3(place.url), []

    def slow() -> None:
        try:
            place_of_slow.get_bytes("slow")
        except SplatClipError as error:
            errors.append(error)

    thread = threading.Thread(target=slow)
    thread.start()
    while thread.is_alive():
        assert place.get_bytes("small") == SMALL
    thread.join()
    assert len(errors) == 1
