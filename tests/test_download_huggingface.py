"""Pictures in the Parquet files of a dataset repository: splits, columns, class names, what is broken."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import ROOT
from downloads import download, image_of, notes, numbers, samples
from hub import Hub, hub_server
from pyarrow import parquet
from url_lists import PICTURES

from components.download import parquet_rows
from components.download.repository import choose, choose_splits, matches, read_card, split_by_name
from components.errors import PermanentError
from components.hub_params import HubParams
from components.manifest import open_artifact
from components.store import open_store

NAMES = ["red_apple", "blue sky", "cat"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(first: int, count: int, *, said: bool = True, **columns: Any) -> bytes:
    """A file as `datasets` writes it: an Image column, and what its columns are in the schema's metadata."""
    pictures = [{"bytes": PICTURES[str(n % 40)], "path": f"{n}.jpg"} for n in range(first, first + count)]
    found = pa.table({"image": pa.array(pictures, IMAGE), **columns})
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    if said:
        told = json.dumps({"info": {"features": {name: features[name] for name in features if name in columns}}})
        found = found.replace_schema_metadata({"huggingface": told})
    stream = io.BytesIO()
    parquet.write_table(found, stream, row_group_size=7)
    return stream.getvalue()


def labels(first: int, count: int) -> pa.Array:
    return pa.array([n % 3 for n in range(first, first + count)], pa.int64())


