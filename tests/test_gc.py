"""gc: what no manifest names goes once it is old; what one names never does, whatever happens meanwhile."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from picture_sets import commit_images, png_samples
from s3 import new_bucket

import components.gc
from components.__main__ import main
from components.entries import ShardEntry
from components.errors import PermanentError, TransientError
from components.gc import Collected, carry_out, collect, plan
from components.manifest import Artifact, Commit
from components.outputs import find_outputs, open_place
from components.shards import ShardIndex, write_shard
from components.store import FolderStore, Store, StoredFile, open_store
from components.store_s3 import S3Store
from components.verify import verify

HOUR, DAY = 3600.0, 86400.0
ORPHANS = ["_checkpoint/a.safetensors", "_done/00007.json", "notes.txt", "train/00000-0123456789ab.tar"]


def later(root: Store, seconds: float, **options: bool | float) -> tuple[Collected, list[str]]:
    """What gc does so much later, and what it says."""
    lines: list[str] = []
    given: dict[str, object] = {"dry_run": False, "tell": lines.append, "now": time.time() + seconds, **options}
    return collect(root.url, **given), lines  # type: ignore[arg-type]


def finished(root: Store) -> Artifact:
    return commit_images(root.url, [("train", png_samples(0, 2)), ("test", png_samples(2, 2))])


def put(commit: Commit, index: int, first: int = 0) -> ShardEntry:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.tar"
        layout = write_shard(path, png_samples(first, 2))
        side: dict[str, Path | bytes] = {".idx": ShardIndex.of(layout).to_bytes()}
        return commit.put_shard(path, index=index, split="train", ok=2, side_files=side)


def begun(root: Store, number: int = 1) -> tuple[Commit, list[ShardEntry]]:
    """A stage that has committed three shards and no manifest."""
    commit = Commit(root, stage="splat_fit", version=1, params={"number": number}, inputs={})
    return commit, [put(commit, index, 2 * index) for index in range(3)]


def test_what_no_manifest_names_goes_once_it_is_old(root: Store) -> None:
    images = finished(root)
    before = root.list()
    for name in ORPHANS:
        images.store.put_bytes(name, b"1234")
    total, lines = later(root, 23 * HOUR)
    assert (total.files, total.bytes) == (0, 0)
    assert lines[0] == f"left alone: {images.url}: 4 files, as somebody wrote there lately"
    total, lines = later(root, 25 * HOUR, dry_run=True)
    assert (total.files, total.bytes) == (4, 16)
    assert sorted(lines[:-1]) == [f"would delete {images.url}/{name} (4 bytes)" for name in ORPHANS]
    assert lines[-1] == f"{root.url}: would delete 4 files with 16 bytes"
    assert len(root.list()) == len(before) + 4
    total, lines = later(root, 25 * HOUR)
    assert sorted(lines[:-1]) == [f"deleted {images.url}/{name} (4 bytes)" for name in ORPHANS]
    assert lines[-1] == f"{root.url}: deleted 4 files with 16 bytes"
    assert root.list() == before
    assert verify(root.url).findings == []
    assert later(root, 25 * HOUR)[0] == Collected()


def test_the_command_deletes_nothing_young(root: Store, capsys: pytest.CaptureFixture[str]) -> None:
    images = finished(root)
    images.store.put_bytes("orphan", b"12")
    _, _ = begun(root)
    names = root.list()
    for options in ([], ["--unfinished"], ["--older-than", "90m"], ["--dry-run", "--older-than", "0s", "--unfinished"]):
        assert main(["gc", root.url, *options]) == 0
        assert root.list() == names
    assert "would delete 10 files" in capsys.readouterr().out
    assert main(["gc", images.url, "--older-than", "0s"]) == 0
    assert root.list() == [name for name in names if not name.endswith("orphan")]
    assert main(["gc", root.url, "--older-than", "0s", "--unfinished"]) == 0
    assert root.list() == images_only(images)


def images_only(images: Artifact) -> list[str]:
    return [f"{images.manifest.path}/{name}" for name in images.store.list()]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("24h", DAY), ("7d", 7 * DAY), ("0s", 0), ("h", None), ("1", None), ("-1h", None)],
)
def test_ages(text: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def collected(prefix: str, *, older_than_s: float, **options: object) -> Collected:
        seen.append(older_than_s)
        return Collected()

    monkeypatch.setattr(components.gc, "collect", collected)
    if seconds is None:
        with pytest.raises(SystemExit) as caught:
            main(["gc", "x", f"--older-than={text}"])
        assert caught.value.code == 2
        return
    assert main(["gc", "x", "--older-than", text]) == 0
    assert main(["gc", "x"]) == 0
    assert seen == [seconds, DAY]


def test_an_unfinished_output_goes_only_when_asked_and_all_of_it_is_old(root: Store) -> None:
    commit, _ = begun(root)
    commit.put_file("A.txt", b"1")  # the first by name
    names = root.list()
    total, lines = later(root, 25 * HOUR)
    assert (total.files, root.list()) == (0, names)
    assert lines[0] == f"not finished: {commit.url} (10 files); --unfinished drops it once it is old"
    assert later(root, 23 * HOUR, unfinished=True)[0].files == 0
    assert root.list() == names
    if "://" not in root.url:
        os.utime(Path(commit.url, commit.store.list()[-1]), (time.time() + 5 * HOUR,) * 2)
        assert later(root, 25 * HOUR, unfinished=True)[0].files == 0, "somebody is at work there"
        assert root.list() == names
    total, lines = later(root, 31 * HOUR, unfinished=True)
    assert (total.files, root.list()) == (10, [])
    assert [line.partition("/_done/")[1] for line in lines[:10]] == ["/_done/"] * 3 + [""] * 7, "entries before shards"


def test_a_copy_of_a_manifest_is_no_output(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    images = finished(root)
    root.put_bytes("runs/artifact/manifest.json", images.manifest.to_bytes())
    root.put_bytes("runs/artifact/mine", b"1")
    names = root.list()
    assert main(["gc", root.url, "--older-than", "0s", "--unfinished"]) == 0
    assert root.list() == names


def test_what_belongs_to_no_output_is_never_touched(root: Store) -> None:
    names = [
        "_tracking/0001.jsonl",
        "notes.txt",
        "photos/0123456789abcdef/1.jpg",
        "download/readme",
        "download/0123/1.jpg",
        "splat_fit/0123456789abcdeX/1",
    ]
    for name in names:
        root.put_bytes(name, b"1")
    total, lines = later(root, 400 * DAY, unfinished=True, older_than_s=0)
    assert (total.files, root.list()) == (0, sorted(names))
    assert lines[0] == "not looked at: 6 files that belong to no output"


def test_temporary_files_that_may_be_being_written_stay(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    images = finished(root)
    commit, _ = begun(root)
    temps = [Path(images.url, "train/.tmp-1-ab"), Path(commit.url, ".tmp-2-cd")]
    for temp in temps:
        temp.write_bytes(b"123")
    names = root.list()
    later(root, 0.9 * HOUR, older_than_s=0)
    assert all(temp.exists() for temp in temps)
    later(root, 23 * HOUR)
    assert all(temp.exists() for temp in temps)
    total, _ = later(root, 1.1 * HOUR, older_than_s=0)
    assert (total.files, total.bytes) == (2, 6)
    assert not any(temp.exists() for temp in temps)
    assert root.list() == names


def _cut(images: Artifact) -> bytes:
    return images.store.get_bytes("manifest.json")[:-9]


def _spaced(images: Artifact) -> bytes:
    return images.store.get_bytes("manifest.json").replace(b'"metrics": {', b'"metrics":  {', 1)


def _of_another(images: Artifact) -> bytes:
    return replace(images.manifest, key="0" * 16, path=f"download/{'0' * 16}").to_bytes()


@pytest.mark.parametrize("damaged", [_cut, _spaced, _of_another, lambda images: b""])
def test_a_damaged_manifest_is_refused_and_nothing_there_is_touched(
    root: Store, damaged: Callable[[Artifact], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    images = finished(root)
    other = Commit(root, stage="splat_fit", version=1, params={}, inputs={}).finalise(shards=[], files=[], metrics={})
    images.store.put_bytes("manifest.json", damaged(images))
    for name in ORPHANS:
        images.store.put_bytes(name, b"1")
    there = images.store.list()
    other.store.put_bytes("orphan", b"1")
    assert main(["gc", root.url, "--older-than", "0s", "--unfinished"]) == 42
    out = capsys.readouterr().out
    assert f"left alone: {images.url}/manifest.json: " in out
    assert "1 outputs with damaged manifests left alone" in out
    assert images.store.list() == there
    assert other.store.list() == ["manifest.json"], "the others are cleared up"
    assert main(["gc", images.url, "--older-than", "0s", "--unfinished"]) == 42
    assert images.store.list() == there


def plan_of(commit: Commit) -> components.gc.Plan:
    [output] = find_outputs(open_place(commit.url))[0]
    return plan(output, unfinished=True, older_than_s=0, now=time.time() + DAY)


def test_a_commit_between_the_look_and_the_deed(root: Store) -> None:
    commit, entries = begun(root)
    chosen = plan_of(commit)
    assert len(chosen.files) == 9
    commit.finalise(shards=entries, files=[], metrics={})
    assert list(carry_out(chosen)) == []
    assert verify(root.url).findings == []


def test_a_commit_in_the_midst_of_deleting(root: Store) -> None:
    commit, entries = begun(root)
    deeds = carry_out(plan_of(commit))
    assert next(deeds).name == "_done/00000.json"
    with pytest.raises(
        TransientError, match=r"1 files that were committed are gone .* such as _done/00000\.json: some"
    ):
        commit.finalise(shards=entries, files=[], metrics={})
    entries[0] = put(commit, 0)
    commit.finalise(shards=entries, files=[], metrics={})
    assert list(deeds) == []
    for entry in entries:
        with commit.store.local(entry.name, entry.sha256):
            pass


def test_another_manifest_than_the_one_that_was_looked_at(root: Store) -> None:
    commit, entries = begun(root)
    spare = put(commit, 2, 40)  # a second worker's, of other bytes
    artifact = commit.finalise(shards=entries, files=[], metrics={})
    chosen = plan_of(commit)
    assert [file.name for file in chosen.files] == [spare.files[0].place, spare.name]
    second = replace(artifact.manifest, shards=[*entries[:2], spare])
    commit.store.put_bytes("manifest.json", second.to_bytes())
    assert list(carry_out(chosen)) == []
    assert commit.store.exists(spare.name)
    commit.store.put_bytes("manifest.json", artifact.manifest.to_bytes())
    chosen = plan_of(commit)
    commit.store.delete("manifest.json")
    assert list(carry_out(chosen)) == [], "whoever deleted it means to run the stage again"
    commit.store.put_bytes("manifest.json", artifact.manifest.to_bytes())
    assert len(list(carry_out(plan_of(commit)))) == 2
    assert [line for line in map(str, verify(root.url).findings) if "damage" in line] == []


def test_a_file_that_is_written_anew_meanwhile(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    images = finished(root)
    images.store.put_bytes("orphan", b"1")
    os.utime(Path(images.url, "orphan"), (1, 1))
    [output] = find_outputs(root)[0]
    chosen = plan(output, unfinished=False, older_than_s=DAY, now=time.time() + 2 * DAY)
    images.store.put_bytes("orphan", b"2")
    assert [file.name for file in chosen.files] == ["orphan"]
    assert list(carry_out(chosen)) == []
    assert images.store.exists("orphan")


def test_a_second_worker_that_takes_longer_than_a_day(tmp_path: Path) -> None:
    """Its first shards are old, and the first worker's manifest does not name them; it ends with that manifest."""
    root = open_store(str(tmp_path))
    commit, entries = begun(root)
    second = [put(commit, 0, 40)]
    commit.finalise(shards=entries, files=[], metrics={})
    for name in commit.store.list():
        os.utime(Path(commit.url, name), (time.time() - 40 * HOUR,) * 2)
    second += [put(commit, index, 40 + index) for index in (1, 2)]
    total, lines = later(root, HOUR)
    assert total.files == 0
    assert lines[0] == f"left alone: {commit.url}: 6 files, as somebody wrote there lately"
    assert commit.finalise(shards=second, files=[], metrics={}).manifest.shards == entries
    assert later(root, 25 * HOUR)[0].files == 6
    found = list(map(str, verify(root.url).findings))
    assert len(found) == 3
    assert all(line.startswith("warning: ") and "a second worker's; the manifest names" in line for line in found)


