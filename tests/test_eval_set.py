"""An evaluation set of its own: downloaded without training pictures, fitted, scored in the right words."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from downloads import classified, download, flat, numbers, photo, samples
from picture_sets import committed

from components import FLOW
from components.config import DownloadParams, SplatFitParams
from components.errors import PermanentError
from components.images import encode
from components.manifest import open_artifact
from components.params import load_params
from components.shards import Sample, write_shard
from components.store import open_store
from components.zero_shot_eval.page import report_html

ALONE: dict[str, Any] = {"num_train": -1, "num_val": 0, "num_test": 100}


def test_test_shards_alone_make_an_evaluation_set(tmp_path: Path) -> None:
    source = classified(tmp_path / "data", {"test": [6, 7]})
    with pytest.raises(PermanentError, match="only evaluated on needs num_train: -1"):
        download(tmp_path / "store", source="webdataset", path=str(source))
    report = download(tmp_path / "store", source="webdataset", path=str(source), **ALONE)
    assert numbers(report) == {"test": 13}
    assert report.metrics["num_classes"] == 3
    assert numbers(download(tmp_path / "store", source="webdataset", path=str(source), **ALONE | {"num_test": 4})) == {
        "test": 4
    }


def test_one_picture_is_an_evaluation_set_and_none_is_not(tmp_path: Path) -> None:
    source = classified(tmp_path / "data", {"test": [1]})
    assert numbers(download(tmp_path / "store", source="webdataset", path=str(source), **ALONE)) == {"test": 1}
    cut = encode(photo(1), "jpg")[:99]
    write_shard(source / "test/0.tar", [Sample("cut", {"jpg": cut, "cls": b"0"})])
    with pytest.raises(PermanentError, match="none of the 1 samples of 'test' can be used; the first: cut"):
        download(tmp_path / "store", source="webdataset", path=str(source), **ALONE)


def test_training_shards_beside_it_are_not_read(tmp_path: Path) -> None:
    source = classified(tmp_path / "data", {"train": [9, 9], "test": [6]})
    first = download(tmp_path / "store", source="webdataset", path=str(source), **ALONE)
    assert numbers(first) == {"test": 6}
    for tar in (source / "train").glob("*.tar"):
        tar.write_bytes(b"not a tar, and never opened")
    assert download(tmp_path / "store", source="webdataset", path=str(source), **ALONE).cached
    assert numbers(download(tmp_path / "new", source="webdataset", path=str(source), **ALONE)) == {"test": 6}


@pytest.mark.parametrize("own", [True, False])
def test_validation_pictures_of_an_evaluation_set(tmp_path: Path, own: bool) -> None:
    """Its own val shards, or else dealt out of the training shards."""
    source = classified(tmp_path / "data", {"train": [9], "test": [6], **({"val": [5]} if own else {})})
    report = download(tmp_path / "store", source="webdataset", path=str(source), **ALONE | {"num_val": 4})
    assert numbers(report) == {"val": 4, "test": 6}
    origins = {json.loads(sample.fields["json"])["source"].split("/")[0] for sample in samples(report, "val")}
    assert origins == {"val" if own else "train"}


def test_without_splits_all_may_be_scored(tmp_path: Path) -> None:
    source = flat(tmp_path / "data", [10])
    assert numbers(download(tmp_path / "store", source="webdataset", path=str(source), **ALONE)) == {"test": 10}
    some = download(tmp_path / "store", source="webdataset", path=str(source), num_train=-1, num_val=5, num_test=10)
    assert sum(numbers(some).values()) == 10
    assert "train" not in numbers(some)


def test_drawn_pictures_without_training(tmp_path: Path) -> None:
    report = download(tmp_path, num_train=-1, num_val=0, num_test=12)
    assert numbers(report) == {"test": 12}
    whole = download(tmp_path, num_train=3, num_val=0, num_test=12)
    assert [s.fields["png"] for s in samples(report)] == [s.fields["png"] for s in samples(whole, "test")]


@pytest.mark.parametrize("layout", ["classes", "captions"])
def test_a_folder_of_test_pictures(tmp_path: Path, layout: str) -> None:
    for number in range(12):
        split, name = ("train", "test")[number % 2], ("cat", "dog")[number // 2 % 2]
        folder = tmp_path / "data" / split / (name if layout == "classes" else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encode(photo(number), "png"))
    if layout == "captions":
        rows = [f"{('train', 'test')[number % 2]}/{number}.png,picture {number}" for number in range(12)]
        (tmp_path / "data/captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    report = download(tmp_path / "store", source="folder", path=f"{tmp_path}/data", **ALONE)
    assert numbers(report) == {"test": 6}
    assert report.manifest.counts["failed"] == report.manifest.counts["skipped"] == 0
    assert report.metrics["num_classes"] == (2 if layout == "classes" else 0)
    if layout == "classes":
        shutil.rmtree(tmp_path / "data/train")
        alone = download(tmp_path / "store", source="folder", path=f"{tmp_path}/data", **ALONE)
        assert (numbers(alone), alone.metrics["num_classes"]) == ({"test": 6}, 2)


# The whole flow: trained on captioned pictures, scored on classes of another set.


class Trained:
    """The flow up to the adapter, trained once; score() runs the steps of an evaluation set."""

    def __init__(self, folder: Path, training: DownloadParams) -> None:
        self.store = str(folder / "store")
        self.params = replace(load_params(ROOT / "tests/tiny.yaml"), download=training, download_eval=training)
        self.urls: dict[str, str] = {}
        for name in ("download", "train_teacher", "splat_fit", "train_adapter"):
            self.step(name, getattr(self.params, name), self.urls)

    def step(self, name: str, section: Any, urls: dict[str, str]) -> None:
        step = next(step for step in FLOW if step.name == name)
        inputs = {item: urls[source] for item, source in step.inputs.items()}
        stage = importlib.import_module(f"components.{step.stage}.stage")
        urls[name] = stage.run(section, **inputs, store=self.store).url

    def score(
        self, evaluation: DownloadParams, fit: SplatFitParams | None = None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """scores.json, and the addresses of all steps."""
        urls = dict(self.urls)
        self.step("download_eval", evaluation, urls)
        self.step("splat_fit_eval", fit or self.params.splat_fit, urls)
        self.step("zero_shot_eval", self.params.zero_shot_eval, urls)
        return json.loads(committed(urls["zero_shot_eval"], "scores.json")), urls

    def splits(self, url: str) -> list[str]:
        return open_artifact(url, open_store(self.store)).manifest.splits()


def of_sample(**changes: Any) -> DownloadParams:
    return replace(load_params(ROOT / "tests/tiny.yaml").download, **changes)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained on tars of captioned pictures without classes, as DataComp's are."""
    folder = tmp_path_factory.mktemp("captioned")
    source = flat(folder / "data", [40, 40])
    return Trained(
        folder, of_sample(source="webdataset", path=str(source), dataset="pairs", num_train=0, num_val=10, num_test=10)
    )


