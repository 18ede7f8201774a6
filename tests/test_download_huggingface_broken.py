"""Rows and Parquet files of a repository that are broken, or made to fill memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import ROOT
from downloads import notes
from hub import Hub, hub_server
from pyarrow import parquet
from repositories import IMAGE, fetch, labels, pictures_of, stored, table
from url_lists import PICTURES

from components.errors import PermanentError


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server({}) as served:
        yield served


@pytest.fixture(autouse=True)
def _address(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)


def test_rows_that_are_broken_are_counted(hub: Hub, tmp_path: Path) -> None:
    good = PICTURES["1"]
    pictures = [good, None, b"", good[: len(good) // 2], b"x" * 60, *[PICTURES[str(n)] for n in range(2, 16)]]
    rows: list[Any] = [{"bytes": one, "path": "a.jpg"} for one in pictures] + [None]
    texts = ["t"] * len(rows)
    texts[6], texts[7] = "", "  "
    stream = io.BytesIO()
    parquet.write_table(pa.table({"image": pa.array(rows, IMAGE), "text": texts}), stream)
    hub.repos["me/broken"] = {"data.parquet": stream.getvalue()}
    report = fetch(tmp_path, "me/broken")
    assert report.manifest.counts["reasons"] == {"missing": 3, "truncated": 1, "unreadable": 1, "no_caption": 2}
    found = notes(report)
    assert "only its path is there, 'a.jpg'" in found["000000001"].detail
    assert report.manifest.counts["in"] == 20


def test_labels_that_are_none(hub: Hub, tmp_path: Path) -> None:
    values = pa.array([0, 1, 2, -1, 7, None, *[1] * 14], pa.int64())
    hub.repos["me/held"] = {"data.parquet": table(0, 20, label=values)}
    report = fetch(tmp_path, "me/held")
    assert report.manifest.counts["reasons"] == {"no_caption": 2, "bad_class": 1}


@pytest.mark.parametrize("names", [["only"], ["a", "_", "c"], []])
def test_class_names_that_tell_nothing_apart(hub: Hub, tmp_path: Path, names: list[str]) -> None:
    """They were found out after all of it was fetched and fitted, and captions beside them could not be used."""
    told = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
    for name, columns in {"captions": {"text": ["a"] * 20}, "alone": {}}.items():
        found = pa.table({"image": pictures_of(20), "label": pa.array([0] * 20, pa.int64()), **columns})
        stream = io.BytesIO()
        parquet.write_table(found.replace_schema_metadata({"huggingface": told}), stream)
        hub.repos[f"me/{name}"] = {"data.parquet": stream.getvalue()}
    report = fetch(tmp_path / "a", "me/captions")
    assert report.manifest.counts["ok"] == 20
    assert not [file for file in report.manifest.files if file.name == "classnames.txt"]
    said = "has class names .*expected two or more" if names else "is int64, which is no ClassLabel"
    with pytest.raises(PermanentError, match=rf"data\.parquet: column 'label' {said}"):
        fetch(tmp_path / "b", "me/captions", label_column="label")
    with pytest.raises(PermanentError, match="usual text or a ClassLabel"):
        fetch(tmp_path / "c", "me/alone")


def test_files_that_are_no_parquet(hub: Hub, tmp_path: Path) -> None:
    hub.repos["me/torn"] = {"data.parquet": table(0, 9, text=["a"] * 9)[:-10]}
    hub.repos["me/tars"] = {"README.md": b"---\n: [\n---\n", "0.tar": b"x"}
    hub.repos["me/zips"] = {"a.zip": b"x"}
    hub.repos["me/two"] = {"a.parquet": table(0, 9, text=["a"] * 9), "b.parquet": table(0, 9, caption=["a"] * 9)}
    hub.repos["me/blind"] = {"a.parquet": table(0, 9, said=False, label=labels(0, 9))}
    for repo, said in (
        ("torn", "no Parquet file that can be read"), ("tars", "not valid YAML"),
        ("zips", r"holds no Parquet files, only .zip; .*refs/convert/parquet"),
        ("two", "b.parquet has no column 'text', which others have"), ("blind", "usual text or a ClassLabel"),
    ):  # fmt: skip
        with pytest.raises(PermanentError, match=said):
            fetch(tmp_path, f"me/{repo}")


def many_times(text: str, times: int) -> pa.Array:
    """A list column: five rows of three captions, and between them one that has the same text over and over."""
    offsets = [0, 3, 6, 9, *(9 + times + 3 * n for n in range(3))]
    indices = pa.array([0] * 9 + [1] * times + [0] * 6, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.DictionaryArray.from_arrays(indices, ["short", text]))


def test_a_caption_that_is_not_utf8_is_one_row(hub: Hub, tmp_path: Path) -> None:
    texts = pa.array([b"caf\xe9" if row in {3, 7} else b"a text" for row in range(20)]).view(pa.string())
    hub.repos["me/latin"] = {"data.parquet": stored({"image": pictures_of(20), "text": texts})}
    report = fetch(tmp_path / "a", "me/latin")
    assert report.manifest.counts["reasons"] == {"bad_caption": 2}
    assert "not UTF-8" in notes(report)["000000003"].detail
    listed = pa.ListArray.from_arrays(pa.array(range(21), pa.int32()), texts)
    hub.repos["me/latins"] = {"data.parquet": stored({"image": pictures_of(20), "text": listed})}
    assert fetch(tmp_path / "b", "me/latins").manifest.counts["reasons"] == {"bad_caption": 2}


@pytest.mark.parametrize("which", ["of the file", "of all", "of pages", "schema"])
def test_counts_that_are_not_so_are_damage(hub: Hub, tmp_path: Path, which: str) -> None:
    pictures = pa.array([PICTURES["1"]] * 77)
    data = stored({"image": pictures, "text": ["a"] * 77}, store_schema=which == "schema")
    if which == "schema":  # what Arrow's own writer adds is no Base64 any more
        assert data.count(b"/////") == 1
        data = data.replace(b"/////", b"!!!!!")
    else:
        length = int.from_bytes(data[-8:-4], "little")
        pages, footer = data[: -8 - length], data[-8 - length : -8]
        true, wrong = varint(2 * 77), varint(2 * 78)
        assert footer.count(true) > 2
        footer = footer.replace(true, wrong, {"of the file": 1, "of all": -1, "of pages": 0}[which])
        if which == "of pages":  # no header where the first one is to be
            pages = pages[:4] + b"\xff" * 8 + pages[12:]
        data = pages + footer + data[-8:]
    hub.repos["me/counts"] = {"data.parquet": data}
    with pytest.raises(PermanentError, match=r"data\.parquet is no Parquet file that can be read \(.+\); tell whoever"):
        fetch(tmp_path, "me/counts")


def test_more_rows_than_bytes_are_not_listed(hub: Hub, tmp_path: Path) -> None:
    """A row takes memory when it is listed, before anything of it is read."""
    data = stored({"image": [PICTURES["1"]] * 77, "text": ["a"] * 77}, store_schema=False)
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length : -8].replace(varint(2 * 77), varint(2 * 10**12), 1)
    data = data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    assert parquet.read_metadata(io.BytesIO(data)).num_rows == 10**12
    hub.repos["me/many"] = {"data.parquet": data}
    with pytest.raises(PermanentError, match=r"1000000000000 rows in \d+ bytes"):
        fetch(tmp_path, "me/many")


LOADED = """
import sys, resource
from components.download.fetch import open_tree
from components.download.huggingface import HuggingFaceSource
from components.config import DownloadParams
params = DownloadParams(source="huggingface", path="me/x", dataset="x", max_bytes=1 << 20)
for folder in sys.argv[1:]:
    with HuggingFaceSource(open_tree(folder), params) as source:
        refs = source.refs
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = []
        for ref in refs:
            try:
                source.load(ref)
                found.append("ok")
            except Exception as error:
                found.append(getattr(error, "reason", repr(error)))
    print(*found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_a_small_file_does_not_fill_memory(tmp_path: Path) -> None:
    """Four pictures of 64 MiB, also where the footer says that they are small, and one text very many times."""
    huge = pa.DictionaryArray.from_arrays(pa.array([0] * 4, pa.int32()), pa.array([bytes(64 << 20)]))
    open_ = stored({"image": huge, "text": ["a"] * 4}, compression="zstd", store_schema=False)
    listed = many_times("x" * (1 << 16), 5000)
    files = {
        "open": open_,
        "lies": with_a_lie(open_),
        "texts": stored({"image": [PICTURES["1"]] * 6, "text": listed}, store_schema=False),
    }
    for name, data in files.items():
        assert len(data) < 1 << 17
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.parquet").write_bytes(data)
    folders = [str(tmp_path / name) for name in files]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *folders], capture_output=True, text=True, cwd=ROOT, check=False
    )
    *lines, last = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [line[0] for line in (*lines, last)] == [
        "too_large too_large too_large too_large", "too_large too_large too_large too_large",
        "ok ok ok bad_caption ok ok",
    ]  # fmt: skip
    assert all(int(peak) < 48 for _, peak in (*lines, last)), "MiB"


def with_a_lie(data: bytes) -> bytes:
    """The same file, whose footer says that its first column has few bytes."""
    length = int.from_bytes(data[-8:-4], "little")
    true = varint(2 * parquet.read_metadata(io.BytesIO(data)).row_group(0).column(0).total_uncompressed_size)
    short = bytes([0x88, 0xCE, *[0x80] * (len(true) - 3), 0])  # as long
    before, footer = data[: -8 - length], data[-8 - length : -8]
    assert footer.count(true) == 1
    found = before + footer.replace(true, short) + data[-8:]
    assert parquet.read_metadata(io.BytesIO(found)).row_group(0).column(0).total_uncompressed_size < 10_000
    return found


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
