"""Shards: what is written is what webdataset and tar read; what is hostile is refused."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import PermanentError
from components.shards import (
    IndexedShard,
    Sample,
    ShardIndex,
    read_index,
    read_layout,
    read_shard,
    write_index,
    write_shard,
)

KEYS = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="./\\"), min_size=1, max_size=150)
FIELDS = st.dictionaries(
    st.sampled_from(["jpg", "png", "txt", "json", "cls", "gs2d", "seg.png"]), st.binary(max_size=1500)
)
SAMPLES = st.lists(st.builds(Sample, KEYS, FIELDS.filter(bool)), max_size=6, unique_by=lambda sample: sample.key)


def windows_drive(key: str) -> bool:
    return len(key) > 1 and key[1] == ":" and key[0].isascii() and key[0].isalpha()


@settings(max_examples=60, deadline=None)
@given(samples=SAMPLES.filter(lambda found: not any(windows_drive(sample.key) for sample in found)))
def test_round_trip_also_through_tarfile(samples: list[Sample]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "a.tar", Path(folder) / "b.tar"
        layout = write_shard(path, samples)
        assert list(read_shard(path)) == samples
        assert read_layout(path) == layout
        write_shard(again, samples)
        assert again.read_bytes() == path.read_bytes()
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert [member.name for member in members] == [f"{s.key}.{ext}" for s in samples for ext in s.fields]
            assert {(m.mtime, m.uid, m.gid, m.mode, m.uname, m.type) for m in members} <= {(0, 0, 0, 0o644, "", b"0")}
            contents = [stream.read() for member in members if (stream := tar.extractfile(member))]
            assert contents == [content for s in samples for content in s.fields.values()]
        index = Path(folder) / "a.idx"
        write_index(index, layout)
        with IndexedShard(path, index) as mapped, IndexedShard(path) as walked:
            assert mapped.index.to_bytes() == walked.index.to_bytes() == read_index(index).to_bytes()
            assert len(mapped) == len(samples)
            for i, sample in enumerate(samples):
                assert mapped.keys[i] == sample.key
                assert {e: bytes(mapped.field(i, e)) for e in mapped.index.fields if mapped.has(i, e)} == sample.fields


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.text("abcé/", min_size=1, max_size=130), unique=True, max_size=5), form=st.sampled_from([0, 1, 2])
)
def test_tars_of_any_format_are_read_as_tarfile_reads_them(names: list[str], form: int) -> None:
    """form: ustar, GNU, pax; long names take another path in each."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        expected = []
        with tarfile.open(path, "w", format=form) as tar:
            for name in dict.fromkeys("/".join(part for part in name.split("/") if part) for name in names):
                info = tarfile.TarInfo(f"{name}.txt")
                info.size = len(name)
                try:
                    tar.addfile(info, io.BytesIO(b"x" * len(name)))
                except ValueError:  # too long for ustar
                    continue
                if name:
                    expected.append((name, len(name)))
        assert [(sample.key, len(sample.fields["txt"])) for sample in read_shard(path)] == expected


def tar_of(path: Path, *members: tuple[str, bytes], **attributes: object) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_keys_are_split_as_webdataset_does(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "a.tar",
        ("./d/a.JPG", b"1"),
        ("d/a.seg.png", b"2"),
        ("d.x/b.txt", b"3"),
        ("readme", b"4"),
        ("d.x/b.txt.gz", b"5"),
    )
    assert list(read_shard(path)) == [
        Sample("d/a", {"jpg": b"1", "seg.png": b"2"}),
        Sample("d.x/b", {"txt": b"3", "txt.gz": b"5"}),
    ]


@pytest.mark.parametrize(
    "name", ["../a.txt", "a/../../b.txt", "/etc/a.txt", "a\\b.txt", "C:/a.txt", "a\nb.txt", "x" * 120 + "/../a.txt"]
)
def test_a_member_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "a.tar", ("ok.txt", b""), (name, b"x"))
    with pytest.raises(PermanentError, match=r"a\.tar: member .*refused"):
        list(read_shard(path))


