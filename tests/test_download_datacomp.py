"""DataComp's pools: metadata from the hub or a folder, subsets, rows left out by score before anything is fetched."""

from __future__ import annotations

import hashlib
import io
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from downloads import samples
from hub import Hub, hub_server
from pyarrow import parquet
from url_lists import HERE, PICTURES
from web import Web, web_server

from components.config import DownloadParams, Params, semantic
from components.download import rows, stage
from components.download.datacomp import HALVES, contained, pairs_of, read_subset
from components.download.filters import FILTERED, NSFW, SIMILARITY, filtered
from components.download.rows import Rows
from components.download.sources import open_source
from components.errors import PermanentError, UsageError
from components.hub_params import DataCompParams, HubParams
from components.params import params_from_dict
from components.report import Report
from components.url_params import UrlParams


def uid(number: int) -> str:
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


def metadata(url: str, first: int, count: int, how: str = "ok") -> bytes:
    """A metadata file with the columns and types of DataComp's."""
    numbers = range(first, first + count)
    table = pa.table({
        "uid": [uid(n) for n in numbers],
        "url": [f"{url}/{how}/{n}" for n in numbers],
        "text": [f"picture {n}" for n in numbers],
        "original_width": pa.array([32] * count, pa.int64()),
        "original_height": pa.array([32] * count, pa.int64()),
        "clip_b32_similarity_score": pa.array([n / 100 for n in numbers], pa.float32()),
        "clip_l14_similarity_score": pa.array([0.2 if n % 4 else 0.3 for n in numbers], pa.float32()),
        "face_bboxes": [[[0.1, 0.2, 0.3, 0.4]] if n == first else [] for n in numbers],
        "sha256": [hashlib.sha256(PICTURES[str(n)]).hexdigest() for n in numbers],
    })  # fmt: skip
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with web_server(PICTURES) as served:
        yield served


@pytest.fixture(scope="module")
def hub(web: Web) -> Iterator[Hub]:
    small = {"README.md": b"", "aa.parquet": metadata(web.url, 0, 20), "bb.parquet": metadata(web.url, 20, 20)}
    xlarge = {f"part_{number}/x.parquet": metadata(web.url, 10 * number, 10) for number in range(4)}
    with hub_server({"mlfoundations/datacomp_small": small, "mlfoundations/datacomp_xlarge": xlarge}) as served:
        yield served


@pytest.fixture(autouse=True)
def _address(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)


def params(urls: dict[str, Any] | None = None, **more: Any) -> DownloadParams:
    given = {"timeout_s": 20.0, "retries": 1, "allow_networks": HERE, "per_host": 32, **(urls or {})}
    plain = DownloadParams(
        source="datacomp", dataset="datacomp-small", image_size=16, image_format="jpg", shard_size=10,
        num_train=0, num_val=0, num_test=2, urls=UrlParams(**given),
    )  # fmt: skip
    return replace(plain, **more)


def metas(report: Report) -> list[dict[str, Any]]:
    return [json.loads(sample.fields["json"]) for sample in samples(report)]


def test_a_pool_from_the_hub_and_the_same_from_a_folder(hub: Hub, web: Web, tmp_path: Path) -> None:
    report = stage.run(params(), store=str(tmp_path / "store"))
    assert report.manifest.counts["ok"] == 40
    assert (
        report.manifest.metrics["origin"]
        == f"mlfoundations/datacomp_small@{hub.commit('mlfoundations/datacomp_small')}"
    )
    (first,) = (meta for meta in metas(report) if meta["uid"] == uid(0))
    assert json.loads(first["face_bboxes"]) == [[0.1, 0.2, 0.3, 0.4]], "carried along, nothing is blurred"
    assert float(first["clip_l14_similarity_score"]) == pytest.approx(0.3)
    assert first["sha256"] == hashlib.sha256(PICTURES["0"]).hexdigest()
    assert first["caption"] == "picture 0"
    web.requests.clear()
    again = stage.run(params(), store=str(tmp_path / "store"))
    assert again.cached
    assert again.manifest_sha256 == report.manifest_sha256
    folder = tmp_path / "metadata"
    folder.mkdir()
    for name, data in hub.repos["mlfoundations/datacomp_small"].items():
        (folder / name).write_bytes(data)
    local = stage.run(params(path=str(folder)), store=str(tmp_path / "store"))
    assert local.cached, "by content, wherever it lies"
    assert not web.requests
    other = stage.run(params(path=str(folder)), store=str(tmp_path / "other"))
    assert [shard.sha256 for shard in other.manifest.shards] == [shard.sha256 for shard in report.manifest.shards]


