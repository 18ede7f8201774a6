"""The store and the download stage on a real S3 server that checks signatures."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import minio.api
import pytest
from fault_proxy import Rule, fault_proxy
from s3 import new_bucket, s3_environment
from swift import ACCESS, SECRET, missing, swift_server

import components.store_s3
from components import s3_errors
from components.__main__ import main
from components.config import DownloadParams
from components.download import stage
from components.errors import PermanentError
from components.store import StoreNotFound, open_store
from components.store_check import check_store

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def swift() -> Iterator[str]:
    if why := missing():
        pytest.fail(f"{why} (`make test-full` does it where it may)")
    with swift_server() as url:
        yield url


def test_everything_the_store_does(swift: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components.store_s3, "PART_SIZE", 5 << 20)
    with s3_environment(swift, ACCESS, SECRET):
        place = open_store(f"{new_bucket()}/deep/prefix")
        place.put_bytes("a/b ü.txt", b"old")
        place.put_bytes("a/b ü.txt", b"new")
        data = os.urandom(12 << 20)
        file = tmp_path / "large"
        file.write_bytes(data)
        place.put_file("large", file)
        assert place.list() == ["a/b ü.txt", "large"]
        assert place.get_bytes("a/b ü.txt") == b"new"
        assert (place.size("large"), place.exists("none")) == (len(data), False)
        with place.local("large", hashlib.sha256(data).hexdigest()) as path:
            assert path.read_bytes() == data
        place.delete("large")
        place.delete("large")
        with pytest.raises(StoreNotFound):
            place.get_bytes("large")
        with pytest.raises(PermanentError, match="no such bucket"):
            open_store("s3://no-such-bucket").put_bytes("a", b"")


@pytest.mark.parametrize(
    ("access", "secret", "name", "behind_min", "says"),
    [
        (ACCESS, "wrong-secret", "", 0, "refuses the credentials (SignatureDoesNotMatch)"),
        ("nobody:here", SECRET, "", 0, "refuses the credentials (SignatureDoesNotMatch)"),
        (ACCESS, SECRET, "s3://no-such-bucket", 0, "no such bucket; create it"),
        (ACCESS, SECRET, "", 25, "refuses the request's time (RequestTimeTooSkewed)"),
    ],
)
@pytest.mark.parametrize("command", ["download", "verify", "gc"])
def test_what_is_wrong_is_one_line_and_exit_code_42(
    swift: str,
    access: str,
    secret: str,
    name: str,
    behind_min: int,
    says: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with s3_environment(swift, ACCESS, SECRET):
        bucket = new_bucket()
    params = tmp_path / "params.yaml"
    params.write_text("download: {image_size: 16, num_train: 8, num_val: 0, num_test: 4}\n")
    store = f"{name or bucket}/runs"
    stage = ["download", "--params", str(params), "--store", store]
    monkeypatch.setattr(
        minio.api.time, "utcnow", lambda: datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=behind_min)
    )
    monkeypatch.setattr(s3_errors, "time", SimpleNamespace(time=lambda: time.time() - 60 * behind_min))
    with s3_environment(swift, access, secret):
        assert main(stage if command == "download" else [command, store]) == 42
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert store in line
    assert says in line
    assert secret not in line


def test_download_writes_the_same_bytes(swift: str, tmp_path: Path) -> None:
    params = DownloadParams(image_size=16, shard_size=8, num_train=20, num_val=4, num_test=4)
    here = open_store(stage.run(params, store=str(tmp_path)).url)
    with s3_environment(swift, ACCESS, SECRET):
        there = open_store(stage.run(params, store=f"{new_bucket()}/runs").url)
        assert here.list() == there.list()
        assert all(here.get_bytes(name) == there.get_bytes(name) for name in here.list())


def test_the_check_goes_through(swift: str, capsys: pytest.CaptureFixture[str]) -> None:
    with s3_environment(swift, ACCESS, SECRET):
        assert check_store(f"{new_bucket()}/p") == 0
        text = capsys.readouterr().out
        assert "5242881 bytes in 2 parts, the same bytes" in text
        assert "leftovers    none" in text


def test_what_is_damaged_on_the_way_up_is_refused_and_sent_again(swift: str) -> None:
    with s3_environment(swift, ACCESS, SECRET):
        bucket = new_bucket()
    with fault_proxy(swift) as proxy, s3_environment(proxy.url, ACCESS, SECRET):
        proxy.checks_sums = False  # Swift does
        proxy.reset(Rule("flip", "PUT", times=1))
        place = open_store(bucket)
        place.put_bytes("a", b"content")
        assert proxy.rules[0].met == 1
        assert place.get_bytes("a") == b"content"
