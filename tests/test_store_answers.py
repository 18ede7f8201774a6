"""Answers of S3 that are errors, short or damaged: what is permanent, tried again, fetched again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import FaultyServer, s3_environment

import components.s3_retry
from components.errors import PermanentError, TransientError
from components.store import StoreNotFound, open_store


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


DENIED = b"<Error><Code>%s</Code><Message>no</Message></Error>"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.001)
    with FaultyServer() as server, s3_environment(server.url, secret="s3cr3t-key"):
        yield server


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        (b"SignatureDoesNotMatch", 403, "refuses the credentials"),
        (b"InvalidAccessKeyId", 403, "refuses the credentials"),
        (b"AccessDenied", 403, "access denied"),
        (b"NoSuchBucket", 404, "no such bucket"),
    ],
)
def test_what_is_permanent(faulty: FaultyServer, code: bytes, status: int, says: str) -> None:
    faulty.answer = lambda number, method: (status, DENIED % code)
    for work in (lambda s: s.get_bytes("a"), lambda s: s.put_bytes("a", b"x"), lambda s: s.list()):
        with pytest.raises(PermanentError, match=says) as caught:
            work(open_store("s3://bucket/x"))
        assert "s3cr3t" not in str(caught.value)
        assert not isinstance(caught.value, StoreNotFound)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_failing_service_is_tried_again(faulty: FaultyServer, status: int) -> None:
    place = open_store("s3://bucket/x")
    faulty.answer = lambda number, method: (status, DENIED % b"SlowDown") if number < 3 else (200, b"data")
    assert place.get_bytes("a") == b"data"
    faulty.requests = 0
    faulty.answer = lambda number, method: (status, DENIED % b"SlowDown")
    with pytest.raises(TransientError, match="try again"):
        place.put_bytes("a", b"x")
    assert faulty.requests == components.s3_retry.RETRIES + 1


def test_a_short_body_is_fetched_again(faulty: FaultyServer) -> None:
    place = open_store("s3://bucket/x")
    faulty.cut = lambda number: number == 1
    faulty.answer = lambda number, method: (200, b"0123456789")
    assert place.get_bytes("a") == b"0123456789"
    faulty.requests = 0
    with place.local("a", sha256(b"0123456789")) as path:
        assert path.read_bytes() == b"0123456789"
    faulty.cut = lambda number: True
    with pytest.raises(TransientError):
        place.get_bytes("a")


def test_a_flipped_byte_is_fetched_again(faulty: FaultyServer) -> None:
    place = open_store("s3://bucket/x")
    faulty.answer = lambda number, method: (200, b"damagf" if number == 1 else b"damage")
    with place.local("a", sha256(b"damage")) as path:
        assert path.read_bytes() == b"damage"
    faulty.answer = lambda number, method: (200, b"damagf")
    with pytest.raises(PermanentError, match="sha256"), place.local("a", sha256(b"damage")):
        pytest.fail("a damaged file was handed out")


def test_content_that_comes_short_or_damaged_is_fetched_again(faulty: FaultyServer) -> None:
    place, data = open_store("s3://bucket/x"), b"0123456789"
    for wrong in (b"01234_6789", b"0123456789more", b"0123"):
        faulty.requests = 0
        faulty.cut = lambda number: number == 1
        faulty.answer = lambda number, method, wrong=wrong: (200, wrong if number == 2 else data)
        with place.content("a", sha256(data), len(data)) as found:
            assert not isinstance(found, Path)
            assert found[:] == data
        assert faulty.requests == 3
    faulty.answer = lambda number, method: (200, b"012345678_")
    with pytest.raises(PermanentError, match="sha256"), place.content("a", sha256(data), len(data)):
        pytest.fail("a damaged file was handed out")
    faulty.cut = lambda number: True
    with pytest.raises(TransientError), place.content("a", sha256(data), len(data)):
        pytest.fail("half a file was handed out")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.001)
    with s3_environment("http://127.0.0.1:9"), pytest.raises(TransientError, match="no answer"):
        open_store("s3://bucket/x").put_bytes("a", b"")
