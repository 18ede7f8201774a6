"""The webhook: told in JSON, three tries, never a failure, and nothing of its address in any word."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hooks import HIDDEN, Hook, listening

from components import webhook
from components.operations import NotifyParams
from components.webhook import VARIABLE, configured, tell

HERE = NotifyParams(allow_http=True, timeout_s=5)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    with listening() as server:
        monkeypatch.setenv(VARIABLE, server.url)
        monkeypatch.setattr(webhook, "FIRST_WAIT_S", 0.01)
        yield server


def test_it_is_told_once_and_in_json(hook: Hook, capsys: pytest.CaptureFixture[str]) -> None:
    assert configured()
    assert tell({"event": "finished", "name": "Schloß"}, HERE)
    assert hook.seen == [(f"/hooks/{HIDDEN}", {"event": "finished", "name": "Schloß"})]
    assert capsys.readouterr() == ("", "")


def test_secrets_in_addresses_do_not_get_into_the_body(hook: Hook) -> None:
    assert tell({"message": "no answer from https://user:pass@host/x?sig=abc"}, HERE)
    assert hook.seen[0][1] == {"message": "no answer from https://***@host/x?sig=***"}


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\0\1\2 no http\r\n\r\n")


@pytest.mark.parametrize("first", [500, 503, 429, 408, hang_up, garbage])
def test_what_may_pass_is_tried_three_times(hook: Hook, first: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hook.answers = [first, first, 204]
    assert tell({}, HERE)
    assert len(hook.seen) == 3
    words = capsys.readouterr().err
    assert words.count("try ") == 2
    assert HIDDEN not in words
    hook.seen.clear()
    hook.answers = [first]
    assert not tell({}, HERE)
    assert len(hook.seen) == 3
    words = capsys.readouterr().err
    assert "the webhook at 127.0.0.1 was not told: " in words.splitlines()[-1]
    assert HIDDEN not in words


@pytest.mark.parametrize("answer", [400, 401, 404, 410, 302, 307])
def test_what_stays_is_not_tried_again_and_nobody_is_sent_on(
    hook: Hook, answer: int, capsys: pytest.CaptureFixture[str]
) -> None:
    hook.answers = [answer]
    assert not tell({}, HERE)
    assert [path for path, _ in hook.seen] == [f"/hooks/{HIDDEN}"]
    words = capsys.readouterr().err
    assert f"was not told: it answered {answer}" in words
    assert HIDDEN not in words


def test_it_does_not_wait_for_a_slow_one(hook: Hook, capsys: pytest.CaptureFixture[str]) -> None:
    hook.answers = [lambda handler: time.sleep(5)]
    started = time.monotonic()
    assert not tell({}, NotifyParams(allow_http=True, timeout_s=0.2))
    assert time.monotonic() - started < 4
    words = capsys.readouterr().err
    assert "ReadTimeoutError" in words
    assert HIDDEN not in words


def test_nobody_there(hook: Hook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{port}/{HIDDEN}")
    assert not tell({}, HERE)
    words = capsys.readouterr().err
    assert "was not told: NewConnectionError" in words
    assert HIDDEN not in words


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"http://host/{HIDDEN}", "is an http address, which everybody on the way could read"),
        (f"ftp://host/{HIDDEN}", "is no https address"),
        (f"https:///{HIDDEN}", "is no https address"),
        (f"https://host:99999/{HIDDEN}", "is no https address"),
        (f"https://[{HIDDEN}", "is no https address"),
        (HIDDEN, "is no https address"),
    ],
)
def test_only_https_unless_allowed(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, address)
    assert not tell({}, NotifyParams())
    words = capsys.readouterr().err
    assert said in words
    assert HIDDEN not in words


def test_without_one_nothing_happens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(VARIABLE, " ")
    assert not configured()
    assert not tell({}, NotifyParams())
    monkeypatch.delenv(VARIABLE)
    assert not tell({}, NotifyParams())
    assert capsys.readouterr() == ("", "")