def test_workers_commit_while_gc_runs_without_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = open_store(str(tmp_path))
    removed: list[str] = []
    remove = FolderStore.remove

    def watched(store: FolderStore, file: StoredFile) -> bool:
        went = remove(store, file)
        removed.extend([file.name] * went)
        return went

    monkeypatch.setattr(FolderStore, "remove", watched)

    def work(number: int) -> None:
        for turn in range(4):
            commit = Commit(root, stage="splat_fit", version=1, params={"turn": turn, "number": number}, inputs={})
            commit.store.put_bytes("orphan", b"1")
            entries = [put(commit, index, 10 * number + 2 * index) for index in range(2)]
            commit.finalise(shards=entries, files=[], metrics={})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        later(root, 1, older_than_s=0)
    later(root, 1, older_than_s=0)
    result = verify(root.url)
    assert result.findings == []
    assert len(result.outputs) == 12
    assert removed == ["orphan"] * 12


def test_uploads_in_parts(endpoint: str) -> None:
    """moto says of every upload that it was begun in November 2010."""
    bucket = new_bucket()
    root = open_store(f"{bucket}/store")
    assert isinstance(root, S3Store)
    images = finished(root)
    refused = Commit(root, stage="splat_fit", version=1, params={}, inputs={})
    refused.store.put_bytes("manifest.json", b"{")
    path = images.manifest.path
    for name in (f"{path}/train/00000-aa.tar", f"promote/{'0' * 16}/model", "mine", f"{refused.path}/x"):
        root._client._create_multipart_upload(bucket.removeprefix("s3://"), f"store/{name}", {})
    began = root.uploads()[0].begun
    for options in ({"now": began + 23 * HOUR}, {"now": began + HOUR / 2, "older_than_s": 0}, {"dry_run": True}):
        later(root, 0, **options)
        assert len(root.uploads()) == 4
    total, lines = later(root, 0)
    assert total.uploads == 1, "somebody wrote to the others lately, and what is uploaded there may be under way"
    assert f"gave up an upload in parts to {root.url}/promote/{'0' * 16}/model" in lines
    total, lines = later(root, 25 * HOUR)
    assert f"gave up an upload in parts to {root.url}/{path}/train/00000-aa.tar" in lines
    assert lines[-1].startswith(
        f"{root.url}: deleted 0 files with 0 bytes and 1 uploads in parts; 1 outputs with damaged"
    )
    assert sorted(upload.name for upload in root.uploads()) == ["mine", f"{refused.path}/x"]