CLASSES = {
    "README.md": b"---\nlicense: mit\n---\n# A set\n",
    "data/train-00000-of-00002.parquet": table(0, 12, label=labels(0, 12)),
    "data/train-00001-of-00002.parquet": table(12, 12, label=labels(12, 12)),
    "data/test-00000-of-00001.parquet": table(24, 9, label=labels(24, 9)),
}
CARD = b"""---
configs:
- config_name: plain
  data_files:
  - split: train
    path: some/a*.parquet
  - split: validation
    path: [some/b.parquet]
- config_name: other
  default: true
  data_files: "**/c.parquet"
dataset_info:
- config_name: other
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': one
          '1': two
          '2': three
---
"""
CONFIGS = {
    "README.md": CARD,
    "some/a1.parquet": table(0, 10, captions=[[f"a {n}", "", f"b {n}"] for n in range(10)]),
    "some/a2.parquet": table(10, 10, captions=[[f"a {n}"] for n in range(10)]),
    "some/b.parquet": table(20, 4, captions=[["c"]] * 4),
    "deep/er/c.parquet": table(0, 20, said=False, label=labels(0, 20)),
}
CONVERTED = {
    f"{config}/{split}/0000.parquet": table(n, 12, caption=[f"text {k}" for k in range(12)])
    for n, (config, split) in enumerate([("a", "train"), ("a", "partial-test"), ("b", "train"), ("b", "fold1")])
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    repos = {"me/classes": CLASSES, "me/configs": CONFIGS, "me/converted": CONVERTED, "old": CLASSES}
    with hub_server({name: dict(files) for name, files in repos.items()}) as served:
        yield served


@pytest.fixture(autouse=True)
def _address(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)


def fetch(store: Path, repo: str, **hub_params: Any) -> Any:
    return download(
        store, source="huggingface", path=repo, dataset=repo, hub=HubParams(**hub_params), num_train=0, num_val=4
    )


def test_splits_classes_and_pictures_of_a_repository(hub: Hub, tmp_path: Path) -> None:
    report = fetch(tmp_path, "me/classes")
    assert numbers(report) == {"test": 9, "train": 20, "val": 4}
    assert report.manifest.metrics["origin"] == f"me/classes@{hub.commit('me/classes')}"
    artifact = open_artifact(report.url, open_store("."))
    with artifact.local("classnames.txt") as path:
        assert path.read_text() == "red apple\nblue sky\ncat\n"
    found = samples(report, "test")
    assert [int(sample.fields["cls"]) for sample in found] == [n % 3 for n in range(24, 33)]
    assert image_of(found[0]).shape == (16, 16, 3)
    meta = json.loads(found[0].fields["json"])
    assert meta["source"] == "data/test-00000-of-00001.parquet#0"
    assert meta["class_name"] == "red apple"


def test_again_it_reads_nothing_and_stopped_it_goes_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fetch(tmp_path / "a", "me/classes")
    hub.requests.clear()
    assert fetch(tmp_path / "a", "me/classes").cached
    assert not [path for path in hub.requests if path.endswith(".parquet")]
    first = fetch(tmp_path / "b", "me/classes")
    monkeypatch.setattr(parquet_rows, "FOOTER", 512)
    place = open_store(first.url)
    place.delete("manifest.json")
    place.delete(max(place.list("_done/")))
    hub.requests.clear()
    before = len(hub.ranges)
    again = fetch(tmp_path / "b", "me/classes")
    assert again.manifest_sha256 == whole.manifest_sha256
    assert hub.requests["data/train-00000-of-00002.parquet"] == 2, "two ends of its footer"
    assert len(hub.ranges) - before == 6, "of what is not needed the footer alone"


def test_an_evaluation_set_reads_its_test_split_alone(hub: Hub, tmp_path: Path) -> None:
    hub.requests.clear()
    report = download(tmp_path, source="huggingface", path="old", dataset="x", num_train=-1, num_val=0, num_test=5)
    assert numbers(report) == {"test": 5}
    assert set(hub.requests) == {"revision", "tree", "README.md", "data/test-00000-of-00001.parquet"}


def test_configurations_of_a_readme(tmp_path: Path) -> None:
    report = fetch(tmp_path / "a", "me/configs", config="plain")
    assert numbers(report) == {"test": 9, "train": 11, "val": 4}
    texts = {tuple(json.loads(sample.fields["json"])["captions"]) for sample in samples(report)}
    assert ("a 3", "b 3") in texts
    report = fetch(tmp_path / "b", "me/configs")
    artifact = open_artifact(report.url, open_store("."))
    with artifact.local("classnames.txt") as path:
        assert path.read_text() == "one\ntwo\nthree\n", "the README's, where the file says nothing"
    report = fetch(tmp_path / "c", "me/configs", config="plain", split="train", text_column="captions")
    assert sum(numbers(report).values()) == 20


def test_the_hubs_own_copy_as_parquet(tmp_path: Path) -> None:
    report = fetch(tmp_path, "me/converted", config="a", revision="refs/convert/parquet")
    assert numbers(report) == {"test": 9, "train": 8, "val": 4}
    report = fetch(tmp_path, "me/converted", config="b", split="fold1")
    assert sum(numbers(report).values()) == 12


@pytest.mark.parametrize(
    ("repo", "given", "said"),
    [
        ("me/nothing", {}, "there is no dataset 'me/nothing'"),
        ("me/configs", {"config": "plane"}, "no configuration 'plane' .did you mean 'plain'.*it has: plain, other"),
        ("me/configs", {"config": "plain", "split": "test"}, "no split 'test'.*it has: train, validation"),
        ("me/converted", {}, "several configurations; name one in download.hub.config: a, b"),
        ("me/converted", {"config": "c"}, "no configuration 'c'.*folders: a, b"),
        ("me/classes", {"text_column": "captoin"}, r"no column 'captoin' .*it has: image .*label \(int64\)"),
        ("me/classes", {"text_column": "label"}, "column 'label' is int64, which is no text"),
        ("me/configs", {"label_column": "label", "config": "plain"}, "no column 'label'"),
    ],
)
def test_what_is_not_there_is_named(repo: str, given: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=said):
        fetch(tmp_path, repo, **given)


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


def test_a_long_footer_is_fetched_whole(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "FOOTER", 64)
    hub.ranges.clear()
    assert sum(numbers(fetch(tmp_path, "me/classes")).values()) == 33
    assert len(hub.ranges) == 6


def test_names_of_files_say_what_split_they_are() -> None:
    for path, split in {
        "train.parquet": "train", "data/my-test_file.parquet": "test", "validation1.parquet": "validation",
        "val/0001.parquet": "val", "x/dev-a.parquet": "dev", "contest.parquet": "train", "data.parquet": "train",
        "data/test_fold1-00000-of-00003-abc.parquet": "test_fold1", "train/a/b.parquet": "train",
    }.items():  # fmt: skip
        assert split_by_name(path) == split, path


def meant(pattern: str, path: str) -> bool:
    """What a pattern means, as a regular expression says it."""
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./"))
    return re.fullmatch("".join(signs.get(part) or re.escape(part) for part in parts), path) is not None


def test_patterns_of_a_readme() -> None:
    rng = random.Random(3)
    hits = 0
    for _ in range(6000):
        pattern = "".join(rng.choices(["a", "b", "/", "*", "**/", "**", "?", "(", "\\"], k=rng.randrange(7)))
        path = "".join(rng.choices("ab/(\\?", (4, 3, 3, 1, 1, 1), k=rng.randrange(8)))
        hits += meant(pattern, path)
        assert matches(pattern, path) == meant(pattern, path), (pattern, path)
    assert hits > 300


def test_a_pattern_that_is_made_to_take_for_ever_does_not() -> None:
    """As a regular expression each further `*a` took eight times as long."""
    names = ["a" * 200 + ".parquet"] * 50
    started = time.process_time()
    for pattern in ("*a" * 200 + "x", "**/" * 300 + "x", "**" * 300 + "x", "a" * 5000, "*" * 5000 + "x"):
        with pytest.raises(PermanentError, match="holds no Parquet files"):
            choose({"configs": [{"data_files": pattern}]}, names, "", "here")
    assert time.process_time() - started < 20


def test_readmes_in_other_words() -> None:
    assert read_card("no yaml", "") == {}
    assert read_card("---\r\na: 1\r\n---\r\n", "") == {"a": 1}
    names = ["x/train.parquet", "x/test.parquet", "y.parquet"]
    by_folder = choose({"configs": [{"config_name": "c", "data_dir": "x"}]}, names, "", "here")
    assert by_folder.files == {"train": ["x/train.parquet"], "test": ["x/test.parquet"]}
    listed = choose({"configs": [{"data_files": ["x/*.parquet"]}]}, names, "", "here")
    assert listed.files == {"train": ["x/train.parquet", "x/test.parquet"]}
    mapped = choose({"configs": [{"data_files": {"test": "y.parquet"}}]}, names, "", "here")
    assert mapped.files == {"test": ["y.parquet"]}
    with pytest.raises(PermanentError, match=r"name one in download.hub.config: a, b"):
        choose({"configs": [{"config_name": "a"}, {"config_name": "b"}]}, names, "", "here")
    with pytest.raises(PermanentError, match=r"none of its splits is a usual one; .*: fold1"):
        choose_splits({"fold1": ["a"]}, "", "here")
    assert choose_splits({"test": ["b", "a"], "dev": ["c"]}, "", "here") == [("c", "val"), ("a", "test"), ("b", "test")]


def stored(columns: dict[str, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


def pictures_of(count: int) -> pa.Array:
    return pa.array([{"bytes": PICTURES[str(n)], "path": f"{n}.jpg"} for n in range(count)], IMAGE)


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