def test_a_newer_commit_of_the_same_content_is_the_same_work(hub: Hub, web: Web, tmp_path: Path) -> None:
    repo = hub.repos["mlfoundations/datacomp_small"]
    pinned = hub.commit("mlfoundations/datacomp_small")
    first = stage.run(params(hub=HubParams(revision=pinned)), store=str(tmp_path))
    before = dict(repo)
    try:
        repo["README.md"] = b"more words"
        assert stage.run(params(), store=str(tmp_path)).cached
        repo["aa.parquet"] = metadata(web.url, 5, 15)
        moved = stage.run(params(), store=str(tmp_path))
        assert not moved.cached
        assert moved.manifest.counts["in"] == 35
        assert stage.run(params(hub=HubParams(revision=pinned)), store=str(tmp_path)).url == first.url
    finally:
        repo.update(before)


def test_the_largest_pool_lies_in_folders(tmp_path: Path) -> None:
    report = stage.run(params(datacomp=DataCompParams(scale="xlarge")), store=str(tmp_path))
    assert report.manifest.counts["ok"] == 40


@pytest.mark.parametrize("kind", ["npy", "txt", "http", "s3"])
def test_a_subset_by_uid(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    wanted = [3, 7, 11, 22, 39]
    pairs = np.array([(int(uid(n)[:16], 16), int(uid(n)[16:], 16)) for n in [*wanted, 3, 999]], HALVES)
    path = tmp_path / ("subset.txt" if kind == "txt" else "subset.npy")
    if kind == "txt":
        path.write_text("\n".join(uid(n) for n in [*wanted, 3, 999]) + "\n")
    else:
        np.save(path, pairs)
    url = str(path)
    if kind == "http":
        from test_download_remote import served

        with served(tmp_path) as base:
            report = stage.run(params(datacomp=DataCompParams(subset=f"{base}/subset.npy")), store=str(tmp_path / "a"))
    else:
        if kind == "s3":
            from s3 import new_bucket

            from components.store import open_store

            request.getfixturevalue("endpoint")
            bucket = new_bucket()
            open_store(f"{bucket}/sets").put_file("subset.npy", path)
            url = f"{bucket}/sets/subset.npy"
        report = stage.run(params(datacomp=DataCompParams(subset=url)), store=str(tmp_path / "a"))
    assert {meta["uid"] for meta in metas(report)} == {uid(n) for n in wanted}
    assert report.manifest.counts["in"] == 5
    other = stage.run(params(), store=str(tmp_path / "a"))
    assert other.url != report.url


def test_a_subset_and_a_score_together(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("\n".join(uid(n) for n in range(12)))
    subset = DataCompParams(subset=str(tmp_path / "s.txt"))
    report = stage.run(params({"min_similarity": 0.25}, datacomp=subset, num_test=1), store=str(tmp_path / "store"))
    assert {meta["uid"] for meta in metas(report)} == {uid(n) for n in (0, 4, 8)}
    assert report.manifest.metrics["filtered_similarity"] == 9, "of the subset's rows"
    with pytest.raises(PermanentError, match=r"hold no row that is kept \(filtered_similarity 12\)"):
        stage.run(params({"min_similarity": 0.9}, datacomp=subset), store=str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"0123\n", "row 1: '0123' is no uid of 32 hex digits"),
        ("a.txt", b"\n", "holds no uid"),
        ("a.txt", b"0" * 32, "none of its 1 uids is in .*a subset of this scale"),
        ("a.npy", b"no array", "not a .npy file"),
        ("b.npy", None, "expected pairs .u8,u8."),
    ],
)
def test_a_bad_subset_says_so(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    path = tmp_path / name
    if content is None:
        np.save(path, np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(PermanentError, match=said):
        stage.run(params(datacomp=DataCompParams(subset=str(path))), store=str(tmp_path / "store"))


def test_a_subset_that_is_not_one_file_says_so(tmp_path: Path) -> None:
    for number in range(2):
        np.save(tmp_path / f"s{number}.npy", np.zeros(1, HALVES))
    for folder in ("d.npy", "e.npy"):
        (tmp_path / folder).mkdir()
    (tmp_path / "e.npy" / "words.md").write_text("x")
    for name, said in (
        ("s{0..1}.npy", r"is 2 files \(s0\.npy, s1\.npy\); give one \.npy or \.txt"), ("d.npy", r"is 0 files \(none\)"),
        ("e.npy", r"is 1 files \(words\.md\)"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            read_subset(str(tmp_path / name))
    np.savez(tmp_path / "z.npz", a=np.zeros(1, HALVES))
    whole = (tmp_path / "z.npz").read_bytes()
    for content in (whole, whole[:40], b""):
        (tmp_path / "z.npy").write_bytes(content)
        with pytest.raises(PermanentError, match=r"not a \.npy file: it begins otherwise"):
            read_subset(str(tmp_path / "z.npy"))


def test_a_subset_passes_over_a_table_without_rows(hub: Hub, web: Web, tmp_path: Path) -> None:
    folder = tmp_path / "metadata"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(metadata(web.url, 0, 0))
    (folder / "b.parquet").write_bytes(metadata(web.url, 0, 20))
    (tmp_path / "s.txt").write_text("\n".join(uid(n) for n in range(6)))
    subset = DataCompParams(subset=str(tmp_path / "s.txt"))
    report = stage.run(params(path=str(folder), datacomp=subset), store=str(tmp_path / "store"))
    assert report.manifest.counts["ok"] == 6


def test_a_subset_is_found_among_many_also_where_halves_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 8, (4000, 2), np.uint64)  # few values: most upper halves are shared
    subset = rng.integers(0, 8, (20, 2), np.uint64)
    path = tmp_path / "s.txt"
    path.write_text("\n".join(f"{int(a):016x}{int(b):016x}" for a, b in subset))
    read, _ = read_subset(str(path))
    expected = {tuple(pair) for pair in subset.tolist()}
    assert len(read) == len(expected)
    assert contained(pool, read).tolist() == [tuple(pair) in expected for pair in pool.tolist()]
    assert pairs_of([uid(1)], "").tolist() == [[int(uid(1)[:16], 16), int(uid(1)[16:], 16)]]


def test_rows_are_left_out_by_score_and_never_fetched(web: Web, tmp_path: Path) -> None:
    web.requests.clear()
    report = stage.run(params({"min_similarity": 0.25}), store=str(tmp_path))
    assert report.manifest.metrics["filtered_similarity"] == 30
    assert report.manifest.counts["in"] == report.manifest.counts["ok"] == 10
    assert sum(count for path, count in web.requests.items() if path.startswith("/ok/")) == 10
    assert {meta["uid"] for meta in metas(report)} == {uid(n) for n in range(0, 40, 4)}
    report = stage.run(
        params({"min_similarity": 0.3, "similarity_column": "clip_b32_similarity_score"}), store=str(tmp_path)
    )
    assert report.manifest.metrics["filtered_similarity"] == 30
    with pytest.raises(PermanentError, match=r"hold no row that is kept \(filtered_similarity 40\)"):
        stage.run(params({"min_similarity": 0.9}), store=str(tmp_path))


def test_the_words_of_laion_and_probabilities() -> None:
    block = {"url": list("abcdefg"), NSFW: ["UNLIKELY", "UNSURE", "NSFW", "", "0.4", "0.6", "nan"]}
    found = filtered(block, UrlParams(max_nsfw=0.5))
    assert [bool(why) for why in found[FILTERED]] == [False, False, True, True, False, True, True]
    assert NSFW not in found
    both = {"url": ["a", "b"], NSFW: ["0.9", "0.1"], SIMILARITY: ["0.9", "0.1"]}
    found = filtered(both, UrlParams(max_nsfw=0.5, min_similarity=0.5))
    assert found == {"url": ["a", "b"], FILTERED: ["filtered_nsfw", "filtered_similarity"]}
    assert filtered({"url": ["a"]}, UrlParams()) == {"url": ["a"]}


def test_a_filter_needs_its_column(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"none of its columns .*uid.* is called punsafe or nsfw.*nsfw_column"):
        stage.run(params({"max_nsfw": 0.5}), store=str(tmp_path))
    with pytest.raises(PermanentError, match=r"no column 'clip_b32' for the filter min_similarity; has: uid"):
        stage.run(params({"min_similarity": 0.5, "similarity_column": "clip_b32"}), store=str(tmp_path))


def test_metadata_without_what_is_needed(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"url": ["http://a"], "text": ["b"]}), tmp_path / "a.parquet")
    (tmp_path / "s.txt").write_text(uid(1))
    with pytest.raises(PermanentError, match=r"a.parquet: no column 'uid'"):
        stage.run(params(path=str(tmp_path), datacomp=DataCompParams(subset=str(tmp_path / "s.txt"))), store="unused")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PermanentError, match=r"no list of URLs there; expected .parquet"):
        stage.run(params(path=str(tmp_path / "empty")), store="unused")


