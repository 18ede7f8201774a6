"""Row "tar members": hostile tars given to `splatclip download`; nothing escapes, each is refused by name and reason.

How the reader takes each header is in test_shards.py; here is what the command makes of them.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from downloads import photo
from faults import Row

from components.__main__ import main
from components.errors import PermanentError
from components.images import encode
from components.manifest import open_artifact
from components.shards import read_shard
from components.store import open_store

pytestmark = pytest.mark.faults
PICTURE = encode(photo(1, 16, 16), "png")
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **about: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in about.items():
        setattr(info, key, value)
    return info, data


def good(count: int = 4) -> list[Member]:
    """Whole samples: nothing of them may be lost where the rest is only odd."""
    found = []
    for i in range(count):
        found += [member(f"good{i}.png", PICTURE), member(f"good{i}.txt", b"a picture")]
    return found


def tar(path: Path, members: list[Member], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as stream:
        for info, data in members:
            stream.addfile(info, io.BytesIO(data))
    return path


def raw(name: str, *, size: int, kind: bytes = b"0", data: bytes = b"") -> bytes:
    """A header that says what it likes, and its block."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(format=tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def pax(name: str, **records: str) -> list[Member]:
    return [member(name, PICTURE, pax_headers=records)]


def appended(path: Path, extra: bytes) -> Path:
    """Good samples, then bytes that tarfile would not write, in the end mark's place."""
    whole = tar(path, good()).read_bytes().rstrip(b"\0")
    path.write_bytes(whole + bytes(-len(whole) % 512) + extra + bytes(1024))
    return path


LINKS = {
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "device ": tarfile.BLKTYPE,
    "FIFO": tarfile.FIFOTYPE,
    "contiguous file": tarfile.CONTTYPE,
}
OUTSIDE = {
    "dots": "../../escaped.png",
    "dots in the midst": "a/../../../escaped.png",
    "dots at the end": "a/..",
    "absolute": "/tmp/escaped.png",
    "backslashes": "..\\..\\escaped.png",
    "a drive": "C:/escaped.png",
    "a NUL's neighbour": "escaped\x01.png",
}
Make = Callable[[Path], Path]
WHOLLY: dict[str, tuple[Make, str]] = {}
for _what, _name in OUTSIDE.items():
    WHOLLY[_what] = (lambda path, name=_name: tar(path, [*good(), member(name, PICTURE)]), r"refused")
    WHOLLY[f"{_what}, of a folder"] = (
        lambda path, name=_name: tar(path, [*good(), member(name, type=tarfile.DIRTYPE)]),
        r"refused",
    )
for _what, _kind in LINKS.items():
    WHOLLY[_what] = (
        lambda path, kind=_kind: tar(path, [*good(), member("evil.png", type=kind, linkname="/etc/passwd")]),
        rf"member 'evil\.png' is a {_what.strip()}; a shard holds plain files only",
    )
WHOLLY |= {
    "a path in a pax header": (lambda path: tar(path, [*good(), *pax("x.png", path="../escaped.png")]), r"refused"),
    "a long name of GNU's": (
        lambda path: tar(path, [*good(), member("../" * 60 + "escaped.png", PICTURE)], tarfile.GNU_FORMAT),
        r"refused",
    ),
    "a link through a link": (
        lambda path: tar(
            path,
            [member("a", type=tarfile.SYMTYPE, linkname="/tmp"), *good(), member("a/escaped.png", PICTURE)],
        ),
        r"member 'a' is a symbolic link",
    ),
    "sparse": (
        lambda path: appended(path, raw("evil.png", size=512, kind=b"S", data=bytes(512))),
        r"'evil\.png' is a sparse file",
    ),
    "there twice": (
        lambda path: tar(path, [*good(), member("a.png", PICTURE), member("a.png", PICTURE)]),
        r"member 'a\.png' is there twice",
    ),
    "larger than the file": (lambda path: appended(path, raw("big.png", size=1 << 40)), r"cut off inside member"),
    "a size of 8 EiB": (
        lambda path: tar(path, [*good(), *pax("big.png", size=str(1 << 63))]),
        r"cut off inside member 'big\.png'",
    ),
    "a size below zero": (lambda path: tar(path, [*good(), *pax("big.png", size="-5")]), r"big\.png|not a readable"),
    "a pax header of a gigabyte": (lambda path: appended(path, raw("x", size=1 << 30, kind=b"x")), r"not a readable"),
    "a pax header of 3 MiB": (
        lambda path: appended(path, raw("x", size=3 << 20, kind=b"x", data=b"3145728 path=".ljust(3 << 20, b"a"))),
        r"not a readable",
    ),
    "pax records that overlap": (
        lambda path: appended(path, raw("x", size=512, kind=b"x", data=b"0 path=a\n".ljust(512, b"0"))),
        r"not a readable",
    ),
    "a long name of 3 MiB": (
        lambda path: appended(path, raw("x", size=3 << 20, kind=b"L", data=b"a" * (3 << 20))), r"not a readable"
    ),
    "cut off": (lambda path: _cut(tar(path, good()), 700), r"cut off inside member"),
    "cut off in a header": (lambda path: _cut(tar(path, good()), 1024 + 200), r"cut off|not a readable"),
}  # fmt: skip


