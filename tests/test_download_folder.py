"""Download from folders: what becomes of every picture, what is counted, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downloads import download, image_of, notes, numbers, photo, samples
from picture_sets import committed
from PIL import Image

from components.errors import PermanentError, UsageError
from components.manifest import open_artifact
from components.store import open_store


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


SPACES = "\u2028\u2029\x85"  # which end a line in a text for people, and none in JSON


def test_folder_with_jsonl(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    rows = []
    for i in range(6):
        saved(photo(i), source / f"{i}.webp", lossless=True)
        texts = [f"one of {i}", f"two{SPACES}of {i}"]
        rows.append({"image": f"{i}.webp", "captions": texts, "class": "cat" if i % 2 else "dog"})
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (source / "captions.jsonl").write_bytes("\r\n".join(lines).encode())
    report = download(tmp_path / "store", source="folder", path=str(source), num_val=1, num_test=1)
    assert numbers(report) == {"train": 4, "val": 1, "test": 1}
    assert committed(report.url, "classnames.txt") == b"cat\ndog\n"
    for sample in samples(report):
        meta = json.loads(sample.fields["json"])
        assert meta["class_name"] == ("cat" if int(sample.key) % 2 else "dog")
        assert meta["captions"] == [f"one of {sample.key}", f"two{SPACES}of {sample.key}"]


def test_null_is_no_class(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for i in range(6):
        saved(photo(i), source / f"{i}.png")
    rows = [{"image": f"{i}.png", "caption": f"one of {i}", "class": None} for i in range(6)]
    (source / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    report = download(tmp_path / "store", source="folder", path=str(source), num_val=1, num_test=1)
    assert not report.manifest.files


def test_folder_of_classes(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for i in range(20):
        saved(photo(i), source / f"{'cat' if i % 2 else 'a dog'}/{i // 2}.v1.png")
    report = download(tmp_path / "store", source="folder", path=str(source), num_val=3, num_test=4)
    assert numbers(report) == {"train": 13, "val": 3, "test": 4}
    assert committed(report.url, "classnames.txt") == b"a dog\ncat\n"
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
    refuse(flat, "number of pictures: 2; at least 3 are needed")
    captions_csv(flat, [("b.png", "x"), ("c.png", "x")])
    refuse(flat, r"none of the 2 samples of 'train' can be used; the first: ")
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


def test_captions_csv_rows_with_more_or_fewer_values_than_columns(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for i in range(4):
        saved(photo(i), source / f"p{i}.png")

    def write(row: str, header: str = "image,caption") -> None:
        lines = [header, 'p1.png,"one, two"', "p2.png,two", "", row, "p3.png,three"]
        lines = [line + ",owl" * (header.count(",") == 2 and line not in {"", header, row}) for line in lines]
        (source / "captions.csv").write_text("\n".join(lines) + "\n")

    def refuse(says: str) -> None:
        with pytest.raises(PermanentError, match=says):
            download(tmp_path / "store", source="folder", path=str(source))

    write("p0.png,A dog, a cat, and a boat")
    refuse(r"pictures/captions\.csv: line 5 has 4 values for the 2 columns image,caption; put .* in double quotes")
    write("p0.png")
    refuse(r"captions\.csv: line 5 has no value for caption; write")
    write("p0.png,A dog", "image,caption,class")
    refuse("line 5 has no value for class; write a comma")
    write('p0.png, "A dog, a cat",', "image,caption")  # a spreadsheet's empty last column
    report = download(tmp_path / "store", source="folder", path=str(source))
    captions = {sample.key: sample.fields["txt"] for sample in samples(report)}
    assert captions == {"p0": b"A dog, a cat", "p1": b"one, two", "p2": b"two", "p3": b"three"}


def test_sets_too_small_to_train_on_and_test(tmp_path: Path) -> None:
    source = tmp_path / "pictures"

    def refuse(says: str) -> None:
        with pytest.raises(PermanentError, match=says):
            download(tmp_path / "store", source="folder", path=str(source))

    saved(photo(0), source / "a.png")
    captions_csv(source, [("a.png", "x")])
    refuse("pictures': number of pictures: 1; at least 3 are needed")
    for name in ("b", "c"):
        saved(photo(ord(name)), source / f"{name}.png")
    captions_csv(source, [(f"{name}.png", "x") for name in "abc"])
    report = download(tmp_path / "store", source="folder", path=str(source))
    assert numbers(report) == {"train": 2, "test": 1}
    tested = samples(report, "test")[0].key
    (source / f"{tested}.png").write_bytes(b"")
    refuse(rf"none of the 1 samples of 'test' can be used; the first: {tested} \(empty: ")


def test_one_class_is_refused_before_any_picture(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for i in range(6):
        saved(photo(i), source / f"cat/{i}.png")
    with pytest.raises(PermanentError, match=r"'cat' is its only class.*add pictures of another class, or give cap"):
        download(tmp_path / "store", source="folder", path=str(source))
    assert not list((tmp_path / "store").rglob("*.*"))
    saved(photo(9), source / "dog /9.png")
    with pytest.raises(PermanentError, match="class name 'dog ' begins or ends with a space"):
        download(tmp_path / "store", source="folder", path=str(source))
    (source / "dog ").rename(source / "dog")
    assert download(tmp_path / "store", source="folder", path=str(source)).metrics["num_classes"] == 2
