"""Pictures in the Parquet files of a dataset repository: splits, columns, class names, what is broken."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from downloads import download, image_of, notes, numbers, samples
from hub import Hub, hub_server
from pyarrow import parquet
from test_download_urls import PICTURES

from components.download import huggingface
from components.download.repository import choose, choose_splits, read_card, split_by_name
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
    monkeypatch.setattr(huggingface, "FOOTER", 512)
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
    monkeypatch.setattr(huggingface, "FOOTER", 64)
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