@pytest.mark.parametrize(
    ("kind", "called"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "FIFO"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
    ],
)
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: bytes, called: str) -> None:
    path = tar_of(tmp_path / "a.tar", ("evil.txt", b""), type=kind, linkname="/etc/passwd")
    with pytest.raises(PermanentError, match=f"'evil.txt' is a {called}"):
        list(read_shard(path))
    with pytest.raises(PermanentError, match=called):
        IndexedShard(path)


def test_a_damaged_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, [Sample("a", {"txt": b"x" * 3000}), Sample("b", {"txt": b"y"})])
    data = path.read_bytes()
    other = bytearray(data)
    other[0] ^= 1
    oversized = tar_of(tmp_path / "big.tar", ("a.txt", b"x")).read_bytes().replace(b"00000000001", b"77777777777", 1)
    cases = {
        "cut off inside": data[:2000],
        "cut off at": data[: 512 + 3072 + 100],
        "checksum": bytes(other),
        "not a readable tar": oversized,
        "compressed; unpack": b"\x1f\x8b" + bytes(1000),
        "empty": b"",
        "not a readable": b"<html>not found</html>" * 100,
    }
    for says, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(PermanentError, match=says):
            list(read_shard(path))
    with pytest.raises(PermanentError, match="cannot read"):
        list(read_shard(tmp_path / "none.tar"))


def test_a_size_beyond_the_file_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.txt")
    info.size = 1 << 40
    (tmp_path / "a.tar").write_bytes(info.tobuf(format=tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(PermanentError, match=r"cut off inside member 'a\.txt'"):
        list(read_shard(tmp_path / "a.tar"))


def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"'a\.txt' is there twice"):
        list(read_shard(tar_of(tmp_path / "a.tar", ("a.txt", b"1"), ("a.txt", b"2"))))


@pytest.mark.parametrize("key", ["a.b", "../a", "/a", "", "./a", "a\nb"])
def test_a_key_that_would_be_read_differently_is_not_written(tmp_path: Path, key: str) -> None:
    with pytest.raises(PermanentError, match="cannot be written"):
        write_shard(tmp_path / "a.tar", [Sample(key, {"txt": b""})])


def test_a_key_is_written_once(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="'a' is there twice"):
        write_shard(tmp_path / "a.tar", [Sample("a", {"txt": b""}), Sample("a", {"txt": b""})])


def test_an_empty_shard(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    assert write_shard(path, []) == []
    assert list(read_shard(path)) == []
    with IndexedShard(path) as shard:
        assert len(shard) == 0


def test_an_index_that_is_not_one(tmp_path: Path) -> None:
    path, index = tmp_path / "a.tar", tmp_path / "a.idx"
    write_shard(path, [Sample("a", {"txt": b"1"})])
    for data in (
        b"",
        b"[]",
        b'{"keys": ["a"]}',
        b'{"keys": ["a"], "fields": {"txt": []}}',
        b'{"keys": ["a"], "fields": {"txt": [[1]]}}',
        b'{"keys": ["a"], "fields": {"txt": [[0, -1]]}}',
        b'{"keys": ["a"], "fields": {"txt": [[1.0, 2.0]]}}',
        b'{"keys": ["a"], "fields": {"txt": [[9223372036854775808, 1]]}}',
        b'{"keys": ["a"], "fields": {"txt": [[36893488147419103232, 1]]}}',
    ):
        index.write_bytes(data)
        with pytest.raises(PermanentError, match="not a shard's index"):
            read_index(index)
    with pytest.raises(PermanentError, match="outside the file"):
        IndexedShard(path, ShardIndex.of([("a", {"txt": (10_000, 1000)})]))
    with IndexedShard(path, ShardIndex.of([("a", {"txt": (512, 1)}), ("b", {})])) as shard, pytest.raises(KeyError):
        shard.field(1, "txt")