def test_uploads_of_an_output_that_changes_while_gc_is_there(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = new_bucket()
    root = open_store(f"{bucket}/store")
    assert isinstance(root, S3Store)
    commit, entries = begun(root)
    root._client._create_multipart_upload(bucket.removeprefix("s3://"), f"store/{commit.path}/x", {})

    def carried_out(chosen: components.gc.Plan) -> Iterator[StoredFile]:
        commit.finalise(shards=entries, files=[], metrics={})
        yield from carry_out(chosen)

    monkeypatch.setattr(components.gc, "carry_out", carried_out)
    total, _ = later(root, 25 * HOUR, unfinished=True)
    assert (total.files, total.uploads, len(root.uploads())) == (0, 0, 1)


def test_a_service_that_lists_no_uploads(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = open_store(f"{new_bucket()}/store")
    finished(root).store.put_bytes("orphan", b"1")

    def refuses(self: S3Store) -> list[object]:
        raise PermanentError("s3://x: access denied")

    monkeypatch.setattr(S3Store, "uploads", refuses)
    total, lines = later(root, 2 * DAY)
    assert total.files == 1
    assert "uploads in parts were not looked at: s3://x: access denied" in lines


def test_addresses_that_make_no_sense_and_places_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert main(["gc", str(tmp_path / "file")]) == 2
    assert main(["gc", ""]) == 2
    assert main(["gc", str(tmp_path / "nowhere")]) == 0
