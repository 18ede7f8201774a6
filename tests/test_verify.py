"""Verify: every byte is looked at; damage is named with what to do, and nothing else is called damage.

The seed of the random places is printed; SPLATCLIP_TEST_SEED sets it.
"""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path

import pytest
from fault_proxy import Rule, fault_proxy
from s3 import new_bucket, s3_environment
from three_outputs import NOTES, damage, warnings, whole

import components.s3_retry
import components.verify_output
from components.__main__ import main
from components.entries import canonical, file_bytes, with_sum
from components.errors import PermanentError, UsageError
from components.manifest import Commit, sha256_bytes
from components.store import Store, open_store, sha256_file
from components.verify import verify

FLIPS = 4  # of each file, besides its first and last byte; on S3, where each look takes longer, these are one


def test_a_sound_store_is_sound_and_its_lineage_goes_back_to_the_source(
    root: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = whole(root, NOTES)
    root.put_bytes("_tracking/1.jsonl", b"{}")
    images, splats, scores = (output.manifest for output in outputs)
    assert main(["verify", root.url]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:3] == [
        f"zero_shot_eval/{scores.key[:8]} {scores.sha256[:8]}",
        f"  splats: splat_fit/{splats.key[:8]} {splats.sha256[:8]}",
        f"    images: download/{images.key[:8]} {images.sha256[:8]}",
    ]
    names = [name for name in root.list() if not name.startswith("_tracking")]
    size = sum(root.size(name) for name in names)
    assert lines[3:] == [
        f"{root.url}: sound: 3 outputs, {len(names)} files, {size:,} bytes read; 0 damaged, 0 warnings; 1 files belong "
        "to no output and were not looked at"
    ]
    assert f"verify: {len(names)}/{len(names)} files" in err
    for prefix in (outputs[2].url, f"{outputs[2].url}/", f"{outputs[2].url}/manifest.json"):
        result = verify(prefix)
        assert result.findings == []
        assert result.lineage == lines[:3], "from one output alone, too"
        assert [(read.path, read.files) for read in result.outputs] == [("", 2)]
    assert len(verify(f"{root.url}/download").outputs) == 1


def test_a_flipped_byte_is_found_wherever_it_is(root: Store) -> None:
    seed = int(os.environ.get("SPLATCLIP_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"SPLATCLIP_TEST_SEED={seed}")
    rng = random.Random(seed)
    whole(root)
    names = root.list()
    assert len(names) == 14
    for name in names:
        data = root.get_bytes(name)
        places = {rng.randrange(len(data)) for _ in range(FLIPS)} | {0, len(data) - 1}
        for at in places if "://" not in root.url else rng.sample(sorted(places), 1):
            flipped = bytearray(data)
            flipped[at] ^= rng.randrange(1, 256)
            root.put_bytes(name, bytes(flipped))
            found = damage(verify(root.url))
            told = [line for line in found if name in line or name.removesuffix("/manifest.json") in line]
            assert told, f"{name} at {at}: {found} (SPLATCLIP_TEST_SEED={seed})"
        root.put_bytes(name, data)
    assert verify(root.url).findings == []


def test_a_manifest_that_was_changed(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    *_, scores = whole(root)
    data = scores.store.get_bytes("manifest.json")
    values = json.loads(data)
    del values["sum"]
    for changed, says in (
        (data.replace(b'"metrics": {}', b'"metrics":  {}'), "not as a stage wrote it"),
        (data.replace(b'"version": 1', b'"version": x'), "not a valid manifest"),
        (data.replace(b'"version": 1', b'"version": 2'), "its sum is not that of its content"),
        (data.replace(b'"metrics": {}', b'"metrics": {\n  "a": 1\n }'), "its sum is not that of its content"),
        (canonical(with_sum({**values, "params": {"a": 1}}), indent=1), "params_hash is not that of its params"),
    ):
        assert changed != data
        scores.store.put_bytes("manifest.json", changed)
        [line] = damage(verify(root.url))
        assert f"{scores.url}/manifest.json: " in line
        assert says in line
        assert line.endswith("; delete it and run the stage again")


def test_every_missing_file_is_named(root: Store) -> None:
    whole(root, NOTES)
    for name in [name for name in root.list() if not name.endswith("manifest.json")]:
        data = root.get_bytes(name)
        root.delete(name)
        [line] = damage(verify(root.url))
        assert line.startswith(f"damage: {root.url}/{name}: is missing")
        assert "manifest.json, then run the stage again" in line
        root.put_bytes(name, data)
    assert verify(root.url).findings == []


def test_all_that_is_wrong_is_listed(root: Store, capsys: pytest.CaptureFixture[str]) -> None:
    images, splats, scores = whole(root)
    images.store.put_bytes(images.manifest.shards[0].name, b"short")
    images.store.delete(images.manifest.shards[1].name)
    splats.store.put_bytes(splats.entry("reader.bin").stored, b"MODEL")
    scores.store.put_bytes("manifest.json", b"{")
    assert main(["verify", root.url]) == 42
    out = capsys.readouterr().out
    assert out.count("damage: ") == 4
    assert "(5 bytes, expected 10,240" in out or "(5 bytes, expected 20,480" in out
    assert sha256_bytes(b"MODEL") in out
    assert splats.manifest.files[0].sha256 in out
    assert "DAMAGED" in out
    assert main(["verify", "--json", root.url]) == 42
    values = json.loads(capsys.readouterr().out)
    assert not values["sound"]
    assert [finding["level"] for finding in values["findings"]] == ["damage"] * 4
    assert {"where", "what", "remedy"} < values["findings"][0].keys()


def test_orphans_and_temporary_files_are_warnings(root: Store, capsys: pytest.CaptureFixture[str]) -> None:
    images, *_ = whole(root)
    names = ["train/00000-0123456789ab.tar", "_done/00009.json", "_checkpoint/x.safetensors", "notes.txt"]
    for name in names:
        images.store.put_bytes(name, b"1234")
    if "://" not in root.url:
        names.append("train/.tmp-7-abc")
        Path(images.url, names[-1]).write_bytes(b"1234")
    result = verify(root.url)
    assert damage(result) == []
    assert sorted(finding.where for finding in result.findings) == sorted(f"{images.url}/{name}" for name in names)
    assert all("of 4 bytes: the manifest does not name it; `splatclip gc`" in line for line in warnings(result))
    assert main(["verify", root.url]) == 0
    assert f"0 damaged, {len(names)} warnings" in capsys.readouterr().out


def test_what_is_not_finished_is_said(root: Store) -> None:
    images, splats, scores = whole(root)
    splats.store.delete("manifest.json")
    result = verify(root.url)
    assert damage(result) == []
    assert (
        f"warning: {splats.url}: not finished: 4 files and no manifest.json; run its stage again" in warnings(result)[0]
    )
    assert f"{scores.url}: its input 'splats', {splats.manifest.path}, is not in this store" in warnings(result)[1]
    with pytest.raises(PermanentError, match=r"no finished output lies there .*; 1 begun and not finished: run"):
        verify(splats.url)
    with pytest.raises(PermanentError, match=r"no finished output lies there .*give another prefix"):
        verify(f"{root.url}/nowhere")
    assert verify(images.url).findings == []


def test_addresses_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "copy.json"
    file.write_bytes(b"{}")
    for prefix in ("", "gs://bucket", str(file)):
        with pytest.raises(UsageError):
            verify(prefix)
    assert main(["verify", str(file)]) == 2
    assert "is a file; give the prefix that it belongs to" in capsys.readouterr().err


def test_a_relative_folder_and_the_one_at_work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, scores = whole(open_store(str(tmp_path / "store")))
    monkeypatch.chdir(tmp_path)
    assert len(verify("store").outputs) == 3
    monkeypatch.chdir(scores.url)
    for prefix in (".", "manifest.json"):
        result = verify(prefix)
        assert result.findings == []
        assert len(result.lineage) == 3


def test_a_file_that_the_disk_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = open_store(str(tmp_path))
    images, *_ = whole(root)
    lost = images.manifest.shards[0].name

    def fails(path: Path) -> str:
        if path.name == Path(lost).name:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return sha256_file(path)

    monkeypatch.setattr(components.verify_output, "sha256_file", fails)
    [line] = damage(verify(root.url))
    assert f"{images.url}/{lost}: cannot be read: Input/output error; check the disk" in line


def test_what_a_service_refuses_or_gives_damaged_is_one_finding_among_others(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object whose bytes are not those of its ETag, one that may not be read; the rest is looked at all the same."""
    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.001)
    with fault_proxy(endpoint) as proxy, s3_environment(proxy.url):
        root = open_store(f"{new_bucket()}/store")
        images, splats, scores = whole(root, NOTES)
        commit = Commit(root, stage="teacher_embeddings", version=1, params={}, inputs={})
        entry = commit.put_file(f"train/00003-{sha256_bytes(b'x')[:12]}.safetensors", b"x")
        commit.store.put_bytes("_done/00003.json", file_bytes(entry))
        commit.finalise(shards=[], files=[entry], metrics={})
        rotten, closed = images.manifest.shards[0], images.manifest.shards[1]
        proxy.reset(
            Rule("flip", "GET", f"{images.manifest.path}/{rotten.name}"),
            Rule("403", "GET", f"{images.manifest.path}/{closed.name}"),
            Rule("403", "GET", f"{splats.manifest.path}/_done/00000"),
            Rule("flip", "GET", f"{commit.path}/_done/00003"),
        )
        scores.store.delete(scores.manifest.files[0].place)
        result = verify(root.url)
        found = damage(result)
    assert len(found) == 5
    again = f"delete it and {images.url}/manifest.json, then run the stage again"
    assert any(f"{images.url}/{rotten.name}: MD5 is" in line and line.endswith(f"store; {again}") for line in found)
    assert any(f"{images.url}/{closed.name}: access denied; give this access key" in line for line in found)
    assert any(f"{splats.url}/_done/00000.json: access denied; give this access key" in line for line in found)
    assert any(f"{commit.url}/_done/00003.json: MD5 is" in line for line in found)
    assert any(f"{scores.manifest.files[0].place}: is missing" in line for line in found)
    assert len(result.outputs) == 4


def test_a_file_that_comes_damaged_once_is_fetched_again(root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole(root)
    seen: set[str] = set()

    def wrong_at_first(path: Path) -> str:
        first, _ = path.name not in seen, seen.add(path.name)
        return "0" * 64 if first else sha256_file(path)

    monkeypatch.setattr(components.verify_output, "sha256_file", wrong_at_first)
    assert verify(root.url).findings == []
    assert len(seen) == 8


def test_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert main(["verify", "s3://bucket/x"]) == 75
