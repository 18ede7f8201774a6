"""Two workers at one output whose bytes differ (other processors, a node that was given up and still runs).

What the first has finished stays as it is, whatever the second does and wherever it is killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from s3 import new_bucket
from test_train_teacher import TINY, commit_images, sample
from worlds import PARAMS, World

from components import train_teacher, zero_shot_eval
from components.config import TrainTeacherParams
from components.entries import canonical, done_bytes, read_done
from components.errors import PermanentError
from components.gc import collect
from components.manifest import AT_WORK, Artifact, Commit, Manifest, SampleNote, open_artifact
from components.openclip import load_teacher
from components.report import Report
from components.shards import Sample, ShardIndex, write_shard
from components.store import Store, open_store
from components.verify import verify
from components.zero_shot_eval import outputs

GOLDEN = Path(__file__).parent / "golden"


class Killed(BaseException):
    """As kill -9 ends a worker: nothing of its own runs afterwards."""


def begin(place: Store) -> Commit:
    return Commit(place, stage="train_teacher", version=1, params={"seed": 1}, inputs={})


def contents(artifact: Artifact) -> dict[str, bytes]:
    found = {}
    for entry in artifact.manifest.files:
        with artifact.local(entry) as path:
            found[entry.name] = path.read_bytes()
    return found


def tidied(root: Store) -> list[str]:
    collect(root.url, dry_run=False, now=time.time() + 2 * 86400)
    return root.list()


def damage(root: Store) -> list[str]:
    return [str(finding) for finding in verify(root.url).findings if finding.level == "damage"]


def test_files_of_a_second_worker_lie_beside_the_first_ones(root: Store) -> None:
    first, second = begin(root), begin(root)
    files = [first.put_file(name, b"first") for name in ("model.safetensors", "benchmark/one.json", "LICENSE")]
    made = first.finalise(shards=[], files=files, metrics={})
    before = root.list()
    digest = files[0].sha256[:12]
    assert [entry.stored for entry in files] == [
        f"model-{digest}.safetensors",
        f"benchmark/one-{digest}.json",
        f"LICENSE-{digest}",
    ]
    other = [second.put_file(entry.name, b"second") for entry in files]  # and is killed here
    assert contents(made) == dict.fromkeys(("model.safetensors", "benchmark/one.json", "LICENSE"), b"first")
    assert damage(root) == []
    late = second.finalise(shards=[], files=other, metrics={"other": 1})  # or goes on
    assert late.manifest == made.manifest
    assert contents(late) == contents(made)
    assert len(root.list()) == len(before) + 3
    assert tidied(root) == before


@pytest.mark.parametrize("when", ["while it looks for its files", "as it writes"])
def test_of_two_that_finish_at_once_one_stays(when: str, root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """That listing takes tens of seconds on S3; and whoever is overwritten still must say what readers find."""
    first, second = begin(root), begin(root)
    files = [first.put_file("model", b"first")]
    look, put = Commit._check_there, type(second.store).put_bytes
    made: list[Artifact] = []

    def looking(commit: Commit, *given: Any) -> None:
        look(commit, *given)
        monkeypatch.setattr(Commit, "_check_there", look)
        made.append(first.finalise(shards=[], files=files, metrics={}))

    def writing(store: Store, name: str, data: bytes) -> None:
        put(store, name, data)
        monkeypatch.setattr(type(store), "put_bytes", put)
        put(store, name, made.pop().manifest.to_bytes())

    other = [second.put_file("model", b"second")]
    if when == "as it writes":
        made.append(first.finalise(shards=[], files=files, metrics={}))
        root.delete(f"{first.path}/manifest.json")
        monkeypatch.setattr(type(second.store), "put_bytes", writing)
    else:
        monkeypatch.setattr(Commit, "_check_there", looking)
    late = second.finalise(shards=[], files=other, metrics={"other": 1})
    assert late.manifest.files == files
    assert open_artifact(late.url, root).manifest == late.manifest
    assert damage(root) == []


def test_shards_of_the_same_bytes_with_other_tables_beside_them(root: Store, tmp_path: Path) -> None:
    """Two downloads in which the same pictures failed, for other reasons: the tars are equal, the tables are not."""
    path = tmp_path / "shard.tar"
    layout = write_shard(path, [sample(0)])
    entries = []
    for table in (b"timeout", b"refused"):
        side: dict[str, Path | bytes] = {".idx": ShardIndex.of(layout).to_bytes(), ".parquet": table}
        entries.append(begin(root).put_shard(path, index=0, split="train", ok=1, side_files=side))
    assert entries[0].name == entries[1].name
    made = begin(root).finalise(shards=[entries[0]], files=[], metrics={})
    with made.local(entries[0].files[1]) as table:
        assert table.read_bytes() == b"timeout"
    [finding] = verify(root.url).findings[:1]
    assert finding.level == "warning"
    assert (
        f"names {entries[1].files[1].stored}, a second worker's; the manifest names {entries[0].files[1].stored}"
        in (finding.what)
    )
    assert damage(root) == []
    assert entries[1].files[1].stored not in tidied(root)[0]
    made.store.put_bytes("_done/00000.json", done_bytes(replace(entries[1], metrics={"x": 1.0}), summed=False))
    assert len(damage(root)) == 1, "an entry without a sum is not believed to be a second worker's"


def test_shards_without_a_picture_are_the_same_on_every_processor(tmp_path: Path) -> None:
    root, path = open_store(str(tmp_path / "store")), tmp_path / "shard.tar"
    write_shard(path, [])
    notes = [SampleNote(key="a", outcome="failed", reason="truncated")]
    first, second = (
        begin(root).put_shard(path, index=0, split="train", ok=0, notes=notes, backend=name)
        for name in ("avx512", "avx2")
    )
    begin(root).finalise(shards=[first], files=[], metrics={})
    done = f"{begin(root).path}/_done/00000.json"
    told = "names backend 'avx2', a second worker's; the manifest names backend 'avx512'"
    assert [(one.level, one.what) for one in verify(root.url).findings] == [("warning", told)]
    for changed in (done_bytes(second, summed=False), done_bytes(replace(second, metrics={"x": 1.0}))):
        root.put_bytes(done, changed)
        assert len(damage(root)) == 1, "not as a second worker wrote it"


def test_what_earlier_versions_wrote_is_read_as_it_is(root: Store, tmp_path: Path) -> None:
    """Their files lie under the names that people ask for, and their manifests do not say where."""
    data, done = ((GOLDEN / f"{name}_plain_names.json").read_bytes() for name in ("manifest", "done"))
    manifest = Manifest.from_bytes(data, "here")
    assert manifest.to_bytes() == data
    assert manifest.sha256 == "267b982a4e2274a4cb5bb79aed06adf409be82d4e410f66f1231227af7b43d9c"
    assert done_bytes(read_done(done)) == done
    commit = begin(root)
    place = commit.store
    assert commit.path == manifest.path
    [shard] = manifest.shards
    index = ShardIndex.of(write_shard(tmp_path / "shard.tar", [Sample("a", {"txt": b"x"})])).to_bytes()
    names = {"model.safetensors": b"weights", shard.name.replace(".tar", ".idx"): index}
    names[shard.name] = (tmp_path / "shard.tar").read_bytes()
    for name, content in {**names, "_done/00000.json": done}.items():
        place.put_bytes(name, content)
    assert sorted(commit.done()) == [0], "a stage that was begun by an earlier version goes on"
    place.delete(AT_WORK)
    place.put_bytes("manifest.json", data)
    made = open_artifact(place.url, root)
    for name, content in names.items():
        with made.local(name) as path:
            assert path.read_bytes() == content
    before = root.list()
    assert verify(root.url).findings == []
    assert tidied(root) == before


@pytest.mark.parametrize("stored", ["../../etc/passwd", "/etc/passwd", "", "a\x00b", 7])
def test_a_place_outside_of_the_output_is_refused(stored: Any, tmp_path: Path) -> None:
    commit = begin(open_store(str(tmp_path)))
    made = commit.finalise(shards=[], files=[commit.put_file("model", b"1")], metrics={})
    text = made.manifest.to_bytes().replace(f'"{made.entry("model").stored}"'.encode(), canonical(stored).strip())
    text = b"\n".join(line for line in text.split(b"\n") if b'"sum"' not in line)
    with pytest.raises(PermanentError, match=r"^here: .*not a valid manifest|^here: .*store name"):
        Manifest.from_bytes(text, "here")


def test_a_copy_for_people_is_read_by_the_names_there(root: Store, tmp_path: Path) -> None:
    commit = begin(root)
    made = commit.finalise(
        shards=[], files=[commit.put_file("model.bin", b"1"), commit.put_file("a.md", b"2")], metrics={}
    )
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in contents(made).items():
        (copy / name).write_bytes(content)
    (copy / "manifest.json").write_bytes(made.manifest.to_bytes())
    assert contents(open_artifact(str(copy), open_store(str(tmp_path / "empty")))) == contents(made)
    (copy / "model.bin").write_bytes(b"3")
    with pytest.raises(PermanentError, match="sha256 is"):
        contents(open_artifact(str(copy), open_store(str(tmp_path / "empty"))))


def second_worker(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Report]) -> None:
    """Run a stage as a worker that began before the first one's manifest: killed before its own, then to its end."""
    found = Commit.finished
    finalise = Commit.finalise

    def not_yet(commit: Commit) -> Artifact | None:
        monkeypatch.setattr(Commit, "finished", found)
        return None

    def killed(commit: Commit, **given: Any) -> Artifact:
        raise Killed

    monkeypatch.setattr(Commit, "finished", not_yet)
    monkeypatch.setattr(Commit, "finalise", killed)
    with pytest.raises(Killed):
        run()
    monkeypatch.setattr(Commit, "finalise", finalise)
    monkeypatch.setattr(Commit, "finished", not_yet)
    run()


