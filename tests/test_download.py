"""Download: what every source becomes, what is counted, what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from s3 import moto_server, new_bucket

from components.config import DownloadParams
from components.download import stage
from components.errors import Interrupted, PermanentError, UsageError
from components.images import decode, decode_rgb, encode
from components.manifest import SampleNote, open_artifact
from components.report import Report
from components.shards import Sample, read_shard, write_shard
from components.store import open_store

TINY: dict[str, Any] = {"image_size": 16, "shard_size": 8, "num_train": 20, "num_val": 5, "num_test": 9}


def photo(seed: int, height: int = 20, width: int = 26) -> np.ndarray:
    low = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC))


def download(store: Path | str, **params: Any) -> Report:
    return stage.run(DownloadParams(**(TINY | params)), store=str(store))


def samples(report: Report, split: str | None = None) -> list[Sample]:
    artifact = open_artifact(report.url, open_store("."))
    found = []
    for shard in artifact.manifest.split(split) if split else artifact.manifest.shards:
        with artifact.local(shard) as path:
            found += list(read_shard(path))
    return found


def notes(report: Report) -> dict[str, SampleNote]:
    """Every sample that is not ok, by key, as the entries name them."""
    place = open_store(report.url)
    entries = [json.loads(place.get_bytes(name)) for name in place.list("_done/")]
    return {note["key"]: SampleNote(**note) for entry in entries for note in entry["samples"]}


def numbers(report: Report) -> dict[str, int]:
    return {split: sum(s.ok for s in report.manifest.split(split)) for split in report.manifest.splits()}


def image_of(sample: Sample) -> np.ndarray:
    return decode_rgb(next(data for ext, data in sample.fields.items() if ext in {"jpg", "png", "webp"}))


# --- sample ---------------------------------------------------------------------------------------------------------


def test_sample_draws_captioned_classified_pictures(tmp_path: Path) -> None:
    report = download(tmp_path, image_size=32, num_train=40)
    assert numbers(report) == {"train": 40, "val": 5, "test": 9}
    assert report.metrics == {"num_classes": 10, "image_size": 32, "dataset": "sample"}
    assert report.speeds["images_per_s"] > 0
    names = open_store(report.url).get_bytes("classnames.txt").decode().split("\n")[:-1]
    templates = open_store(report.url).get_bytes("zeroshot_classification_templates.txt").decode().splitlines()
    assert len(names) == len(set(names)) == 10
    assert all("{c}" in line for line in templates)
    seen = samples(report)
    assert len({sample.key for sample in seen}) == 54
    for sample in seen:
        meta = json.loads(sample.fields["json"])
        assert image_of(sample).shape == (32, 32, 3)
        assert meta["class_name"] == names[meta["class"]] == names[int(sample.fields["cls"])]
        assert meta["key"] == sample.key
        assert (meta["width"], meta["height"]) == (32, 32)
        assert meta["class_name"] in meta["caption"]
        assert meta["captions"][0] == meta["caption"] == sample.fields["txt"].decode()
        assert len(set(meta["captions"])) == 3
        assert " a a" not in f" {meta['caption']}"
        assert " a o" not in f" {meta['caption']}"
    labels = [json.loads(sample.fields["json"])["class"] for sample in samples(report, "train")]
    assert [labels.count(label) for label in range(10)] == [4] * 10


def test_sample_pictures_differ_between_splits_and_seeds_and_not_between_calls(tmp_path: Path) -> None:
    first, second = download(tmp_path / "a"), download(tmp_path / "b")
    other = download(tmp_path / "c", seed=1)
    assert first.manifest_sha256 == second.manifest_sha256
    assert first.manifest.key != other.manifest.key
    pixels = [image_of(sample).tobytes() for sample in samples(first) + samples(other)]
    assert len(set(pixels)) == len(pixels)


def test_sample_shapes_are_told_apart_by_their_outline() -> None:
    """Each shape's own mask, upright, agrees best with itself: classes are what their names say."""
    from components.download.shapes import SHAPES

    axis = np.linspace(-1.1, 1.1, 64, dtype=np.float32)
    masks = {name: shape(*np.meshgrid(axis, axis)) < 0 for name, shape in SHAPES.items()}
    for name, mask in masks.items():
        assert 0.15 < mask.mean() < 0.65, name
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any(), name
        for other, theirs in masks.items():
            if other != name:
                assert (mask & theirs).sum() / (mask | theirs).sum() < 0.9, (name, other)
    assert not masks["ring"][32, 32]
    assert masks["arrow"][:20].sum() < masks["arrow"][20:40].sum()


def test_sample_is_fast_enough() -> None:
    from components.download.sample import SampleSource

    source = SampleSource(DownloadParams(num_train=60))
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        for ref in source.refs[:60]:
            encode(source.load(ref).image, "png")  # type: ignore[arg-type]
        best = min(best, time.process_time() - start)
    assert 60 / best > 200, f"{60 / best:.0f} pictures a second"


# --- committing, resuming -------------------------------------------------------------------------------------------


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    first, second = download(tmp_path), download(tmp_path)
    assert (first.cached, second.cached) == (False, True)
    assert first.manifest_sha256 == second.manifest_sha256
    assert first.url == second.url