def settings(scores: dict[str, Any]) -> set[str]:
    return {row["setting"] for row in scores["rows"]}


def test_another_set_is_scored_in_its_own_classes_and_called_zero_shot(captioned: Trained, tmp_path: Path) -> None:
    source = classified(tmp_path / "animals", {"test": [20, 10]})
    animals = replace(
        captioned.params.download, path=str(source), dataset="animals", num_train=-1, num_val=0, num_test=25
    )
    scores, urls = captioned.score(animals)
    assert (scores["dataset"], scores["task"], scores["split"]) == ("animals", "classification", "test")
    assert scores["class_names"] == ["cat", "dog", "owl"]
    assert scores["templates"] == ["a {c}.", "the {c}."]
    assert scores["num_pictures"] == 25
    assert scores["left_out"]["counts"] == {}
    assert settings(scores) == {"zero-shot"}
    assert [row["name"] for row in scores["rows"]] == ["teacher", "control", "control_stage1", "rendered", "splats"]
    assert not [note for note in scores["notes"] if "other splats" in note], "fitted alike, though to other pictures"
    assert captioned.splits(urls["splat_fit_eval"]) == ["test"], "no time goes into pictures that are not scored"
    page = report_html(urls["zero_shot_eval"], captioned.store, tags={}).decode()
    assert "animals, split test" in page
    assert captioned.urls["download"].rpartition("/")[2] in page, "what was trained on is in the lineage"
    for row in scores["rows"]:
        result = json.loads(committed(urls["zero_shot_eval"], f"benchmark/animals_vit-32_{row['name']}.json"))
        assert (result["dataset"], result["zero_shot"], result["setting"]) == ("animals", True, "zero-shot")