def test_tables_beyond_what_memory_holds_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def table(name: str) -> pa.Table:
        read.append(name)
        return pa.table({"url": [f"{name}{row}" for row in range(1000)]})

    monkeypatch.setattr(rows, "MOST_BYTES", 3 * table("0").nbytes)
    read.clear()
    found = Rows(list("abcdefgh"), table)
    assert len(found) == 8000
    assert len(read) == 8
    assert [found[position]["url"] for position in (0, 999, 1000, 7999)] == ["a0", "a999", "b0", "h999"]
    assert read[8:] == ["a", "b"], "h was still there"
    tracemalloc.start()
    assert all(found[position]["url"][1:] == str(position % 1000) for position in range(8000))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_parameters_of_the_hub() -> None:
    for bad, said in (
        ({"datacomp": {"scale": "smal"}}, "did you mean 'small'"),
        ({"datacomp": {"subset": "uids.csv"}}, "give a .npy"),
        ({"hub": {"revision": "../x"}}, "give a branch, a tag or a commit"),
        ({"source": "huggingface"}, "download.path is empty"),
        ({"source": "huggingface", "path": "../x"}, "as in owner/name"),
        ({"source": "clip_benchmark"}, "download.path is empty"),
        ({"urls": {"max_nsfw": 2}}, "from 0 to 1"),
        ({"urls": {"min_similarity": -2}}, "from -1 to 1"),
        ({"urls": {"nsfw_column": "punsafe"}}, "give max_nsfw as well"),
        ({"urls": {"engine": "img2datset"}}, "did you mean 'img2dataset'"),
    ):
        with pytest.raises(UsageError, match=said):
            params_from_dict({"download": bad})
    assert DataCompParams(scale="datacomp_1b").repository == "mlfoundations/datacomp_1b"
    plain = semantic(DownloadParams())
    assert semantic(DownloadParams(hub=HubParams(revision="v1"), datacomp=DataCompParams(subset="s.npy"))) == plain
    assert semantic(DownloadParams(urls=UrlParams(max_nsfw=0.5))) != plain
    assert "max_nsfw" not in semantic(DownloadParams(urls=UrlParams(dedup=False)))["urls"], "earlier keys stay"


def test_two_scales_are_two_places() -> None:
    train = DownloadParams(source="datacomp", num_train=0, dataset="a")
    test = replace(train, datacomp=DataCompParams(scale="medium"), num_train=-1)
    with pytest.raises(UsageError, match="another set than download, but bears its name"):
        Params(download=train, download_eval=test)
    Params(download=train, download_eval=replace(test, dataset="b"))


def test_an_evaluation_set_of_another_name_is_not_there() -> None:
    with pytest.raises(UsageError, match="did you mean 'cifar10'"):
        open_source(DownloadParams(source="clip_benchmark", path="cifar11"))
    with pytest.raises(UsageError, match="several evaluation sets"):
        open_source(DownloadParams(source="clip_benchmark", path="all"))