def test_two_workers_train_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    (tmp_path / "tiny.json").write_bytes(canonical(TINY))
    store = f"{new_bucket()}/store"
    root = open_store(store)
    images = commit_images(tmp_path / "store", {"train": [sample(i) for i in range(8)]}).url
    params = TrainTeacherParams(model=str(tmp_path / "tiny.json"), epochs=1, batch_size=8, warmup_steps=0, device="cpu")
    first = train_teacher.stage.run(params, images=images, store=store)
    made = open_artifact(first.url, root)
    before, names = contents(made), root.list()
    save = train_teacher.stage.save_model

    def on_another_processor(state: dict[str, torch.Tensor], path: Path) -> None:
        save({name: tensor * 1.001 for name, tensor in state.items()}, path)

    monkeypatch.setattr(train_teacher.stage, "save_model", on_another_processor)
    second_worker(monkeypatch, lambda: train_teacher.stage.run(params, images=images, store=store))
    again = open_artifact(first.url, root)
    assert again.manifest == made.manifest
    assert contents(again) == before
    load_teacher(again)
    assert len(root.list()) == len(names) + 1
    assert damage(root) == []
    assert tidied(root) == names


def test_two_workers_score(world: World, scored: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    root = open_store(str(world.store))
    before, names = contents(scored), root.list()
    written = outputs.per_class_csv

    def with_other_threads(*given: Any, **more: Any) -> bytes:
        return written(*given, **more) + b"0.3000001\n"

    monkeypatch.setattr(outputs, "per_class_csv", with_other_threads)
    monkeypatch.setattr(zero_shot_eval.stage.outputs, "per_class_csv", with_other_threads)
    reports: list[Artifact] = []
    second_worker(monkeypatch, lambda: reports.append(world.run(PARAMS)))  # type: ignore[arg-type,func-returns-value]
    [late] = reports
    assert late.manifest == scored.manifest
    assert contents(scored) == before
    assert len(root.list()) == len(names) + 1
    assert damage(root) == []
    assert tidied(root) == names