def test_splats_fitted_otherwise_are_named(captioned: Trained, tmp_path: Path) -> None:
    source = classified(tmp_path / "animals", {"test": [12]})
    animals = replace(captioned.params.download, path=str(source), num_train=-1, num_val=0)
    scores, _ = captioned.score(animals, replace(captioned.params.splat_fit, num_gaussians=9))
    assert [note for note in scores["notes"] if "other splats" in note]


def test_fewer_pictures_of_the_training_set_stay_in_distribution(captioned: Trained) -> None:
    scores, urls = captioned.score(replace(captioned.params.download, num_test=6))
    assert (scores["task"], scores["num_pictures"]) == ("retrieval", 6)
    assert settings(scores) == {"in-distribution retrieval"}
    assert urls["splat_fit_eval"] != urls["splat_fit"]


def test_captions_of_another_set_are_searched_as_such(captioned: Trained, tmp_path: Path) -> None:
    source = flat(tmp_path / "others", [12])
    others = replace(captioned.params.download, path=str(source), dataset="others", num_train=-1, num_val=0)
    assert settings(captioned.score(others)[0]) == {"retrieval, trained here on another image set"}


def test_pictures_of_another_size_are_refused(captioned: Trained, tmp_path: Path) -> None:
    """Params refuses it before any work; a stage that is run by itself still has to."""
    source = classified(tmp_path / "animals", {"test": [12]})
    other = replace(captioned.params.download, path=str(source), num_train=-1, num_val=0, image_size=24)
    with pytest.raises(PermanentError, match="image_size to 32"):
        captioned.score(other)


def test_classes_that_were_trained_on_are_counted(tmp_path: Path) -> None:
    """Trained on drawn shapes, scored on a set that shares one of its three classes."""
    trained = Trained(tmp_path, of_sample())
    shape = trained.score(of_sample())[0]["class_names"][0]
    source = classified(tmp_path / "mixed", {"test": [12]})
    (source / "classnames.txt").write_text(f"cat\n{shape.upper()}\nowl\n")
    mixed = of_sample(source="webdataset", path=str(source), dataset="mixed", num_train=-1, num_val=0)
    scores, _ = trained.score(mixed)
    assert settings(scores) == {"in-distribution, prompt classifier (1 of 3 classes trained on)"}


@pytest.mark.full
def test_trained_on_captions_scored_on_cifar(shared_data: Path, tmp_path: Path) -> None:
    """As datacomp-small: web-like pairs to train on, CIFAR-10's test shards alone to be scored on."""
    cifar = tmp_path / "cifar10"
    shutil.copytree(shared_data / "cifar10/test", cifar / "test")
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        shutil.copy(shared_data / "cifar10" / name, cifar / name)
    pairs = of_sample(
        source="webdataset", path=str(shared_data / "flickr8k-1k"), dataset="pairs", num_train=400, num_val=50
    )
    trained = Trained(tmp_path, pairs)
    scores, urls = trained.score(
        replace(pairs, path=str(cifar), dataset="cifar10", num_train=-1, num_val=0, num_test=300)
    )
    assert (scores["dataset"], scores["num_pictures"], scores["num_classes"]) == ("cifar10", 300, 10)
    assert settings(scores) == {"zero-shot"}
    assert scores["chance"]["acc1"] == 0.1
    assert trained.splits(urls["download_eval"]) == ["test"]
    assert committed(urls["download_eval"], "classnames.txt").startswith(b"airplane\n")
