"""Evaluation sets: found by name and place, which pictures are scored, labels as CLIP_benchmark writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from downloads import download, notes, photo, samples
from evaluation_sets import TINY, captions, npy, several_classes
from picture_sets import committed

from components.errors import UsageError
from components.evalsets import DEFAULT_ROOT, SETS, find_sets, location, shipped_prompts
from components.evaluate import EVERYTHING, download_params
from components.images import encode
from components.params import load_params
from components.shards import Sample, write_shard


def test_the_list_is_clip_benchmarks() -> None:
    kinds = [one.task for one in SETS.values()]
    assert (kinds.count("classification") + kinds.count("multilabel"), kinds.count("retrieval")) == (38, 3)
    assert len({alias for one in SETS.values() for alias in (one.short,)}) == 41, "short names tell sets apart"
    metrics = {one.name: one.metrics[0] for one in SETS.values()}
    assert metrics["voc2007_multilabel"] == "mean_average_precision"
    assert metrics["vtab/pets"] == "mean_per_class_recall"
    assert metrics["imagenet1k"] == "acc1"
    assert SETS["flickr8k"].metrics == tuple(f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5))


def test_sets_are_found_by_any_of_their_names() -> None:
    words = ["cifar10", "vtab/cifar10", "wds/vtab/cifar10", "vtab-cifar10", "wds_vtab-cifar10"]
    assert [one.name for one in find_sets(words)] == ["vtab/cifar10"]
    assert len(find_sets(["all"])) == 41
    assert [one.name for one in find_sets(["flickr30k", "retrieval"])] == ["flickr30k", "mscoco_captions", "flickr8k"]
    assert len(find_sets(["classification"])) == 38
    with pytest.raises(UsageError, match="called 'cifar_10' \\(did you mean 'cifar10'"):
        find_sets(["cifar_10"])


def test_where_a_set_lies(tmp_path: Path) -> None:
    (one,) = find_sets(["cifar10"])
    hub = "https://huggingface.co/datasets/clip-benchmark/wds_vtab-cifar10/resolve/main"
    page = "https://huggingface.co/datasets/clip-benchmark/wds_{dataset_cleaned}/tree/main"
    assert location(one, DEFAULT_ROOT) == location(one, page) == hub
    assert location(one, "s3://sets/all/") == "s3://sets/all/wds_vtab-cifar10"
    assert location(one, "/data/{dataset}/x") == "/data/vtab/cifar10/x"
    assert location(one, str(tmp_path)) == f"{tmp_path}/wds_vtab-cifar10"
    (tmp_path / "cifar10").mkdir()
    assert location(one, str(tmp_path)) == f"{tmp_path}/cifar10"


def test_training_pictures_are_not_scored(tmp_path: Path) -> None:
    """The training set's own place is dealt as for training; any other is taken whole, from its test split alone."""
    training = [f"download.{name}" for name in ("source=webdataset", f"path={tmp_path}/cifar10", "dataset=mine")]
    params = load_params(TINY, training)
    (tmp_path / "cifar10").mkdir()
    cifar, pets = find_sets(["cifar10", "pets"])
    assert download_params(cifar, str(tmp_path), params, 0) == params.download_eval
    other = download_params(pets, str(tmp_path), params, 0)
    assert (other.dataset, other.num_train, other.num_val, other.num_test) == ("vtab/pets", -1, 0, EVERYTHING)
    assert other.image_size == params.download.image_size
    assert download_params(pets, str(tmp_path), params, 50).num_test == 50


def test_a_first_look_at_the_training_set_takes_no_training_pictures(tmp_path: Path) -> None:
    """With a limit, or other splats than training's, there is more to fit: then the test split's pictures alone."""
    place = tmp_path / "cifar10"
    for name in ("train/0.tar", "test/0.tar"):
        (place / name).parent.mkdir(parents=True)
        fields = {"jpg": encode(photo(0), "jpg"), "cls": b"0"}
        write_shard(place / name, [Sample(f"{name[:2]}{i}", fields) for i in range(9)])
    given = ["download.source=webdataset", f"download.path={place}", "download.num_train=5", "download.num_test=6"]
    params = load_params(TINY, given)
    (cifar,) = find_sets(["cifar10"])

    def wanted(limit: int = 0, refit: bool = False) -> tuple[int, int, int]:
        one = download_params(cifar, str(tmp_path), params, limit, refit=refit)
        return one.num_train, one.num_val, one.num_test

    assert wanted() == (5, params.download.num_val, 6), "as in training: it lies there already"
    assert wanted(limit=4) == (-1, 0, 4)
    assert wanted(limit=40) == wanted(refit=True) == (-1, 0, 6)
    shutil.rmtree(place / "test")  # what is tested on is dealt out of what is trained on
    assert wanted(limit=4) == (5, params.download.num_val, 4)


def test_imagenet_without_class_names_takes_those_of_open_clip(tmp_path: Path) -> None:
    shipped = shipped_prompts("imagenet1k")
    assert shipped is not None
    assert (len(shipped[0]), shipped[0][0], len(shipped[1])) == (1000, "tench", 80)
    assert shipped_prompts("vtab/cifar10") is None
    rows = [Sample(f"s{i}", {"jpg": encode(photo(i), "jpg"), "cls": str(999 - i).encode()}) for i in range(3)]
    (tmp_path / "set/test").mkdir(parents=True)
    write_shard(tmp_path / "set/test/0.tar", rows)
    given = {"source": "webdataset", "path": str(tmp_path / "set"), "num_train": -1, "num_val": 0, "num_test": 9}
    report = download(tmp_path / "store", dataset="imagenet1k", **given)
    assert report.metrics["num_classes"] == 1000
    templates = committed(report.url, "zeroshot_classification_templates.txt").decode().splitlines()
    assert tuple(templates) == shipped[1]
    assert [json.loads(one.fields["json"])["class_name"] for one in samples(report)] == list(shipped[0][:-4:-1])
    assert download(tmp_path / "store", dataset="imagenet1k", **given).cached


def test_labels_and_lines_are_read_as_clip_benchmark_writes_them(tmp_path: Path) -> None:
    source = several_classes(tmp_path / "several")
    given = {"source": "webdataset", "num_train": -1, "num_val": 0, "num_test": 99, "image_size": 32}
    report = download(tmp_path / "store", path=str(source), **given)
    classes = [json.loads(one.fields["json"])["classes"] for one in samples(report)]
    assert classes[0] == []
    assert max(map(len, classes)) > 1
    assert all("cls" not in one.fields for one in samples(report))
    rows = [Sample(f"s{i}", {"png": encode(photo(i), "png"), "npy": data}) for i, data in enumerate(BAD.values())]
    rows.append(Sample("good", {"png": encode(photo(9), "png"), "npy": npy([1, 0, 0, 0])}))
    write_shard(source / "test/0.tar", rows)
    found = notes(download(tmp_path / "store", path=str(source), **given))
    assert {note.reason for note in found.values()} == {"bad_class"}
    assert len(found) == len(BAD)
    report = download(tmp_path / "store", path=str(captions(tmp_path / "texts")), **given)
    read = [json.loads(one.fields["json"])["captions"] for one in samples(report)]
    assert read[:2] == [["one of 0"], ["one of 1", "two of 1", "one of 1"]], "repeated captions count as often"


BAD = {
    "cut": npy([1, 0, 0, 0])[:-1],
    "short": npy([1, 0, 0]),
    "other": npy([2, 0, 0, 0]),
    "pickled": npy(np.array([{}, {}, {}, {}], dtype=object)),
    "empty": b"",
}
