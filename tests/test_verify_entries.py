"""Verify holds shards, their side files and the entries of those that are done to what the manifest says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from picture_sets import commit_images, png_samples
from three_outputs import NOTES, commit_splats, damage, rewrite, warnings, whole

from components.entries import canonical, file_bytes, with_sum
from components.manifest import Commit, sha256_bytes
from components.shards import ShardIndex, write_shard
from components.store import open_store
from components.verify import verify


def test_a_shard_with_other_samples_than_are_counted(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    images = commit_images(root.url, [("train", png_samples(0, 3))])
    splats = commit_splats(root, images, NOTES, ok=4)
    [line] = damage(verify(root.url))
    assert line.startswith(f"damage: {splats.url}/{splats.manifest.shards[0].name}: ")
    assert "holds 3 samples, where its manifest counts 4 as ok" in line


@pytest.mark.parametrize("kind", ["another shard's index", "no index", "no tar"])
def test_side_files_that_do_not_belong_to_their_shard(kind: str, tmp_path: Path) -> None:
    root = open_store(str(tmp_path / "store"))
    commit = Commit(root, stage="download", version=1, params={}, inputs={})
    path = tmp_path / "shard.tar"
    index = ShardIndex.of(write_shard(path, png_samples(0, 3))).to_bytes()
    if kind == "another shard's index":
        index = ShardIndex.of(write_shard(path, png_samples(0, 3, height=20))).to_bytes()
        write_shard(path, png_samples(0, 3))
    elif kind == "no index":
        index = b"[]"
    else:
        path.write_bytes(b"no tar at all" * 100)
    entry = commit.put_shard(path, index=0, split="train", ok=3, side_files={".idx": index})
    commit.finalise(shards=[entry], files=[], metrics={})
    says = {
        "another shard's index": "is not the index of",
        "no index": "not a shard's index",
        "no tar": "not a readable",
    }
    [line] = damage(verify(root.url))
    assert says[kind] in line
    assert "delete it and " in line


def test_sizes_that_are_not_the_files(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    *_, scores = whole(root)
    wrong = replace(scores.manifest.files[0], bytes=3)
    rewrite(scores, lambda manifest: replace(manifest, files=[wrong]))
    [line] = damage(verify(root.url))
    assert f"{wrong.stored}: has 2 bytes, where the manifest says 3" in line


def test_shards_of_other_parameters(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    images = commit_images(root.url, [("train", png_samples(0, 2))])
    shard = replace(images.manifest.shards[0], params_hash="0" * 64)
    rewrite(images, lambda manifest: replace(manifest, shards=[shard]))
    found = damage(verify(root.url))
    assert f"lists shards of other parameters: {shard.name}" in found[0]


def test_done_entries_say_what_the_manifest_says(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    images = commit_images(root.url, [("train", png_samples(0, 3))])
    splats = commit_splats(root, images, NOTES)
    name = "_done/00000.json"
    data = splats.store.get_bytes(name)
    values = json.loads(data)
    del values["sum"]
    splats.store.put_bytes(name, canonical(values, indent=1))
    assert verify(root.url).findings == [], "as earlier versions wrote it"
    bad, dull = values["samples"]
    cases: dict[str, dict[str, Any]] = {
        "names other samples": {**values, "samples": [bad]},
        "names other samples than": {**values, "samples": [{**bad, "reason": "x"}, dull]},
        "says something else of": {**values, "bytes": 1},
        "says something else of train": {**values, "metrics": {"psnr_db_sum": 1.0}},
        "says something else of train/": {**values, "sha256": values["sha256"][:-1] + "x"},
        "not a valid entry": {**values, "extra": 1},
        "not a valid entry (": {**values, "metrics": {"psnr_db_sum": float("nan")}, "sha256": "0" * 64},
    }
    for says, changed in cases.items():
        named = {**changed, "name": f"train/00000-{changed['sha256'][:12]}.tar"}
        summed = named if "nan" in repr(named) else with_sum(named)
        for put, told in ((named, says), (summed, says), ({**named, "sum": "0" * 64}, "not a valid entry")):
            splats.store.put_bytes(name, json.dumps(put, indent=1, sort_keys=True).encode() + b"\n")
            [line] = damage(verify(root.url))
            assert line.startswith(f"damage: {splats.url}/{name}: {told}")
    other = {**values, "sha256": "0" * 64, "name": "train/00000-000000000000.tar"}
    splats.store.put_bytes(name, canonical(other, indent=1))
    result = verify(root.url)
    assert damage(result) == []
    assert "names train/00000-000000000000.tar, a second worker's; the manifest names" in warnings(result)[0]
    splats.store.put_bytes(name, data)
    assert verify(root.url).findings == []


def test_done_entries_of_files(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    commit = Commit(root, stage="teacher_embeddings", version=1, params={}, inputs={})
    entry = commit.put_file(f"train/00003-{sha256_bytes(b'x')[:12]}.safetensors", b"x")
    assert file_bytes(entry) == canonical({"name": entry.name, "sha256": entry.sha256, "bytes": 1}), "it lies there"
    commit.store.put_bytes("_done/00003.json", file_bytes(entry))
    commit.finalise(shards=[], files=[entry], metrics={})
    assert verify(root.url).findings == []
    commit.store.put_bytes("_done/00003.json", file_bytes(replace(entry, bytes=2)))
    assert "says something else of train/00003" in damage(verify(root.url))[0]
    other = replace(entry, name="train/00003-ba9876543210.safetensors")
    commit.store.put_bytes("_done/00003.json", file_bytes(other))
    assert "a second worker's" in warnings(verify(root.url))[0]
    for data in (b"{", b"[]", b"{}", b'{"bytes":1,"name":1,"sha256":""}\n'):
        commit.store.put_bytes("_done/00003.json", data)
        assert "not a valid entry" in damage(verify(root.url))[0]
