"""A store in a folder: writes are whole or not there, whoever kills, reads or fills the disk meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

import components.store
from components.errors import PermanentError, UsageError
from components.store import StoredFile, open_store


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