def test_same_bytes_on_a_folder_and_on_s3(tmp_path: Path) -> None:
    folder = download(tmp_path)
    with moto_server():
        remote = download(f"{new_bucket()}/runs")
        here, there = open_store(folder.url), open_store(remote.url)
        assert here.list() == there.list()
        assert all(here.get_bytes(name) == there.get_bytes(name) for name in here.list())


def test_finished_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = download(tmp_path / "whole")
    made: list[int] = []
    write = stage._write

    def watch(commit: Any, shard: Any, *rest: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(shard.index)
        return write(commit, shard, *rest)

    monkeypatch.setattr(stage, "_write", watch)
    with pytest.raises(KeyboardInterrupt):
        download(tmp_path / "cut")
    made.clear()
    monkeypatch.setattr(
        stage, "_write", lambda commit, shard, *rest: (made.append(shard.index), write(commit, shard, *rest))[1]
    )
    again = download(tmp_path / "cut")
    assert made == [2, 3, 4, 5]
    assert again.manifest_sha256 == whole.manifest_sha256


def test_kill_at_any_moment_and_again_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = download(tmp_path / "whole", num_train=200)
    code = f"""
from components.config import DownloadParams
from components.download import stage
stage.run(DownloadParams(**{TINY | {"num_train": 200}!r}), store={str(tmp_path / "cut")!r})
"""
    kills = 0
    for shards in (0, 2, 9):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "cut").glob("download/*/_done/[0-9]*.json"))) <= shards:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert not list((tmp_path / "cut").glob("download/*/manifest.json")) or not kills
    assert kills >= 2
    again = download(tmp_path / "cut", num_train=200)
    one, two = open_store(whole.url), open_store(again.url)
    assert one.list() == two.list()
    assert all(one.get_bytes(name) == two.get_bytes(name) for name in one.list())


def test_sigterm_stops_between_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = stage._write

    def stop_in_the_second(commit: Any, shard: Any, *rest: Any) -> Any:
        if shard.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(commit, shard, *rest)

    monkeypatch.setattr(stage, "_write", stop_in_the_second)
    with pytest.raises(Interrupted, match="2 of 6 shards are kept"):
        download(tmp_path)
    monkeypatch.setattr(stage, "_write", write)
    assert numbers(download(tmp_path)) == {"train": 20, "val": 5, "test": 9}


def test_other_parameters_never_mix(tmp_path: Path) -> None:
    first = download(tmp_path)
    second = download(tmp_path, image_size=24)
    assert first.manifest.key != second.manifest.key
    assert {shard.params_hash for shard in second.manifest.shards} == {second.manifest.params_hash}
    assert all(image_of(sample).shape == (24, 24, 3) for sample in samples(second))


# --- folder ---------------------------------------------------------------------------------------------------------


def captions_csv(folder: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("image", "caption")) -> None:
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])


