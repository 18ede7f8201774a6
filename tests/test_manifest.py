"""Manifests: the same bytes everywhere, written last, believed only if whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3 import moto_server, new_bucket

from components.entries import canonical, done_bytes, with_sum
from components.errors import PermanentError, UsageError
from components.manifest import Artifact, Commit, Manifest, SampleNote, open_artifact
from components.shards import Sample, ShardIndex, write_shard
from components.store import Store, open_store

NOTES = [
    SampleNote(key="bad", outcome="failed", reason="truncated", detail="at byte 7"),
    SampleNote(key="dull", outcome="skipped", reason="no_caption"),
    SampleNote(key="worse", outcome="failed", reason="truncated"),
]


def begin(place: Store, **changes: Any) -> Commit:
    given: dict[str, Any] = {"stage": "download", "version": 1, "params": {"seed": 1, "rate": 0.5}, "inputs": {}}
    return Commit(place, **(given | changes))


def put(commit: Commit, tmp_path: Path, index: int, split: str = "train") -> Any:
    path = tmp_path / "shard.tar"
    layout = write_shard(path, [Sample(f"{index}-{i}", {"txt": b"x" * (index + i)}) for i in range(3)])
    side: dict[str, Path | bytes] = {".idx": ShardIndex.of(layout).to_bytes()}
    metrics = {"psnr_db_sum": np.float32(1.5)}
    return commit.put_shard(
        path, index=index, split=split, ok=3, notes=NOTES if index == 1 else [], side_files=side, metrics=metrics
    )


def whole(place: Store, tmp_path: Path, order: tuple[int, ...] = (0, 1, 2)) -> Artifact:
    commit = begin(place)
    for index in order:
        put(commit, tmp_path, index, "test" if index == 2 else "train")
    files = [commit.put_file("z.txt", b"z"), commit.put_file("a.txt", b"a")]
    return commit.finalise(
        shards=list(commit.done().values()), files=files, metrics={"psnr_db_mean": np.float64(30.25)}
    )


def test_same_bytes_on_a_folder_and_on_s3_in_any_order(tmp_path: Path) -> None:
    first = whole(open_store(str(tmp_path / "one")), tmp_path)
    other = whole(open_store(str(tmp_path / "two")), tmp_path, (2, 0, 1))
    with moto_server():
        remote = whole(open_store(f"{new_bucket()}/deep/prefix"), tmp_path, (1, 2, 0))
        assert remote.store.get_bytes("manifest.json") == first.store.get_bytes("manifest.json")
        assert remote.store.list() == first.store.list()
        with remote.local("a.txt") as path:
            assert path.read_bytes() == b"a"
        again = open_artifact(remote.url, open_store(str(tmp_path)))
        assert again.manifest == remote.manifest
    assert other.store.get_bytes("manifest.json") == first.store.get_bytes("manifest.json")
    assert first.store.get_bytes("manifest.json").endswith(b"}\n")
    assert str(tmp_path).encode() not in first.store.get_bytes("manifest.json")


def test_counts_add_up_and_every_bad_sample_is_named(tmp_path: Path) -> None:
    artifact = whole(open_store(str(tmp_path / "store")), tmp_path)
    counts = artifact.manifest.counts
    assert counts == {"in": 12, "ok": 9, "skipped": 1, "failed": 2, "reasons": {"no_caption": 1, "truncated": 2}}
    entry = json.loads(artifact.store.get_bytes("_done/00001.json"))
    assert [(note["key"], note["outcome"], note["reason"]) for note in entry["samples"]] == [
        ("bad", "failed", "truncated"),
        ("dull", "skipped", "no_caption"),
        ("worse", "failed", "truncated"),
    ]
    assert begin(open_store(str(tmp_path / "store"))).done()[1].samples == NOTES


def test_shards_are_named_by_their_content(tmp_path: Path) -> None:
    artifact = whole(open_store(str(tmp_path / "store")), tmp_path)
    first = artifact.manifest.split("train")[0]
    assert first.name == f"train/00000-{first.sha256[:12]}.tar"
    [index] = first.files
    assert index.name == first.name.replace(".tar", ".idx")
    assert index.stored == first.name.replace(".tar", f"-{index.sha256[:12]}.idx")
    for name, entry in (
        ("a.txt", artifact.entry("a.txt")),
        ("b/c.d.e", begin(artifact.store).put_file("b/c.d.e", b"x")),
    ):
        stem, _, suffix = name.partition(".")
        assert (entry.name, entry.stored) == (name, f"{stem}-{entry.sha256[:12]}.{suffix}")
    assert artifact.manifest.splits() == ["test", "train"]
    assert [shard.index for shard in artifact.manifest.split("train")] == [0, 1]
    with pytest.raises(PermanentError, match="no split 'val'; it has: test, train"):
        artifact.manifest.split("val")
    for name in (first.name, first.files[0].name, "a.txt"):
        with artifact.local(name) as path:
            assert path.is_file()
    with pytest.raises(PermanentError, match="lists no file"):
        artifact.entry("_done/00000.json")


def test_the_key_is_of_all_that_decides_the_output(tmp_path: Path) -> None:
    place = open_store(str(tmp_path / "store"))
    base = begin(place)
    first = whole(place, tmp_path)
    other = begin(place, params={"seed": 2}).finalise(shards=[], files=[], metrics={})
    keys = [
        base.key,
        begin(place, stage="splat_fit").key,
        begin(place, version=2).key,
        begin(place, params={"seed": 1, "rate": 0.25}).key,
        begin(place, source="abc").key,
        begin(place, inputs={"images": first}).key,
        begin(place, inputs={"images": other}).key,
    ]
    assert len(set(keys)) == len(keys)
    assert begin(place, params={"rate": 0.5, "seed": 1}).key == base.key
    assert begin(open_store(str(tmp_path / "elsewhere"))).key == base.key


def test_only_whole_entries_of_these_parameters_count(tmp_path: Path) -> None:
    place = open_store(str(tmp_path / "store"))
    commit = begin(place)
    entries = [put(commit, tmp_path, index) for index in range(4)]
    assert begin(place).done() == {entry.index: entry for entry in entries}
    commit.store.delete(entries[0].name)
    commit.store.put_bytes(entries[1].name, b"cut")
    commit.store.delete(entries[2].files[0].place)
    assert sorted(begin(place).done()) == [3]
    name = "_done/00003.json"
    foreign = json.loads(commit.store.get_bytes(name)) | {"params_hash": "0" * 64}
    commit.store.put_bytes(name, json.dumps(foreign).encode())
    with pytest.raises(PermanentError, match=r"_done/00003\.json: not a valid entry \(its sum is not .* delete it"):
        begin(place).done()
    commit.store.put_bytes(name, done_bytes(replace(entries[3], params_hash="0" * 64)))
    assert begin(place).done() == {}
    with pytest.raises(PermanentError, match="of other parameters"):
        commit.finalise(shards=[replace(entries[3], params_hash="0" * 64)], files=[], metrics={})
    commit.store.put_bytes(name, b"{")
    with pytest.raises(PermanentError, match=r"_done/00003\.json: not a valid entry .* delete it"):
        begin(place).done()


def test_nothing_is_finished_before_the_manifest(tmp_path: Path) -> None:
    place = open_store(str(tmp_path / "store"))
    commit = begin(place)
    entry = put(commit, tmp_path, 0)
    assert commit.finished() is None
    with pytest.raises(PermanentError, match=r"has no manifest\.json: the stage has not finished; run it again"):
        open_artifact(commit.url, place)
    with pytest.raises(PermanentError, match=r"listed twice \[0\]"):
        commit.finalise(shards=[entry, entry], files=[], metrics={})
    with pytest.raises(PermanentError, match="JSON"):
        commit.finalise(shards=[entry], files=[], metrics={"psnr": float("nan")})
    assert commit.finished() is None
    made = commit.finalise(shards=[entry], files=[], metrics={})
    found = begin(place).finished()
    assert found is not None
    assert found.manifest == made.manifest


def test_an_unknown_outcome_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_shard(path, [])
    with pytest.raises(UsageError, match="outcome 'lost'"):
        begin(open_store(str(tmp_path))).put_shard(
            path, index=0, split="train", ok=0, notes=[SampleNote(key="k", outcome="lost", reason="x")]
        )


def test_an_artifact_is_found_by_prefix_manifest_or_copy(tmp_path: Path) -> None:
    place = open_store(str(tmp_path / "store"))
    made = whole(place, tmp_path)
    copy = tmp_path / "download.json"
    copy.write_bytes(made.store.get_bytes("manifest.json"))
    alone = tmp_path / "artifact"
    alone.mkdir()
    (alone / "manifest.json").write_bytes(copy.read_bytes())
    for ref in (made.url, f"{made.url}/", f"{made.url}/manifest.json", str(copy), str(alone), f"{alone}/manifest.json"):
        found = open_artifact(ref, place)
        assert found.manifest == made.manifest
        with found.local(found.manifest.split("test")[0]) as path:
            assert path.stat().st_size > 0
    with pytest.raises(PermanentError, match="not finished"):
        open_artifact(str(copy), open_store(str(tmp_path / "empty")))
    made.store.put_bytes("manifest.json", replace(made.manifest, metrics={"other": 1}).to_bytes())
    with pytest.raises(PermanentError, match="is another one"):
        open_artifact(str(copy), place)
    with pytest.raises(PermanentError, match="has no manifest"):
        open_artifact(str(tmp_path / "nowhere"), place)
    with pytest.raises(UsageError, match="empty"):
        open_artifact("", place)


def test_a_damaged_file_is_not_handed_out(tmp_path: Path) -> None:
    made = whole(open_store(str(tmp_path / "store")), tmp_path)
    entry = made.manifest.split("train")[0]
    data = bytearray(made.store.get_bytes(entry.name))
    data[600] ^= 1
    made.store.put_bytes(entry.name, bytes(data))
    with pytest.raises(PermanentError, match=entry.sha256), made.local(entry):
        pytest.fail("a damaged shard was handed out")


def _shard_without_split(values: dict[str, Any]) -> None:
    del values["shards"][0]["split"]


def _more_ok(values: dict[str, Any]) -> None:
    values["counts"]["ok"] += 1


def _same_index(values: dict[str, Any]) -> None:
    values["shards"][1]["index"] = 0


def _leads_out(values: dict[str, Any]) -> None:
    values["files"][0]["name"] = "../../etc/passwd"


def _wrong_type(values: dict[str, Any]) -> None:
    values["files"][0]["bytes"] = "1"


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "format 2": lambda values: values.update(format=2),
    "unknown: \\['extra'\\]": lambda values: values.update(extra=1),
    "split": _shard_without_split,
    "counts": _more_ok,
    "listed twice": _same_index,
    "store name": _leads_out,
    "bytes": _wrong_type,
    "path": lambda values: values.update(path="elsewhere"),
}


@pytest.mark.parametrize("says", DAMAGE)
def test_a_manifest_that_is_not_right_is_refused(says: str, tmp_path: Path) -> None:
    values = json.loads(whole(open_store(str(tmp_path / "store")), tmp_path).manifest.to_bytes())
    DAMAGE[says](values)
    stale = "format 2" if says == "format 2" else "its sum is not that of its content: changed or damaged"
    with pytest.raises(PermanentError, match=rf"^here: .*{stale}.*run the stage again"):
        Manifest.from_bytes(json.dumps(values).encode(), "here")
    del values["sum"]
    for whole_but_wrong in (values, with_sum(values)):
        with pytest.raises(PermanentError, match=rf"^here: .*{says}.*run the stage again"):
            Manifest.from_bytes(json.dumps(whole_but_wrong).encode(), "here")


def test_a_record_without_a_sum_is_one_of_an_earlier_version(tmp_path: Path) -> None:
    made = whole(open_store(str(tmp_path / "store")), tmp_path)
    values = json.loads(made.manifest.to_bytes())
    del values["sum"]
    data = canonical(values, indent=1)
    older = Manifest.from_bytes(data, "here")
    assert older == replace(made.manifest, summed=False)
    assert older.to_bytes() == data, "outputs made from it name the sum of these bytes"
    assert older.sha256 != made.manifest.sha256


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"format": 1}', b"null"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(PermanentError, match=r"^here: "):
        Manifest.from_bytes(data, "here")


def test_done_reads_many_entries_at_a_time_and_each_alone_the_same(
    root: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.manifest.FEW", 3)
    commit = begin(root)
    for index in range(8):
        put(commit, tmp_path, index)
    root.delete(commit.path + "/" + commit.done()[5].name)
    every = begin(root).done()
    assert sorted(every) == [0, 1, 2, 3, 4, 6, 7]
    assert begin(root).done(range(8)) == every
    assert begin(root).done([3, 5, 99]) == {3: every[3]}
    assert begin(root).done_indexes() == {*range(8)}


def test_a_shard_that_came_after_the_listing_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing is not of one moment: it may show an entry and not the file, which was put before."""
    place = open_store(str(tmp_path / "store"))
    entry = put(begin(place), tmp_path, 0)
    whole_listing = type(place).entries
    monkeypatch.setattr(
        type(place), "entries", lambda self: (file for file in whole_listing(self) if file.name != entry.name)
    )
    assert begin(place).done() == {0: entry}


def test_notes_of_failures_last_until_there_is_a_manifest(tmp_path: Path) -> None:
    place = open_store(str(tmp_path / "store"))
    commit = begin(place)
    commit.put_failure(7, "its picture is damaged")
    commit.put_failure(7, "its tar is damaged")
    place.sub(commit.path).put_bytes("_failed/00008.json", b"nonsense")
    assert begin(place).failures() == {7: "its tar is damaged"}
    entry = put(commit, tmp_path, 0)
    assert commit.done() == {0: entry}
    commit.finalise(shards=[entry], files=[], metrics={})
    assert place.sub(commit.path).list("_failed/") == []
