"""Pictures in the Parquet files of a dataset repository: splits, columns, class names, what is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from downloads import download, image_of, numbers, samples
from hub import Hub, hub_server
from repositories import CLASSES, fetch, labels, table

from components.download import parquet_rows
from components.errors import PermanentError
from components.manifest import open_artifact
from components.store import open_store

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


def test_a_long_footer_is_fetched_whole(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "FOOTER", 64)
    hub.ranges.clear()
    assert sum(numbers(fetch(tmp_path, "me/classes")).values()) == 33
    assert len(hub.ranges) == 6
