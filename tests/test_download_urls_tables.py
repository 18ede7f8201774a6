"""Tables of web addresses: the kinds they come in, their columns, what is wrong with them."""

from __future__ import annotations

import csv
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from downloads import samples
from pyarrow import parquet
from s3 import moto_server, new_bucket
from test_download_remote import served
from url_lists import HERE, PICTURES, outcomes, params, table
from web import web_server

from components.download import rows, stage
from components.download import urls as module
from components.download.http import Fetcher, Job
from components.errors import PermanentError
from components.manifest import open_artifact
from components.shards import read_shard
from components.store import open_store
from components.url_params import UrlParams


def test_what_a_list_says_of_a_picture_goes_along_and_its_sum_is_checked(tmp_path: Path) -> None:
    sums = [hashlib.sha256(PICTURES[str(number)]).hexdigest() for number in range(6)]
    sums[2] = "0" * 64
    with web_server(PICTURES) as web:
        urls = [f"{web.url}/ok/{number}" for number in range(6)]
        columns = {"sha256": sums, "UID": [f"u{k}" for k in range(6)], "NSFW": ["UNLIKELY"] * 6, "mine": list("abcdef")}
        path = table(tmp_path / "list.csv", urls, **columns)
        report = stage.run(params(path, carry=("mine",)), store=str(tmp_path / "store"))
    assert outcomes(report.url)[2] == ("failed", "other_content")
    found = open_artifact(report.url, open_store(report.url))
    metas = {}
    for shard in found.manifest.shards:
        with found.local(shard) as tar:
            metas |= {sample.key: json.loads(sample.fields["json"]) for sample in read_shard(tar)}
    meta = metas["000000004"]
    assert (meta["uid"], meta["nsfw"], meta["mine"], meta["sha256"]) == ("u4", "UNLIKELY", "e", sums[4])
    assert (meta["url"], meta["caption"]) == (urls[4], "picture 4")


def lists(folder: Path, rows: list[tuple[str, str]]) -> list[str]:
    """The same addresses and captions as a table of every kind, and as two; the ends of download.path for each."""
    folder.mkdir()
    urls, texts = (list(values) for values in zip(*rows, strict=True))
    parquet.write_table(pa.table({"URL": urls, "TEXT": texts}), folder / "list.parquet")
    lines = [json.dumps({"URL": url, "TEXT": text}) + "\n" for url, text in rows]
    (folder / "list.jsonl").write_text("".join(lines))
    (folder / "parts").mkdir()
    for number, some in enumerate((lines[:5], lines[5:])):
        (folder / f"parts/{number:05d}.jsonl").write_text("".join(some))
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        with (folder / f"list.{kind}").open("w", newline="") as stream:
            csv.writer(stream, delimiter=delimiter).writerows([("URL", "TEXT"), *rows])
    return ["list.parquet", "list.csv", "list.tsv", "list.jsonl", "parts/{00000..00001}.jsonl", "parts"]


@contextmanager
def lying(where: str, folder: Path) -> Iterator[str]:
    """The address of a folder's files where they lie: there, behind a web server, or in a bucket."""
    if where == "folder":
        yield str(folder)
    elif where == "http":
        with served(folder) as url:
            yield url
    else:
        with moto_server():
            place = f"{new_bucket()}/lists"
            for path in filter(Path.is_file, folder.rglob("*")):
                open_store(place).put_file(path.relative_to(folder).as_posix(), path)
            yield place


@pytest.mark.parametrize("where", ["folder", "http", "bucket"])
def test_tables_of_every_kind_give_the_same_shards(tmp_path: Path, where: str) -> None:
    captions = [f'a "quoted" picture, {number}, \u00fc' for number in range(12)]
    manifests, seen = set(), []
    with web_server(PICTURES) as web:
        rows = [(f"{web.url}/ok/{number}", captions[number]) for number in range(12)]
        ends = lists(tmp_path / "lists", rows)
        if where == "http":
            ends.remove("parts")  # a folder cannot be listed there
        with lying(where, tmp_path / "lists") as place:
            for number, end in enumerate(ends):
                given = replace(params(tmp_path), path=f"{place}/{end}")
                report = stage.run(given, store=str(tmp_path / f"store{number}"))
                assert report.manifest.counts["ok"] == 12
                manifests.add(tuple(shard.sha256 for shard in report.manifest.shards))
                seen += [json.loads(sample.fields["json"]) for sample in samples(report)]
            if where == "http":
                with pytest.raises(PermanentError, match=f"{place}/parts.*no list of URLs there"):
                    stage.run(replace(given, path=f"{place}/parts"), store=str(tmp_path / "none"))
    assert len(manifests) == 1
    assert {(meta["url"], meta["caption"]) for meta in seen} == set(rows)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "address,caption\nx,y\n", "none of its columns (address, caption) is called url"),
        ("a.csv", "url,caption\nhttp://a,b,c\n", "line 2 has more or fewer values"),
        ("a.jsonl", '{"url": "http://a", "caption": "b"}\n{"url": \n', "line 2"),
        ("a.jsonl", "[1]\n", "line 1 (not an object)"),
        ("a.parquet", "no parquet", "not a whole Parquet file"),
        ("a.csv", "", "none of its columns"),
        ("a.csv", "url,caption\n", "hold no row"),
    ],
)
def test_a_bad_list_says_where(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PermanentError) as error:
        stage.run(params(tmp_path / name), store=str(tmp_path / "store"))
    assert said in str(error.value)
    assert name in str(error.value) or "hold no row" in said


