"""The store: the same on a folder and on S3, and clear about names and addresses that make no sense."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from s3 import moto_server, new_bucket, s3_environment

import components.store_s3
from components.__main__ import main
from components.errors import PermanentError, UsageError
from components.store import FolderStore, Store, StoreNotFound, check_name, open_store


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    request.getfixturevalue("endpoint")
    return open_store(f"{new_bucket()}/some/prefix")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_put_get_list_delete(place: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"from a file")
    place.put_bytes("b/two.txt", b"2")
    place.put_bytes("b/one.txt", b"old")
    place.put_bytes("b/one.txt", b"one")
    place.put_file("a.bin", file)
    place.put_bytes("é ü.txt", b"")
    assert file.read_bytes() == b"from a file"
    assert place.list() == ["a.bin", "b/one.txt", "b/two.txt", "é ü.txt"]
    assert place.list("b/") == place.list("b") == ["b/one.txt", "b/two.txt"]
    assert place.list("b/t") == ["b/two.txt"]
    assert place.list("nothing/") == []
    assert place.get_bytes("b/one.txt") == b"one"
    assert place.get_bytes("a.bin") == b"from a file"
    assert (place.size("a.bin"), place.size("é ü.txt")) == (11, 0)
    assert place.exists("a.bin")
    assert not place.exists("b")
    assert not place.exists("a")
    place.delete("a.bin")
    place.delete("a.bin")
    assert not place.exists("a.bin")


def test_a_missing_file_is_named(place: Store) -> None:
    for work in (place.get_bytes, place.size, lambda name: place.local(name).__enter__()):
        with pytest.raises(StoreNotFound, match=r"no file 'x/y\.txt'"):
            work("x/y.txt")


def test_sub_is_the_same_place(place: Store) -> None:
    place.sub("stage/key").put_bytes("x", b"1")
    assert place.list() == ["stage/key/x"]
    assert place.sub("stage").sub("key").get_bytes("x") == b"1"
    assert place.sub("stage/key").url == f"{place.url}/stage/key"


def test_entries_tell_size_and_age_and_are_removed_as_listed(place: Store) -> None:
    before = time.time()
    place.put_bytes("b/two", b"22")
    place.put_bytes("one", b"1")
    found = {file.name: file for file in place.entries()}
    assert {name: file.bytes for name, file in found.items()} == {"b/two": 2, "one": 1}
    assert all(before - 2 < file.modified < time.time() + 2 for file in found.values())
    assert [file.name for file in place.sub("b").entries()] == ["two"]
    assert list(place.sub("nothing").entries()) == []
    assert not place.remove(replace(found["one"], modified=before - 100)), "written to since it was listed"
    assert not place.remove(replace(found["one"], bytes=3))
    assert place.list() == ["b/two", "one"]
    assert place.remove(found["one"])
    assert not place.remove(found["one"])
    assert place.list() == ["b/two"]
    assert place.uploads() == []


def test_uploads_in_parts_are_listed_and_given_up(endpoint: str) -> None:
    bucket = new_bucket()
    place = components.store_s3.open_s3(f"{bucket}/p")
    for name in ("p/a b.tar", "p/c", "q/d"):
        place._client._create_multipart_upload(bucket.removeprefix("s3://"), name, {})
    found = place.uploads()
    assert sorted(upload.name for upload in found) == ["a b.tar", "c"]
    for upload in found:
        place.abort(upload)
        place.abort(upload)
    assert place.uploads() == []
    assert len(components.store_s3.open_s3(bucket).uploads()) == 1


def test_local_checks_the_sum(place: Store) -> None:
    place.put_bytes("dir/a.tar", b"content")
    with place.local("dir/a.tar", sha256(b"content")) as path:
        assert path.read_bytes() == b"content"
        assert path.suffix == ".tar"
    other = sha256(b"other")
    with pytest.raises(PermanentError) as caught, place.local("dir/a.tar", other):
        pytest.fail("a damaged file was handed out")
    assert other in str(caught.value)
    assert sha256(b"content") in str(caught.value)


BAD_NAMES = ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/.", "a\\b", "a\0b", "a\nb", "a/.tmp-1", "\ud800"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused(place: Store, name: str) -> None:
    for work in (place.get_bytes, place.exists, place.delete, place.sub, lambda n: place.put_bytes(n, b"")):
        with pytest.raises(UsageError, match="store name"):
            work(name)


@settings(max_examples=60, deadline=None)
@given(name=st.text(min_size=1, max_size=40))
@example(name="..")
@example(name="a/..")
@example(name="a b/ä.tar")
def test_any_name_is_refused_or_stays_inside(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = FolderStore(f"{folder}/store")
        try:
            check_name(name)
        except UsageError:
            with pytest.raises(UsageError):
                place.put_bytes(name, b"x")
            assert os.listdir(folder) == []
            return
        place.put_bytes(name, b"x")
        assert place.list() == [name]
        assert os.listdir(folder) == ["store"]
        assert place.get_bytes(name) == b"x"


def test_addresses_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_environment("http://127.0.0.1:9"):
        for url in ("", "gs://bucket", "s3://", "s3://ab/x", "s3://bad bucket", "s3://bucket/../x"):
            with pytest.raises(UsageError):
                open_store(url)
        for url in ("s3://abc..def/p", "s3://192.168.1.1/p", "s3://-abc/p", "s3://abc.-def"):
            with pytest.raises(UsageError, match=f"^{url!r}: .*bucket name"):
                open_store(url)
    with s3_environment("localhost:9000"), pytest.raises(UsageError, match="http://"):
        open_store("s3://bucket")
    with s3_environment("http://localhost:9000", secret=""), pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY"):
        open_store("s3://bucket")


@pytest.mark.parametrize(
    ("endpoint_url", "region", "says"),
    [
        ("https://my-bucket.s3.amazonaws.com", "eu-west-1", "invalid Amazon AWS host my-bucket.*without a bucket"),
        ("https://vpce-0a.s3.eu-west-1.vpce.amazonaws.com", "eu-west-1", "invalid .*https://bucket.vpce-"),
        ("http://localhost:9000", "eu_west 1", "AWS_REGION 'eu_west 1': invalid region"),
        ("http://minio..svc:9000", "us-east-1", "give the S3 endpoint as http://host:port"),
        (f"http://{'x' * 64}.svc:9000", "us-east-1", "give the S3 endpoint as http://host:port"),
    ],
)
def test_settings_that_are_typing_errors(
    endpoint_url: str, region: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with s3_environment(endpoint_url, secret="s3cr3t-key"):
        monkeypatch.setenv("AWS_REGION", region)
        with pytest.raises(UsageError, match=f"^AWS_ENDPOINT_URL.*{says}"):
            open_store("s3://bucket/p")
        for command in (["verify", "s3://bucket/p"], ["gc", "s3://bucket/p"]):
            assert main(command) == 2
        if "svc" in endpoint_url:  # the others are asked first whether they are there
            assert main(["store", "check", "s3://bucket/p"]) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "s3cr3t" not in out + err


def test_a_large_file_goes_up_in_parts(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components.store_s3, "PART_SIZE", 5 << 20)
    data = os.urandom(1 << 20) * 12
    file = tmp_path / "large"
    file.write_bytes(data)
    place = components.store_s3.open_s3(f"{new_bucket()}/p")
    place.put_file("large", file)
    place.put_bytes("again", data)
    assert place.stat("large")[1].endswith("-3")  # S3's mark of an upload in three parts
    for name in ("large", "again"):
        with place.local(name, sha256(data)) as path:
            assert path.stat().st_size == len(data)


def test_a_missing_bucket_is_named(endpoint: str) -> None:
    place = open_store("s3://no-such-bucket/x")
    for work in (lambda: place.put_bytes("a", b""), place.list):
        with pytest.raises(PermanentError, match="no such bucket; create it"):
            work()


def test_content_is_in_memory_where_it_is_small(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 40
    place.put_bytes("a.tar", data)
    with place.content("a.tar", sha256(data), len(data)) as found:
        if isinstance(found, Path):
            assert place.url.partition("://")[0] != "s3"
            assert found.read_bytes() == data
        else:
            view = memoryview(found)[256:512]
            assert found[:] == data
    if not isinstance(found, Path):
        assert bytes(view) == data[256:512], "a view outlives the context"
        view.release()
        with pytest.raises(PermanentError, match=f"{len(data)} bytes, where its manifest says 9"):
            place.content("a.tar", sha256(data), 9).__enter__()
        with pytest.raises(PermanentError, match=f"{len(data)} bytes, where its manifest says 99999"):
            place.content("a.tar", sha256(data), 99999).__enter__()
    with pytest.raises(PermanentError, match="sha256"), place.content("a.tar", sha256(b"other"), len(data)):
        pytest.fail("a damaged file was handed out")
    with pytest.raises(StoreNotFound), place.content("b.tar", sha256(data), len(data)):
        pytest.fail("there is no such file")
    monkeypatch.setattr(components.store_s3, "MOST_IN_MEMORY", len(data) - 1)
    with place.content("a.tar", sha256(data), len(data)) as found:
        assert isinstance(found, Path)
        assert found.read_bytes() == data
