"""A folder store that one may not enter or read: an error of ours that names the place, never a traceback."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from picture_sets import commit_images, png_samples

from components.errors import PermanentError, TransientError, UsageError
from components.gc import collect
from components.manifest import Artifact, Commit, open_artifact
from components.store import Store, StoreNotFound, open_store
from components.store_check import check_store
from components.verify import verify

NOBODY = 65534


@pytest.fixture
def made() -> Iterator[Artifact]:
    """An output in a folder that everybody may enter (pytest's own are for their owner alone)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield commit_images(f"{folder}/store", [("train", png_samples(0, 2)), ("test", png_samples(2, 2))])


@contextmanager
def shut(path: Path, mode: int = 0) -> Iterator[None]:
    """A path of other rights, to somebody who is not root."""
    before, root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(mode)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(before)


def same_stage(made: Artifact) -> Commit:
    root = open_store(made.url.removesuffix(f"/{made.manifest.path}"))
    manifest = made.manifest
    commit = Commit(root, stage=manifest.stage, version=manifest.version, params=manifest.params, inputs={})
    commit.store = made.store
    return commit


def test_a_folder_that_may_not_be_entered(made: Artifact) -> None:
    where = Path(made.url)
    store, name = made.store, made.manifest.shards[0].name

    def reads(store: Store) -> bytes:
        with store.local(name) as path:
            return path.read_bytes()

    tries: list[Callable[[], object]] = [
        lambda: store.exists("manifest.json"),
        lambda: store.size(name),
        lambda: store.get_bytes(name),
        lambda: reads(store),
        store.list,
        lambda: store.list("_done/"),
        lambda: list(store.entries()),
        lambda: store.put_bytes("x", b""),
        lambda: store.delete(name),
        lambda: same_stage(made).finished(),
        lambda: same_stage(made).done(),
        lambda: open_artifact(made.url, store),
        lambda: open_artifact(f"{made.url}/manifest.json", store),
        lambda: verify(made.url),
        lambda: collect(made.url, dry_run=False),
    ]
    with shut(where):
        for number, attempt in enumerate(tries):
            with pytest.raises(PermanentError, match=rf"^{where}.*Permission denied; choose a folder that") as caught:
                attempt()
            assert not isinstance(caught.value, StoreNotFound), number
        store.sweep()
    assert reads(store)


def test_entries_that_cannot_be_listed_are_not_taken_for_none(made: Artifact) -> None:
    done = Path(made.url, "_done")
    for mode in (0, 0o300):  # 0o300: what one knows the name of may be read
        with shut(done, mode), pytest.raises(PermanentError, match=f"^{done}: Permission denied"):
            same_stage(made).done()
    with shut(done, 0o444), pytest.raises(PermanentError, match=f"^{done}/00000.json: Permission denied"):
        list(made.store.entries())  # listed, but nothing more may be known
    assert sorted(same_stage(made).done()) == [0, 1]


def test_a_shard_that_may_not_be_read(made: Artifact) -> None:
    entry = made.manifest.shards[0]
    path = Path(made.url, entry.name)
    with shut(path):
        with pytest.raises(PermanentError, match=f"^{path}: Permission denied"), made.local(entry):
            pytest.fail("it cannot be read")
        with pytest.raises(PermanentError, match=f"^{path}: Permission denied"):
            made.store.get_bytes(entry.name)
    with made.local(entry):
        pass
    with pytest.raises(PermissionError), made.local(entry):  # of who works with it
        raise PermissionError


def test_the_check_of_a_store_says_it(made: Artifact) -> None:
    store = Path(made.url).parent.parent
    lines: list[str] = []
    with shut(store):
        assert check_store(f"{store}/deeper/one", lines.append) == 42
    assert [line.split()[0] for line in lines] == ["ok", "FAILED", "FAILED"]
    assert f"{store}/deeper/one: Permission denied; choose a folder" in lines[1]


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EIO, TransientError), (errno.ESTALE, TransientError), (errno.EACCES, PermanentError)]
)
def test_other_failures_of_a_file_system(
    number: int, kind: type[Exception], made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a network file system whose server is away."""

    def fails(path: Path, **given: object) -> os.stat_result:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", fails)
        for attempt in (made.store.exists, made.store.size, made.store.get_bytes):
            with pytest.raises(kind, match=f"manifest.json: {os.strerror(number)}"):
                attempt("manifest.json")


def test_names_that_cannot_be(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(PermanentError, match="too long"):
        store.exists("x" * 300)
    store.put_bytes("a", b"")
    assert not store.exists("a/b"), "below a file there is none"
    assert store.list("a/") == []
    with pytest.raises(StoreNotFound):
        store.size("a/b")
    with pytest.raises(PermanentError, match="too long"):
        open_artifact(f"{tmp_path}/{'x' * 300}", store)
    with pytest.raises(UsageError, match="no such home folder"):
        open_store("~nobody-of-that-name/store")
