"""gc and a stage that goes on where an earlier call was killed: what it counts on stays, or it says that it is gone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fault_proxy import fault_proxy
from s3 import new_bucket, s3_environment
from test_gc import DAY, begun, later, plan_of, put

from components.errors import TransientError
from components.gc import carry_out
from components.manifest import AT_WORK, Commit
from components.store import Store, StoredFile, open_store
from components.verify import verify


def age(commit: Commit, seconds: float) -> None:
    for name in commit.store.list():
        os.utime(Path(commit.url, name), (time.time() - seconds,) * 2)


def again(commit: Commit) -> Commit:
    """The same stage, started anew."""
    return Commit(commit.root, stage=commit.stage, version=commit.version, params=commit.params, inputs={})


def test_a_stage_that_was_killed_before_its_manifest_and_goes_on(tmp_path: Path) -> None:
    """All of it is old and whole; what it does next is to write a manifest that names it."""
    root = open_store(str(tmp_path))
    commit, entries = begun(root)
    age(commit, 2 * DAY)
    resumed = again(commit)
    found = resumed.done()
    total, lines = later(root, 0, unfinished=True)
    assert (total.files, lines[0]) == (0, f"left alone: {commit.url}: 10 files, as somebody wrote there lately")
    made = resumed.finalise(shards=list(found.values()), files=[], metrics={})
    assert made.manifest.shards == entries
    assert verify(root.url).findings == [], "nothing tells of it any more"
    left, _ = begun(root, 2)
    again(left).done()  # and is killed
    age(left, 2 * DAY)
    assert later(root, 0, unfinished=True)[0].files == 10


@pytest.mark.parametrize("indexes", [None, range(3)], ids=["all", "a group"])
@pytest.mark.parametrize("when", ["before it looks", "before its mark"])
def test_a_stage_that_goes_on_in_the_midst_of_deleting(
    indexes: range | None, when: str, root: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, entries = begun(root)
    deeds = carry_out(plan_of(commit))
    mark = Commit._mark

    def marking(commit: Commit) -> None:
        assert next(deeds).name == "_done/00000.json"
        mark(commit)

    if when == "before its mark":
        monkeypatch.setattr(Commit, "_mark", marking)
    else:
        assert next(deeds).name == "_done/00000.json"
    resumed = again(commit)
    found = resumed.done(indexes)
    assert list(deeds) == []
    assert sorted(found) == [1, 2]
    found[0] = put(resumed, 0)
    assert resumed.finalise(shards=list(found.values()), files=[], metrics={}).manifest.shards == entries
    assert verify(root.url).findings == []


def test_the_mark_of_a_killed_stage_goes_first_unless_it_is_made_anew(root: Store) -> None:
    commit, _ = begun(root)
    again(commit).done()
    deeds = carry_out(plan_of(commit))
    assert next(deeds).name == AT_WORK
    again(commit).begin()
    assert list(deeds) == []
    chosen = plan_of(commit)
    assert chosen.files[0].name == AT_WORK
    if "://" in root.url:
        time.sleep(1.1)  # its times are whole seconds
    again(commit).begin()
    assert list(carry_out(chosen)) == []
    assert len(commit.store.list()) == 10


@pytest.mark.parametrize("what", ["shard", "side file", "entry", "other size"])
def test_a_manifest_names_nothing_that_is_gone(what: str, root: Store) -> None:
    commit, _ = begun(root)
    resumed = again(commit)
    found = resumed.done()
    name = {"side file": found[1].files[0].place, "entry": "_done/00001.json"}.get(what, found[1].name)
    if what == "other size":
        commit.store.put_bytes(name, b"cut")
    else:
        commit.store.delete(name)
    with pytest.raises(TransientError, match=rf"1 files that were .* such as {name}: .*; run the same command again"):
        resumed.finalise(shards=list(found.values()), files=[], metrics={})
    assert resumed.finished() is None
    once_more = again(commit)
    found = once_more.done()
    assert sorted(found) == [0, 2], "what is gone is made again"
    found[1] = put(once_more, 1, 2)
    once_more.finalise(shards=list(found.values()), files=[], metrics={})
    assert verify(root.url).findings == []
    file = replace(found[1].files[0], name="x", stored="gone")
    other = Commit(root, stage="promote", version=1, params={}, inputs={})
    with pytest.raises(TransientError, match="such as gone"):
        other.finalise(shards=[], files=[file], metrics={})


def test_a_listing_that_is_behind(root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on services that update theirs later: what it lacks is asked for by name."""
    commit, entries = begun(root)

    def nothing(store: Store) -> Iterator[StoredFile]:
        return iter(())

    monkeypatch.setattr(type(commit.store), "entries", nothing)
    assert commit.finalise(shards=entries, files=[], metrics={}).manifest.shards == entries


def test_what_a_manifest_names_is_looked_for_by_listing(endpoint: str) -> None:
    """128,000 shards are 256,000 files: no request for each."""
    with fault_proxy(endpoint) as proxy, s3_environment(proxy.url):
        commit, entries = begun(open_store(f"{new_bucket()}/store"))
        proxy.reset()
        commit.finalise(shards=entries, files=[], metrics={})
        assert [line.partition(" ")[0] for line in proxy.seen] == ["HEAD", "GET", "HEAD", "PUT", "GET"]
        assert "list-type=2" in proxy.seen[1]
