"""Download from webdataset tars in a folder: what is counted, what is refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from downloads import classified, download, flat, notes, numbers, photo, samples
from picture_sets import committed

from components.download import webdataset
from components.errors import PermanentError, UsageError
from components.images import decode, encode
from components.shards import IndexedShard, Sample, read_shard, write_shard


def test_webdataset_with_splits(tmp_path: Path) -> None:
    source = classified(tmp_path / "data", {"train": [9] * 11, "test": [6, 7]})
    report = download(
        tmp_path / "store", source="webdataset", path=str(source), num_train=40, num_test=100, dataset="animals"
    )
    assert numbers(report) == {"train": 40, "val": 5, "test": 13}
    assert report.metrics == {"num_classes": 3, "image_size": 16, "dataset": "animals"}
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        assert committed(report.url, name) == (source / name).read_bytes()
    originals = {
        f"{split}/{path.stem}/{s.key}": s
        for split in ("train", "test")
        for path in (source / split).glob("*.tar")
        for s in read_shard(path)
    }
    for sample in samples(report):
        meta = json.loads(sample.fields["json"])
        tar, member = meta["source"].split(".tar/")
        original = originals[f"{tar}/{member.removesuffix('.jpg')}"]
        assert sample.fields["jpg"] == original.fields["jpg"], "bytes of the right size pass through"
        assert sample.fields["cls"] == original.fields["cls"]
        assert sample.fields["txt"] == b""
    order = [json.loads(s.fields["json"])["source"] for s in samples(report, "train")]
    assert order == sorted(order, key=lambda name: (int(name.split("/")[1].split(".")[0]), name)), "2.tar before 10.tar"
    trained, validated = ({s.key for s in samples(report, split)} for split in ("train", "val"))
    assert not trained & validated


@pytest.mark.parametrize("repeat", [False, True])
def test_keys_that_tars_repeat_become_unique(tmp_path: Path, repeat: bool) -> None:
    source = classified(tmp_path / "data", {"train": [5, 5], "test": [5, 5]}, repeat)
    report = download(tmp_path / "store", source="webdataset", path=str(source), num_val=1, num_test=10)
    keys = [sample.key for sample in samples(report)]
    assert len(set(keys)) == len(keys) == 20
    assert "test-1-s0000000" in keys if repeat else "test-1-s0000005" in keys


def test_a_finished_download_opens_no_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = flat(tmp_path / "data", [4, 4])
    opened: list[str] = []

    class Watched(IndexedShard):
        def __init__(self, path: Path) -> None:
            opened.append(path.name)
            super().__init__(path)

    monkeypatch.setattr(webdataset, "IndexedShard", Watched)
    first = download(tmp_path / "store", source="webdataset", path=str(source))
    assert opened == ["00000.tar", "00001.tar"], "each tar's members are walked once"
    opened.clear()
    second = download(tmp_path / "store", source="webdataset", path=str(source))
    assert (second.cached, second.manifest_sha256) == (True, first.manifest_sha256)
    assert opened == []


def test_webdataset_flat_with_odd_samples(tmp_path: Path) -> None:
    source = flat(tmp_path / "data", [12, 12])
    good = encode(photo(1), "jpg")
    write_shard(
        source / "00002.tar",
        [
            Sample("no-text", {"jpg": good}),
            Sample("no-picture", {"txt": b"x"}),
            Sample("cut", {"jpg": good[:200], "txt": b"x"}),
            Sample("bad-json", {"jpg": good, "txt": b"x", "json": b"{"}),
            Sample("list", {"jpg": good, "txt": b"x", "json": b"[]"}),
            Sample("latin-1", {"jpg": good, "txt": "Café".encode("latin-1"), "json": b'{"caption": "y"}'}),
            Sample("marked", {"jpg": good, "txt": "\ufeffCafé".encode()}),
            Sample("from-json", {"png": encode(photo(2), "png"), "json": b'{"caption": " y "}'}),
        ],
    )
    report = download(tmp_path / "store", source="webdataset", path=str(source), num_train=0, num_val=3, num_test=4)
    assert {key: (n.outcome, n.reason) for key, n in notes(report).items()} == {
        "no-text": ("skipped", "no_caption"),
        "no-picture": ("failed", "missing"),
        "cut": ("failed", "truncated"),
        "bad-json": ("skipped", "bad_json"),
        "latin-1": ("skipped", "bad_caption"),
    }
    assert notes(report)["latin-1"].detail.startswith("a text that is not UTF-8")
    by_key = {sample.key: json.loads(sample.fields["json"]) for sample in samples(report)}
    assert by_key["000003"]["captions"] == ["one of 3", "two of 3"]
    assert by_key["from-json"]["caption"] == "y"
    assert by_key["marked"]["captions"] == ["Café"]
    assert report.metrics["num_classes"] == 0


def test_small_sets_leave_something_to_train_on(tmp_path: Path) -> None:
    source = flat(tmp_path / "data", [10])
    report = download(tmp_path / "store", source="webdataset", path=str(source), num_test=1000, num_val=500)
    found = numbers(report)
    assert found["train"] == 5
    assert found["val"] >= 1
    assert found["test"] > found["val"]


def test_a_test_split_alone_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    source = classified(tmp_path / "data", {"test": [6]})
    with pytest.raises(PermanentError, match="no picture to 'train': all 6 are of test; add pictures to 'train'"):
        download(tmp_path / "store", source="webdataset", path=str(source))
    assert not list((tmp_path / "store").rglob("*.*"))


def test_webdatasets_that_make_no_sense(tmp_path: Path) -> None:
    def refuse(path: Path | str, says: str) -> None:
        with pytest.raises(PermanentError, match=says):
            download(tmp_path / "store", source="webdataset", path=str(path))

    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(empty, r"no \.tar files there; expected \*\.tar, or train/ and test/")
    (empty / "0.tar").write_bytes(bytes(10240))
    refuse(empty, "its 1 tars hold no sample")
    (empty / "0.tar").write_bytes(b"junk" * 1000)
    refuse(empty, r"0\.tar: .* not a readable tar")
    with pytest.raises(UsageError, match="range"):
        download(tmp_path / "store", source="webdataset", path=f"{empty}/{{3..1}}.tar")
    source = classified(tmp_path / "data", {"train": [4], "test": [4]})
    (source / "classnames.txt").write_text("cat\ndog\n")
    report = download(tmp_path / "store", source="webdataset", path=str(source))
    assert report.manifest.counts["reasons"] == {"bad_class": 2}
    (source / "zeroshot_classification_templates.txt").write_text("a photo.\n")
    refuse(source, r"zeroshot_classification_templates\.txt, line 1: .* has no \{c\}")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("classnames.txt", "cat\n\ndog\nowl\n", r"data/classnames\.txt, line 2 is blank; it would shift"),
        ("dataset_type.txt", "captioning\n", r"data/dataset_type\.txt says 'captioning'; expected one of: class"),
        ("classnames.txt", "cat\n", r"data/classnames\.txt names 1 classes"),
        ("zeroshot_classification_templates.txt", "a {c}.\na {c} {d}.\n", r"data/zeroshot\S+txt, line 2: .* braces"),
    ],
)
def test_class_files_that_would_mislabel_are_refused_before_any_picture(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    source = classified(tmp_path / "data", {"train": [6], "test": [6]})
    (source / name).write_text(text)
    with pytest.raises(PermanentError, match=says) as caught:
        download(tmp_path / "store", source="webdataset", path=str(source))
    assert caught.value.exit_code == 42
    assert not list((tmp_path / "store").rglob("*.*"))


def test_blank_lines_at_the_end_of_class_files_do_no_harm(tmp_path: Path) -> None:
    source = classified(tmp_path / "data", {"train": [6], "test": [6]})
    (source / "classnames.txt").write_bytes(b"cat\r\ndog\r\nowl\r\n\r\n\n")
    report = download(tmp_path / "store", source="webdataset", path=str(source))
    assert committed(report.url, "classnames.txt") == b"cat\ndog\nowl\n"


def test_an_output_of_this_stage_is_a_source_with_its_classes(tmp_path: Path) -> None:
    """Its tables and class names lie under names of their content, and its manifest says which are which."""
    source = classified(tmp_path / "data", {"train": [6], "test": [6]})
    first = download(tmp_path / "store", source="webdataset", path=str(source))
    again = download(tmp_path / "store", source="webdataset", path=first.url)
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        assert committed(again.url, name) == committed(first.url, name)
    assert [s.fields["cls"] for s in samples(again)] == [s.fields["cls"] for s in samples(first)]
    for tar in Path(first.url).glob("*/*.tar"):  # of a second worker, which ended before it could write a manifest
        shutil.copy(tar, tar.with_name(f"{tar.name.partition('-')[0]}-{'0' * 12}.tar"))
    assert download(tmp_path / "store", source="webdataset", path=first.url).cached, "they are no part of the source"
    (source / "manifest.json").write_text('{"somebody": "else"}')
    assert download(tmp_path / "store", source="webdataset", path=str(source)).cached


def test_a_hostile_tar_stops_the_stage(tmp_path: Path) -> None:
    import tarfile

    source = flat(tmp_path / "data", [4])
    with tarfile.open(source / "00001.tar", "w") as tar:
        info = tarfile.TarInfo("../../escaped.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(PermanentError, match=r"00001\.tar: member '\.\./\.\./escaped\.jpg'"):
        download(tmp_path / "store", source="webdataset", path=str(source))
    assert not list(tmp_path.rglob("escaped*"))


def test_real_data(shared_data: Path, tmp_path: Path) -> None:
    cifar = download(
        tmp_path,
        source="webdataset",
        path=str(shared_data / "cifar10"),
        image_size=32,
        shard_size=500,
        num_train=300,
        num_val=50,
        num_test=100,
    )
    assert numbers(cifar) == {"train": 300, "val": 50, "test": 100}
    assert cifar.manifest.counts["failed"] == 0
    assert all(decode(sample.fields["jpg"]).plain for sample in samples(cifar, "val"))
    flickr = download(
        tmp_path,
        source="webdataset",
        path=str(shared_data / "flickr8k-1k"),
        image_size=224,
        num_train=20,
        num_val=5,
        num_test=5,
    )
    sample = samples(flickr, "test")[0]
    assert len(json.loads(sample.fields["json"])["captions"]) == 5