def test_a_column_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    path = table(tmp_path / "list.csv", ["http://a"])
    with pytest.raises(PermanentError, match="no column 'captoin' \\(did you mean 'caption'\\?\\)"):
        stage.run(params(path, caption_column="captoin"), store=str(tmp_path / "store"))


def test_own_columns_that_a_list_has_too_may_hold_anything(tmp_path: Path) -> None:
    with web_server(PICTURES) as web:
        urls = [f"{web.url}/{'ok' if row % 3 else '404'}/{row}" for row in range(12)]
        odd = ["", "640.0", "nan", "640", "x", "1e400"] * 2
        path = table(tmp_path / "list.csv", urls, original_width=odd, width=odd)
        report = stage.run(params(path, carry=("width",)), store=str(tmp_path / "store"))
    assert report.manifest.counts["reasons"] == {"http_404": 4}


def test_tables_are_read_forwards_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no two of them are kept: once to be counted, and once for each split, whatever is refused meanwhile."""
    read: list[str] = []
    expected: list[str] = []
    real = module.read_table

    def counted(path: Path, *more: Any) -> Any:
        read.append(path.name)
        return real(path, *more)

    monkeypatch.setattr(module, "read_table", counted)
    monkeypatch.setattr(rows, "MOST_BYTES", 1)
    with web_server(PICTURES) as web:
        for name in "ab":
            again = 36 if name == "a" else 12
            pictures = [row if row < again else row + 1 for row in range(36)]
            urls = [f"{web.url}/{'404' if row % 3 else 'ok'}/{pictures[row]}" for row in range(36)]
            expected += urls
            table(tmp_path / f"{name}.csv", urls, uid=[f"{name}{row}" for row in range(36)], width=["7"] * 36)
        given = replace(params(tmp_path, carry=("width",)), num_test=12)
        report = stage.run(given, store=str(tmp_path / "store"))
    assert report.manifest.counts["reasons"] == {"http_404": 48, "duplicate": 4}
    assert len(read) <= 6, read
    found = open_artifact(report.url, open_store(report.url))
    lines = []
    for entry in found.manifest.shards:
        (name,) = (file.stored for file in entry.files if file.name.endswith(".parquet"))
        lines += parquet.read_table(found.store.root / name).to_pylist()
    for line in lines:
        number = int(line["key"])
        assert line["url"] == expected[number]
        assert (line["caption"], line["uid"]) == (f"picture {number % 36}", f"{'ab'[number // 36]}{number % 36}")
        assert line["width"] == (16 if line["status"] == "success" else 7), "what the list says where nothing is known"
        assert bool(line["sha256"]) == (number % 36 % 3 == 0)


def test_a_list_that_breaks_in_the_middle_says_so() -> None:
    def jobs() -> Iterator[Job[int]]:
        yield Job("", 0)
        raise PermanentError("line 2 is none")

    before = threading.active_count()
    with (
        Fetcher(UrlParams(allow_networks=HERE), max_bytes=1 << 20) as fetcher,
        pytest.raises(PermanentError, match="line 2 is none"),
    ):
        list(fetcher.fetch(jobs()))
    assert threading.active_count() == before


def test_a_line_may_lack_what_others_have(tmp_path: Path) -> None:
    with web_server(PICTURES) as web:
        rows: list[dict[str, str]] = [{"url": f"{web.url}/ok/{row}"} for row in range(12)]
        for row in rows[1:]:
            row |= {"caption": "a", "sha256": "0" * 64 if row is rows[5] else ""}
        path = tmp_path / "list.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = stage.run(params(path), store=str(tmp_path / "store"))
    assert report.manifest.counts["reasons"] == {"no_caption": 1, "other_content": 1}
