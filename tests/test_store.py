"""The store: the same on a folder and on S3, atomic, and clear about what is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from s3 import FaultyServer, moto_server, new_bucket, s3_environment

import components.s3_retry
import components.store_s3
from components.__main__ import main
from components.errors import PermanentError, TransientError, UsageError
from components.store import FolderStore, Store, StoredFile, StoreNotFound, check_name, open_store


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


def test_temporary_files_are_entries_and_nothing_leads_out(tmp_path: Path) -> None:
    place = open_store(str(tmp_path / "store"))
    place.put_bytes("a/b", b"1")
    (tmp_path / "store/a/.tmp-1").write_bytes(b"123")
    (tmp_path / "store/a/gone").symlink_to("nowhere")
    found = {file.name: file for file in place.entries()}
    assert {name: file.temporary for name, file in found.items()} == {"a/.tmp-1": True, "a/b": False, "a/gone": False}
    assert place.remove(found["a/.tmp-1"])
    assert place.list() == ["a/b", "a/gone"]
    (tmp_path / "out").write_bytes(b"1")
    (tmp_path / ".tmp-out").write_bytes(b"1")
    for name in ("../out", "../.tmp-out", "a/../../out"):
        with pytest.raises(UsageError):
            place.remove(StoredFile(name, 1, (tmp_path / "out").stat().st_mtime))


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


def test_a_write_reaches_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watch_fsync(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def watch_replace(source: Path, target: Path) -> None:
        steps.append("rename")
        assert Path(source).parent == Path(target).parent
        replace(source, target)

    place = open_store(str(tmp_path))
    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "replace", watch_replace)
    place.put_bytes("a", b"1")
    assert steps == ["file", "rename", "folder"]


def test_kill_in_the_middle_of_a_write_leaves_nothing_visible(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place = open_store(str(tmp_path / "store"))
    place.put_bytes("a/old.txt", b"old")
    code = "import sys; from pathlib import Path; from components.store import open_store; "
    code += "open_store(sys.argv[1]).put_file('a/old.txt', Path(sys.argv[2]))"
    process = subprocess.Popen([sys.executable, "-c", code, place.url, str(pipe)], cwd=ROOT)
    with process, pipe.open("wb") as stream:
        stream.write(b"x" * (3 << 20))  # three chunks arrive, the end never does
        stream.flush()
        folder = tmp_path / "store/a"
        until(lambda: any(p.name.startswith(".tmp-") and p.stat().st_size > 0 for p in folder.iterdir()))
        process.send_signal(signal.SIGKILL)
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    assert len(list(folder.iterdir())) == 2  # the file and the rest of the broken write
    assert place.list() == ["a/old.txt"]
    assert place.get_bytes("a/old.txt") == b"old"
    place.put_bytes("a/old.txt", b"new")
    assert place.get_bytes("a/old.txt") == b"new"
    assert place.sweep() == 0  # too young: another worker may be writing it
    assert place.sweep(older_than_s=-1) == 1
    assert [path.name for path in folder.iterdir()] == ["old.txt"]


def until(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            if condition():
                return
        time.sleep(0.01)
    pytest.fail("waited in vain")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import resource, signal, sys
        from components.errors import TransientError
        from components.store import open_store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        place = open_store(sys.argv[1])
        place.put_bytes("a", b"old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            place.put_bytes("a", b"x" * 5000)
        except TransientError as error:
            print(error)
            print(place.list(), place.get_bytes("a"))
    """)
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "free some space" in result.stdout
    assert "['a'] b'old'" in result.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_in_a_folders_place(tmp_path: Path) -> None:
    place = open_store(str(tmp_path))
    place.put_bytes("a", b"")
    with pytest.raises(PermanentError, match="a/b"):
        place.put_bytes("a/b", b"")
    with pytest.raises(PermanentError, match="too long"):
        place.put_bytes("x" * 300, b"")


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    place = open_store(str(tmp_path))
    contents = [bytes([65 + i]) * 200_000 for i in range(4)]
    place.put_bytes("x", contents[0])
    stop = threading.Event()

    def write(data: bytes) -> None:
        while not stop.is_set():
            place.put_bytes("x", data)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            assert place.get_bytes("x") in contents
            assert place.list() == ["x"]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


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


def test_a_folder_checks_a_file_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    whole = components.store.sha256_file

    def counted(path: Path) -> str:
        read.append(path)
        return whole(path)

    monkeypatch.setattr(components.store, "sha256_file", counted)
    place = open_store(str(tmp_path))
    place.put_bytes("a", b"content")

    def look(data: bytes) -> None:
        with place.local("a", sha256(data)):
            pass

    for _ in range(2):  # written a moment ago: a second write might leave its time as it is
        look(b"content")
    assert len(read) == 2
    monkeypatch.setattr(components.store, "_SETTLED_NS", -1)
    for _ in range(3):
        look(b"content")
    assert len(read) == 3
    with pytest.raises(PermanentError, match="sha256"):
        look(b"another")
    time.sleep(0.02)
    (tmp_path / "a").write_bytes(b"CONTENT")
    with pytest.raises(PermanentError, match="sha256"):
        look(b"content")
    look(b"CONTENT")