def _cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def command(tmp: Path) -> int:
    (tmp / "params.yaml").write_text(
        f"download: {{source: webdataset, path: {tmp / 'in'}, image_size: 16, num_train: 0, num_val: 1, num_test: 4, "
        "shard_size: 8, max_bytes: 65536}\n"
    )
    return main(["download", "--params", str(tmp / "params.yaml"), "--store", str(tmp / "store"), "--no-tracking"])


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("what", WHOLLY)
def test_it_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str], fault_row: Row
) -> None:
    make, says = WHOLLY[what]
    (tmp_path / "in").mkdir()
    tar(tmp_path / "in" / "00000.tar", good())
    make(tmp_path / "in" / "00001.tar")
    before = listing(tmp_path)
    assert command(tmp_path) == 42
    told = capsys.readouterr().err
    assert "00001.tar" in told, told
    assert re.search(says, told), told
    assert listing(tmp_path) - before == {"params.yaml"}, "something was unpacked, or half an output is there"
    fault_row("tar members", "refused tars", 1)


def test_what_only_one_sample_suffers_from_is_counted_by_reason(tmp_path: Path, fault_row: Row) -> None:
    """Too many bytes, an empty file, a name without an extension, a picture that is none: the rest is kept."""
    (tmp_path / "in").mkdir()
    odd = [
        member("large.png", PICTURE + bytes(1 << 17)), member("large.txt", b"x"),
        member("hollow.png", b""), member("hollow.txt", b"x"),
        member("text.png", b"<html>"), member("text.txt", b"x"),
        member("alone.txt", b"x"),
        member("readme", b"no sample"), member("folder/", type=tarfile.DIRTYPE),
        member("x" * 180 + "/deep.png", PICTURE), member("x" * 180 + "/deep.txt", b"a long path is only a name"),
    ]  # fmt: skip
    tar(tmp_path / "in" / "00000.tar", [*good(), *odd])
    assert command(tmp_path) == 0
    [manifest] = (tmp_path / "store").rglob("manifest.json")
    artifact = open_artifact(str(manifest), open_store(str(tmp_path / "store")))
    counts = artifact.manifest.counts
    assert (counts["in"], counts["ok"], counts["failed"]) == (9, 5, 4)
    assert counts["in"] == counts["ok"] + counts["skipped"] + counts["failed"]
    entries = [json.loads(artifact.store.get_bytes(name)) for name in artifact.store.list("_done/")]
    found = {note["key"]: note["reason"] for entry in entries for note in entry["samples"]}
    assert found == {"large": "too_large", "hollow": "empty", "text": "unreadable", "alone": "missing"}
    outside = {path for path in listing(tmp_path / "store") if "deep" in path}
    assert not outside, "a sample's name is a name in a tar, never a path on disk"
    fault_row("tar members", "single samples", 4)


def test_memory_is_not_what_a_header_says(tmp_path: Path) -> None:
    """A tar of eight kilobytes that promises terabytes, read with no room for them."""
    paths = [
        appended(tmp_path / f"{i}.tar", raw("x", size=size, kind=kind))
        for i, (size, kind) in enumerate([(1 << 40, b"0"), (1 << 30, b"x"), (1 << 30, b"L"), ((1 << 33) - 1, b"g")])
    ]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + (256 << 20), limits[1]))
    try:
        for path in paths:
            with pytest.raises(PermanentError, match=f"{path.name}: "):
                list(read_shard(path))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert sys.getsizeof(paths[0].read_bytes()) < 1 << 15


def test_a_header_of_many_records_takes_no_longer_for_it(tmp_path: Path) -> None:
    """A megabyte of pax records, each of which once copied all that came after it: some minutes a header."""
    records = b"6 a=b\n" * ((1 << 20) // 6)
    bomb = raw("x", size=len(records), kind=b"x", data=records)
    path = appended(tmp_path / "a.tar", bomb * 3)
    started = time.process_time()
    assert len(list(read_shard(path))) == 4
    assert time.process_time() - started < 20