def saved(array: np.ndarray, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def odd_folder(folder: Path) -> Path:
    """Pictures of every kind that should work, and of every kind that should be counted."""
    for i in range(12):
        saved(photo(i), folder / f"good-{i}.jpg", quality=95)
    saved(photo(20)[..., 0], folder / "grey.png")
    Image.fromarray(photo(21)).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    saved((photo(22)[..., 0].astype(np.uint16) * 257), folder / "deep.png")
    saved(photo(23, 16, 16), folder / "exact.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(photo(24, 16, 16), folder / "turned.png", exif=exif)
    whole = (folder / "good-0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_bytes(b"<html>404</html>")
    (folder / "empty.jpg").write_bytes(b"")
    saved(photo(25), folder / "silent.png")
    saved(photo(26), folder / "blank.png")
    names = sorted(path.name for path in folder.iterdir())
    rows = [(name, f"caption of {name}, with a comma") for name in names if name not in {"silent.png", "blank.png"}]
    captions_csv(
        folder, [*rows, ("good-1.jpg", "a second one"), ("blank.png", " "), ("gone.jpg", "x"), ("../up.jpg", "x")]
    )
    return folder


def test_folder_takes_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    source = odd_folder(tmp_path / "pictures")
    report = download(tmp_path / "store", source="folder", path=str(source), num_train=0, num_val=2, num_test=3)
    reasons = {key: (note.outcome, note.reason) for key, note in notes(report).items()}
    assert reasons == {
        "cut": ("failed", "truncated"),
        "text": ("failed", "unreadable"),
        "empty": ("failed", "empty"),
        "gone": ("failed", "missing"),
        "up": ("failed", "missing"),
        "silent": ("skipped", "no_caption"),
        "blank": ("skipped", "no_caption"),
    }
    expected = {"missing": 2, "empty": 1, "no_caption": 2, "truncated": 1, "unreadable": 1}
    assert report.manifest.counts == {"in": 24, "ok": 17, "skipped": 2, "failed": 5, "reasons": expected}
    by_key = {sample.key: sample for sample in samples(report)}
    assert len(by_key) == 17
    assert all(image_of(sample).shape == (16, 16, 3) for sample in by_key.values())
    assert by_key["exact"].fields["png"] == (source / "exact.png").read_bytes()
    turned = np.rot90(photo(24, 16, 16), -1)
    assert np.array_equal(image_of(by_key["turned"]), turned)
    grey = image_of(by_key["deep"])
    assert (grey[..., 0] == grey[..., 1]).all()
    meta = json.loads(by_key["good-1"].fields["json"])
    assert meta["captions"] == ["caption of good-1.jpg, with a comma", "a second one"]
    assert (meta["class"], meta["class_name"], meta["original_width"], meta["source"]) == (-1, "", 26, "good-1.jpg")
    assert "cls" not in by_key["good-1"].fields
    assert not open_artifact(report.url, open_store(".")).has("classnames.txt")


def test_folder_is_known_by_its_content_not_its_place(tmp_path: Path) -> None:
    first, second = odd_folder(tmp_path / "one"), odd_folder(tmp_path / "two/three")
    one = download(tmp_path / "a", source="folder", path=str(first))
    two = download(tmp_path / "b", source="folder", path=f"{second}/")
    assert one.manifest_sha256 == two.manifest_sha256
    saved(photo(99), second / "good-3.jpg")
    three = download(tmp_path / "b", source="folder", path=str(second))
    assert three.manifest.key != two.manifest.key


def test_folder_with_jsonl(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    rows = []
    for i in range(6):
        saved(photo(i), source / f"{i}.webp", lossless=True)
        rows.append(
            {"image": f"{i}.webp", "captions": [f"one of {i}", f"two of {i}"], "class": "cat" if i % 2 else "dog"}
        )
    (source / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    report = download(tmp_path / "store", source="folder", path=str(source), num_val=1, num_test=1)
    assert numbers(report) == {"train": 4, "val": 1, "test": 1}
    assert open_store(report.url).get_bytes("classnames.txt") == b"cat\ndog\n"
    for sample in samples(report):
        meta = json.loads(sample.fields["json"])
        assert meta["class_name"] == ("cat" if int(sample.key) % 2 else "dog")
        assert meta["captions"] == [f"one of {sample.key}", f"two of {sample.key}"]


def test_folder_of_classes(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for i in range(20):
        saved(photo(i), source / f"{'cat' if i % 2 else 'a dog'}/{i // 2}.v1.png")
    report = download(tmp_path / "store", source="folder", path=str(source), num_val=3, num_test=4)
    assert numbers(report) == {"train": 13, "val": 3, "test": 4}
    assert open_store(report.url).get_bytes("classnames.txt") == b"a dog\ncat\n"
    labels = [json.loads(sample.fields["json"])["class"] for sample in samples(report, "train")]
    assert labels != sorted(labels), "a shard is to hold all classes"
    assert {sample.fields["txt"] for sample in samples(report)} == {b""}
    assert {sample.key for sample in samples(report)} == {f"{c}-{i}-v1" for c in ("cat", "a-dog") for i in range(10)}


def test_folder_with_splits(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for i in range(10):
        saved(photo(i), source / f"{'test' if i < 4 else 'train'}/{'cat' if i % 2 else 'dog'}/{i}.png")
    report = download(tmp_path / "store", source="folder", path=str(source), num_val=2)
    assert numbers(report) == {"train": 4, "val": 2, "test": 4}
    assert {json.loads(s.fields["json"])["source"].split("/")[0] for s in samples(report, "test")} == {"test"}
    assert {json.loads(s.fields["json"])["source"].split("/")[0] for s in samples(report, "val")} == {"train"}


def test_folders_that_make_no_sense(tmp_path: Path) -> None:
    def refuse(path: Path, says: str) -> None:
        with pytest.raises(PermanentError, match=says):
            download(tmp_path / "store", source="folder", path=str(path))

    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(empty, r"no pictures there .* expected pictures with captions\.csv")
    refuse(tmp_path / "nowhere", "no such folder")
    flat = tmp_path / "flat"
    saved(photo(0), flat / "a.png")
    refuse(flat, "a.png has no caption and no class")
    captions_csv(flat, [("b.png", "x")])
    refuse(flat, r"none of its 2 samples can be used; the first: ")
    captions_csv(flat, [("a.png", "x")], ("picture", "words"))
    refuse(flat, "expected the columns image, caption")
    (flat / "captions.csv").write_bytes(b"image,caption\na.png,\xff\xfe\n")
    refuse(flat, "UTF-8")
    (flat / "captions.csv").unlink()
    for line in ('{"image": "a.png"', '{"caption": "x"}', "[]", '{"image": "a.png", "caption": 3}'):
        (flat / "captions.jsonl").write_text(f'{{"image": "a.png", "caption": "ok"}}\n{line}\n')
        refuse(flat, r"captions\.jsonl: line 2")
    with pytest.raises(UsageError, match="ftp"):
        download(tmp_path / "store", source="folder", path="ftp://x/y")


# --- webdataset -----------------------------------------------------------------------------------------------------


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
    refuse(source, r"has no \{c\}")


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
