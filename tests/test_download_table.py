"""The table and the summary beside each image shard, as users of img2dataset expect them."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from downloads import classified, download, flat, photo, samples
from picture_sets import committed
from PIL import Image
from test_download_folder import odd_folder

from components.download import stage
from components.download.sources import Raw, Skip
from components.download.table import COLUMNS, bad_row, row, side_files
from components.exif import exif_json
from components.images import ImageError
from components.report import Report
from components.store import open_store


def table(report: Report) -> dict[str, dict[str, Any]]:
    """Rows of all shards by key."""
    names = [file.name for shard in report.manifest.shards for file in shard.files if file.name.endswith(".parquet")]
    assert len(names) == len(report.manifest.shards)
    tables = [pq.read_table(io.BytesIO(committed(report.url, name))) for name in names]
    rows = [one for found in tables for one in found.to_pylist()]
    return {one["key"]: one for one in rows}


def stats(report: Report) -> list[dict[str, Any]]:
    names = [shard.name.replace(".tar", "_stats.json") for shard in report.manifest.shards]
    return [json.loads(committed(report.url, name)) for name in names]


def in_folder(tmp_path: Path) -> tuple[Path, Report]:
    source = odd_folder(tmp_path / "pictures")
    exif = Image.Exif()
    exif[0x010F] = "Maker\0"
    exif.get_ifd(0x8769)[0x829D] = 2.8
    Image.fromarray(photo(0)).save(source / "good-0.jpg", exif=exif)
    return source, download(tmp_path / "s", source="folder", path=str(source), num_train=0, num_val=2, num_test=3)


def test_every_sample_has_its_row(tmp_path: Path) -> None:
    source, report = in_folder(tmp_path)
    rows = table(report)
    assert len(rows) == report.manifest.counts["in"] == 24
    good = rows["good-0"]
    assert list(good) == list(COLUMNS)
    assert good == {
        "url": "good-0.jpg",
        "caption": "caption of good-0.jpg, with a comma",
        "key": "good-0",
        "status": "success",
        "error_message": None,
        "width": 16,
        "height": 16,
        "original_width": 26,
        "original_height": 20,
        "exif": '{"EXIF FNumber": "2.8", "Image Make": "Maker"}',
        "sha256": hashlib.sha256((source / "good-0.jpg").read_bytes()).hexdigest(),
        "class": None,
    }
    told = {key: (one["status"], (one["error_message"] or "").partition(":")[0]) for key, one in rows.items()}
    assert told["cut"] == ("failed_to_resize", "truncated")
    assert told["text"] == ("failed_to_resize", "unreadable")
    assert told["gone"] == ("failed_to_download", "missing")
    assert told["silent"] == ("skipped", "no_caption")
    assert rows["gone"]["url"] == "gone.jpg"
    assert rows["gone"]["caption"] == "x"
    assert rows["cut"]["sha256"] == hashlib.sha256((source / "cut.jpg").read_bytes()).hexdigest()
    assert rows["cut"]["width"] is None
    assert rows["turned"]["exif"] == '{"Image Orientation": "6"}'
    statuses = [status for status, _ in told.values()]
    assert {status: statuses.count(status) for status in statuses} == {
        "success": 17, "failed_to_resize": 2, "failed_to_download": 3, "skipped": 2,
    }  # fmt: skip


def test_stats_add_up(tmp_path: Path) -> None:
    _, report = in_folder(tmp_path)
    found = stats(report)
    keys = {"count", "successes", "failed_to_download", "failed_to_resize", "skipped", "status_dict"}
    assert all(set(one) == keys for one in found), "no times: the same work gives the same bytes"
    for one, shard in zip(found, report.manifest.shards, strict=True):
        assert one["count"] == one["successes"] + one["failed_to_download"] + one["failed_to_resize"] + one["skipped"]
        assert one["count"] == sum(one["status_dict"].values())
        assert one["successes"] == shard.ok == one["status_dict"].get("success", 0)
        others = {name: n for name, n in one["status_dict"].items() if name != "success"}
        assert others == {**shard.skipped, **shard.failed}
    assert sum(one["count"] for one in found) == 24


def test_classes_and_sources_without_files(tmp_path: Path) -> None:
    rows = table(download(tmp_path / "s", num_train=12))
    assert {one["class"] for one in rows.values()} == set(range(10))
    assert {(one["url"], one["sha256"], one["exif"]) for one in rows.values()} == {("drawn", None, None)}
    source = classified(tmp_path / "in", {"train": [12], "test": [4]})
    rows = table(download(tmp_path / "s", source="webdataset", path=str(source), dataset="x"))
    assert {one["class"] for one in rows.values()} == {0, 1, 2}
    assert {one["caption"] for one in rows.values()} == {None}
    assert all(one["url"].startswith(("train/0.tar/s", "test/0.tar/s")) for one in rows.values())


def test_same_bytes_resumed_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = odd_folder(tmp_path / "pictures")
    common = {"source": "folder", "path": str(source), "num_train": 0, "num_val": 2, "num_test": 3}
    whole, write = download(tmp_path / "whole", **common), stage._write

    def stop_at_the_third(commit: Any, shard: Any, *rest: Any) -> Any:
        if shard.index == 2:
            raise KeyboardInterrupt
        return write(commit, shard, *rest)

    monkeypatch.setattr(stage, "_write", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        download(tmp_path / "cut", **common)
    monkeypatch.setattr(stage, "_write", write)
    again = download(tmp_path / "cut", **common)
    one, two = open_store(whole.url), open_store(again.url)
    assert one.list() == two.list()
    assert sum(".parquet" in name or "_stats-" in name for name in one.list()) == 2 * len(whole.manifest.shards)
    assert all(one.get_bytes(name) == two.get_bytes(name) for name in one.list())


def test_a_lost_table_is_made_again(tmp_path: Path) -> None:
    first = download(tmp_path)
    place = Path(first.url)
    lost = place / first.manifest.shards[1].files[0].place
    data = lost.read_bytes()
    lost.unlink()
    (place / "manifest.json").unlink()
    assert download(tmp_path).manifest_sha256 == first.manifest_sha256
    assert lost.read_bytes() == data


def test_a_sources_own_columns_go_into_table_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.download.webdataset import WebdatasetSource

    load = WebdatasetSource.load

    def with_more(self: WebdatasetSource, ref: Any) -> Raw:
        raw = load(self, ref)
        extra = {"nsfw": 0.25, "uid": "half \ud800", "punsafe": 1, "key": "mine", "caption": "mine"}
        return Raw(raw.image, raw.captions, origin=raw.origin, extra=extra)

    monkeypatch.setattr(WebdatasetSource, "load", with_more)
    report = download(tmp_path / "s", source="webdataset", path=str(flat(tmp_path / "in", [12])))
    rows = table(report)
    assert {(one["nsfw"], one["uid"], one["punsafe"]) for one in rows.values()} == {(0.25, "half ?", 1)}
    assert list(next(iter(rows.values()))) == [*COLUMNS, "nsfw", "punsafe", "uid"]
    assert rows["000003"]["caption"] == "one of 3", "the stage's own columns go before"
    meta = {sample.key: json.loads(sample.fields["json"]) for sample in samples(report)}
    assert (meta["000003"]["nsfw"], meta["000003"]["caption"]) == (0.25, "one of 3")


def test_columns_have_one_type(tmp_path: Path) -> None:
    raws = [Raw(b"x", extra={"a": 1, "b": 1, "c": 1, "d": 1 << 70}), Raw(b"x", extra={"a": 2, "b": 0.5, "c": "t"})]
    lines = [row(str(i), raw, "success") for i, raw in enumerate(raws)]
    lines.append(bad_row("2", Raw(b""), Skip("no_caption", "half \ud800"), loaded=False))
    lines.append(bad_row("3", Raw(b"x"), ImageError("unreadable", "what"), loaded=True))
    files = side_files(lines)
    found = pq.read_table(io.BytesIO(files[".parquet"]))
    assert [str(found.schema.field(name).type) for name in "abcd"] == ["int64", "double", "string", "string"]
    assert found.column("d").to_pylist() == [str(1 << 70), None, None, None]
    assert found.column("error_message").to_pylist() == [None, None, "no_caption: half ?", "unreadable: what"]
    assert found.column("status").to_pylist()[2:] == ["skipped", "failed_to_resize"]
    assert side_files(lines) == files
    meta = pq.read_metadata(io.BytesIO(files[".parquet"]))
    assert (meta.format_version, meta.num_row_groups, meta.row_group(0).column(0).compression) == ("2.6", 1, "SNAPPY")
    empty = pq.read_table(io.BytesIO(side_files([])[".parquet"]))
    assert (empty.num_rows, empty.column_names) == (0, list(COLUMNS))


def test_later_stages_take_no_notice(tmp_path: Path) -> None:
    """The tables lie beside the tars: readers of a set look for tars, and find the same pictures."""
    from components.config import SplatFitParams
    from components.loader import ImageSet
    from components.manifest import open_artifact
    from components.splat_fit import stage as fitting

    first = download(tmp_path)
    assert all([file.name[-8:] for file in shard.files] == [".parquet", "ats.json"] for shard in first.manifest.shards)
    again = download(tmp_path, source="webdataset", path=first.url, dataset="x", num_train=0)
    assert again.manifest.counts["ok"] == first.manifest.counts["ok"]
    fit = fitting.run(SplatFitParams(num_gaussians=8, num_iters=2), images=first.url, store=str(tmp_path))
    assert fit.manifest.counts["ok"] == first.manifest.counts["ok"]
    images, splats = (open_artifact(report.url, open_store(".")) for report in (first, fit))
    assert len(ImageSet(images, "train", splats=splats)) == 20


@pytest.mark.parametrize(
    "data", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", bytes(500), b"Exif\0\0MM\0*" + b"\7" * 300]
)
def test_broken_exif_says_nothing(data: bytes) -> None:
    assert exif_json(data) == "{}"


def test_exif_is_words_not_data() -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x010F], exif[0x927C], exif[0xEEEE] = "x" * 5000, "é\0", b"\1" * 900, "unnamed"
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2] = "N", (52.0, 30.0, 1.5)
    found = json.loads(exif_json(exif.tobytes()))
    assert found == {
        "Image ImageDescription": "x" * 200,
        "Image Make": found["Image Make"],
        "GPS GPSLatitudeRef": "N",
        "GPS GPSLatitude": "(52.0, 30.0, 1.5)",
    }
