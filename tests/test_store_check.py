"""`splatclip store check`: every step says ok, or what is wrong; the exit code is the first error's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import Proxy, Rule, fault_proxy
from s3 import FaultyServer, moto_server, new_bucket, s3_environment

import components.s3_retry
import components.store_check
from components.__main__ import main
from components.store import open_store
from components.store_s3 import connect

S3_STEPS = [
    "address",
    "endpoint",
    "TLS",
    "answer",
    "clock",
    "credentials",
    "bucket",
    "list",
    "put",
    "read-back",
    "multipart",
    "list-again",
    "delete",
    "leftovers",
]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.001)
    with fault_proxy(moto) as made, s3_environment(made.url, secret="s3cr3t-key"):
        yield made


def check(url: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str], str]:
    """Exit code, each step's mark, and the whole text."""
    code = main(["store", "check", url])
    text = capsys.readouterr().out
    steps = {line[8:20].strip().replace(" ", "-"): line[:7].strip() for line in text.splitlines()}
    assert "s3cr3t" not in text
    return code, steps, text


def test_a_store_that_works(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    bucket = new_bucket()
    open_store(f"{bucket}/p").put_bytes("mine", b"1")
    code, steps, text = check(f"{bucket}/p", capsys)
    assert (code, [*steps]) == (0, S3_STEPS), text
    assert set(steps.values()) == {"ok"}
    assert "the environment (AWS_ACCESS_KEY_ID)" in text
    assert "in 2 parts, the same bytes" in text
    assert open_store(bucket).list() == ["p/mine"], "nothing is left"


FAULTS = [
    (Rule("403", "GET", "list-type=2"), 42, "bucket", "access denied"),
    (Rule("403", "PUT", "/small"), 42, "put", "access denied"),
    (Rule("flip", "GET", "/small"), 42, "read-back", "damaged in the store"),
    (Rule("403", "PUT", "partNumber=2"), 42, "multipart", "access denied"),
    (Rule("503", "DELETE", "/small"), 75, "delete", "SlowDown"),
]


@pytest.mark.parametrize(("rule", "exit_code", "step", "says"), FAULTS, ids=[fault[2] for fault in FAULTS])
def test_the_first_step_that_fails_decides(
    rule: Rule, exit_code: int, step: str, says: str, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{new_bucket()}/p"
    rule.met = 0
    proxy.reset(rule)
    code, steps, text = check(url, capsys)
    assert code == exit_code, text
    assert next(name for name, mark in steps.items() if mark == "FAILED") == step
    assert says in text
    proxy.reset()
    left = open_store(url).list()
    assert len(left) == (1 if step == "delete" else 0)
    assert not connect()._list_multipart_uploads(url.split("/")[2]).uploads


def test_what_an_upload_left_is_removed(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{new_bucket()}/p"
    proxy.reset(Rule("403", "PUT", "partNumber=2"), Rule("403", "DELETE", "uploadId=", times=1))
    code, steps, text = check(url, capsys)
    assert (code, steps["multipart"], steps["leftovers"]) == (42, "FAILED", "ok")
    assert "but for 1 unfinished uploads, removed" in text
    assert not connect()._list_multipart_uploads(url.split("/")[2]).uploads


def test_an_endpoint_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with s3_environment("http://127.0.0.1:9", secret="s3cr3t-key"):
        code, steps, text = check("s3://bucket/p", capsys)
    assert (code, steps) == (75, {"address": "ok", "endpoint": "FAILED"})
    assert "nothing listens there" in text
    with FaultyServer() as server, s3_environment(server.url.replace("http:", "https:"), secret="s3cr3t-key"):
        code, steps, text = check("s3://bucket/p", capsys)
    assert (code, steps) == (42, {"address": "ok", "endpoint": "ok", "TLS": "FAILED"})
    assert "write http://" in text
    with s3_environment("http://127.0.0.1:9"):
        assert check("s3://no", capsys)[0] == 2


def test_an_endpoint_that_is_not_s3(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    from test_s3_errors import Handler, Server, ago, serving

    with serving(Server(("127.0.0.1", 0), Handler)) as server:
        server.body, server.headers = b"<html>", {"Content-Type": "text/html"}
        with s3_environment(f"http://127.0.0.1:{server.server_port}"):
            code, steps, text = check("s3://bucket/p", capsys)
            assert (code, [*steps][-1]) == (42, "bucket")
            assert "is not S3's" in text
            server.headers = {"Content-Type": "application/xml", "Date": ago(minutes=20)}
            code, steps, text = check("s3://bucket/p", capsys)
            assert code == 42
            assert steps["clock"] == "FAILED"
            assert "20 min ahead of the service's; set the clock" in text


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, steps, text = check(str(tmp_path / "new/store"), capsys)
    assert (code, [*steps]) == (0, ["address", "free-space", "write", "read-back", "fsync", "rename", "delete"]), text
    assert set(steps.values()) == {"ok"}
    assert [*(tmp_path / "new/store").iterdir()] == []
    (tmp_path / "file").write_bytes(b"")
    code, steps, text = check(str(tmp_path / "file/store"), capsys)
    assert (code, steps["write"]) == (42, "FAILED")
    monkeypatch.setattr(components.store_check, "LEAST_FREE", 1 << 60)
    code, steps, text = check(str(tmp_path), capsys)
    assert (code, steps["free-space"], steps["delete"]) == (75, "FAILED", "ok")
    assert "make room" in text


def test_a_folder_whose_file_system_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Path, target: Path) -> Path:
        if self.name == "temporary":
            raise OSError(95, "Operation not supported")
        return replace(self, target)

    replace = Path.replace
    monkeypatch.setattr(Path, "replace", broken)
    code, steps, text = check(str(tmp_path), capsys)
    assert (code, steps["rename"], steps["delete"]) == (42, "FAILED", "ok")
    assert "Operation not supported; files cannot be renamed here" in text
    assert os.listdir(tmp_path) == []
