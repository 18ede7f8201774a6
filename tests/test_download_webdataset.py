"""Download from webdataset tars in a folder, behind http and on S3: what is counted, what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from downloads import download, notes, numbers, photo, samples
from s3 import moto_server, new_bucket

from components.errors import PermanentError, UsageError
from components.images import decode, encode
from components.shards import Sample, read_shard, write_shard
from components.store import open_store


def classified(folder: Path, numbers_: dict[str, list[int]], repeat: bool = False) -> Path:
    """CLIP_benchmark's layout; with repeat every tar counts its keys from 0, as some writers do."""
    label = 0
    for split, sizes in numbers_.items():
        (folder / split).mkdir(parents=True)
        (folder / split / "nshards.txt").write_text(str(len(sizes)))
        first = 0
        for number, size in enumerate(sizes):
            rows = []
            for i in range(size):
                key = f"s{i if repeat else first + i:07d}"
                rows.append(Sample(key, {"cls": str(label % 3).encode(), "jpg": encode(photo(label, 16, 16), "jpg")}))
                label += 1
            first += size
            write_shard(folder / split / f"{number}.tar", rows)
    (folder / "classnames.txt").write_text("cat\ndog\nowl\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}.\n")
    return folder


def test_webdataset_with_splits(tmp_path: Path) -> None:
    source = classified(tmp_path / "data", {"train": [9] * 11, "test": [6, 7]})
    report = download(
        tmp_path / "store", source="webdataset", path=str(source), num_train=40, num_test=100, dataset="animals"
    )
    assert numbers(report) == {"train": 40, "val": 5, "test": 13}
    assert report.metrics == {"num_classes": 3, "image_size": 16, "dataset": "animals"}
    place = open_store(report.url)
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        assert place.get_bytes(name) == (source / name).read_bytes()
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


def flat(folder: Path, sizes: list[int]) -> Path:
    folder.mkdir(parents=True)
    count = 0
    for number, size in enumerate(sizes):
        rows = []
        for _ in range(size):
            text = {"caption": f"one of {count}", "captions": [f"one of {count}", f"two of {count}"]}
            fields = {
                "jpg": encode(photo(count), "jpg"),
                "txt": f"one of {count}".encode(),
                "json": json.dumps(text).encode(),
            }
            rows.append(Sample(f"{count:06d}", fields))
            count += 1
        write_shard(folder / f"{number:05d}.tar", rows)
    return folder


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
            Sample("from-json", {"png": encode(photo(2), "png"), "json": b'{"caption": " y "}'}),
        ],
    )
    report = download(tmp_path / "store", source="webdataset", path=str(source), num_train=0, num_val=3, num_test=4)
    assert {key: (n.outcome, n.reason) for key, n in notes(report).items()} == {
        "no-text": ("skipped", "no_caption"),
        "no-picture": ("failed", "missing"),
        "cut": ("failed", "truncated"),
        "bad-json": ("skipped", "bad_json"),
    }
    by_key = {sample.key: json.loads(sample.fields["json"]) for sample in samples(report)}
    assert by_key["000003"]["captions"] == ["one of 3", "two of 3"]
    assert by_key["from-json"]["caption"] == "y"
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


@pytest.mark.parametrize("layout", ["base", "pattern", "one"])
def test_webdataset_behind_http(tmp_path: Path, layout: str) -> None:
    if layout == "base":
        source = classified(tmp_path / "data", {"train": [9, 9], "test": [6]})
        remote, local = "", source
    else:
        source = flat(tmp_path / "data", [8, 8] if layout == "pattern" else [12])
        remote, local = ("/{00000..00001}.tar", source) if layout == "pattern" else ("/00000.tar", source)
    here = download(tmp_path / "a", source="webdataset", path=str(local))
    with served(source) as url:
        there = download(tmp_path / "b", source="webdataset", path=url + remote)
    assert there.manifest_sha256 == here.manifest_sha256


def served(folder: Path) -> Any:
    """The folder behind an http server of the standard library."""
    import threading
    from contextlib import contextmanager
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    @contextmanager
    def run() -> Any:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    return run()


def test_what_is_not_behind_http(tmp_path: Path) -> None:
    (tmp_path / "data/train").mkdir(parents=True)
    with served(tmp_path / "data") as url:
        with pytest.raises(PermanentError, match=r"no \.tar files"):
            download(tmp_path / "store", source="webdataset", path=url)
        with pytest.raises(PermanentError, match=r"00000\.tar.*HTTP 404"):
            download(tmp_path / "store", source="webdataset", path=f"{url}/00000.tar")
        (tmp_path / "data/train/nshards.txt").write_text("many")
        with pytest.raises(PermanentError, match="expected the number of tars"):
            download(tmp_path / "store", source="webdataset", path=url)


def test_webdataset_on_s3(tmp_path: Path) -> None:
    source = classified(tmp_path / "data", {"train": [9, 9], "test": [6]})
    here = download(tmp_path / "a", source="webdataset", path=str(source))
    with moto_server():
        bucket = new_bucket()
        place = open_store(f"{bucket}/data")
        for path in source.rglob("*.*"):
            place.put_file(path.relative_to(source).as_posix(), path)
        there = download(tmp_path / "b", source="webdataset", path=f"{bucket}/data")
        assert download(tmp_path / "b", source="webdataset", path=f"{bucket}/data/").cached
        plain = flat(tmp_path / "flat", [6, 6, 6])
        for path in plain.iterdir():
            place.put_file(f"flat/{path.name}", path)
        some = download(tmp_path / "c", source="webdataset", path=f"{bucket}/data/flat/{{00001..00002}}.tar")
    assert some.manifest.counts["ok"] == 12
    assert {json.loads(s.fields["json"])["source"].split("/")[0] for s in samples(some)} == {"00001.tar", "00002.tar"}
    assert [s.sha256 for s in there.manifest.shards] == [s.sha256 for s in here.manifest.shards]


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
        ("classnames.txt", "cat\ndog\ncat\n", r"data/classnames\.txt: lines 1 and 3 both name the class 'cat'"),
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
    assert open_store(report.url).get_bytes("classnames.txt") == b"cat\ndog\nowl\n"


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
