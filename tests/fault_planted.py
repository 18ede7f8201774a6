"""Mistakes to plant into a command, each of which the fault tests must catch (test_faults_planted.py)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from components import manifest, store

PLANTED: dict[str, Callable[[], None]] = {}


def plant(work: Callable[[], None]) -> Callable[[], None]:
    PLANTED[work.__name__] = work
    return work


def _writing(folder: store.FolderStore, name: str, fill: Callable[[BinaryIO], None], *, sync: bool, temp: str) -> None:
    target = folder._path(name)
    store._make_folder(target.parent)
    place = target.with_name(f"{temp}{target.name}") if temp else target
    with place.open("wb") as stream:
        fill(stream)
        stream.flush()
        if sync:
            os.fsync(stream.fileno())
    if temp:
        place.replace(target)
    store._fsync_folder(target.parent)


@plant
def direct_write() -> None:
    """The rename is gone: a file is written under its own name."""
    store.FolderStore._write = lambda self, name, fill: _writing(self, name, fill, sync=True, temp="")


@plant
def no_fsync() -> None:
    """A file gets its name before its bytes are on the disk."""
    store.FolderStore._write = lambda self, name, fill: _writing(self, name, fill, sync=False, temp=".tmp-")


@plant
def temporary_file_stays() -> None:
    """A write that fails leaves its temporary file."""
    unlink = Path.unlink
    Path.unlink = lambda self, missing_ok=False: (
        None if self.name.startswith(".tmp-") else unlink(self, missing_ok=missing_ok)
    )


@plant
def no_hash_check() -> None:
    """A stored file's content is taken as it is."""
    store._verify = lambda path, sha256: None


@plant
def no_retry() -> None:
    """An address that fails once is given up."""
    from components import url_params

    made = url_params.UrlParams.__post_init__

    def once(self: Any) -> None:
        made(self)
        object.__setattr__(self, "retries", 0)

    url_params.UrlParams.__post_init__ = once


@plant
def no_address_check() -> None:
    """A connection goes to whatever a name, or a redirect, leads to."""
    from components.download import addresses

    addresses.blocked = lambda address, allowed=(): False


@plant
def mapped_address_passes() -> None:
    """Of IPv6 only its own ranges are looked at: an IPv4 address mapped into it is a public one."""
    from components.download import addresses

    blocked = addresses.blocked
    addresses.blocked = lambda address, allowed=(): not address.startswith("::ffff:") and blocked(address, allowed)


@plant
def count_off_by_one() -> None:
    """The manifest counts one picture that is not there."""
    count = manifest.count

    def off(shards: Any) -> dict[str, Any]:
        found = count(shards)
        return {**found, "ok": found["ok"] + 1, "in": found["in"] + 1}

    manifest.count = off


@plant
def entry_off_by_one() -> None:
    """A shard's entry counts one picture that is not in it."""
    put = manifest.Commit.put_shard

    def off(self: Any, file: Path, *, ok: int, **more: Any) -> Any:
        return put(self, file, ok=ok + 1, **more)

    manifest.Commit.put_shard = off


@plant
def nothing_is_kept() -> None:
    """A rerun begins from nothing."""
    manifest.Commit.done = lambda self: {}


@plant
def manifest_first() -> None:
    """The first shard already makes the output visible."""
    put = manifest.Commit.put_shard

    def early(self: Any, file: Path, **more: Any) -> Any:
        entry = put(self, file, **more)
        metrics = {"psnr_db_mean": 0.0}
        if not self.store.exists(manifest.MANIFEST):
            self.finalise(shards=[entry], files=[], metrics=metrics)
        return entry

    manifest.Commit.put_shard = early


@plant
def bytes_that_vary() -> None:
    """The process's number is part of what is written."""
    finalise = manifest.Commit.finalise

    def varying(self: Any, *, shards: Any, files: Any, metrics: Any) -> Any:
        return finalise(self, shards=shards, files=files, metrics={**metrics, "worker": os.getpid()})

    manifest.Commit.finalise = varying


@plant
def disk_error_swallowed() -> None:
    """A write that the disk refuses is passed over."""
    write = store.FolderStore._write

    def passed_over(self: Any, name: str, fill: Any) -> None:
        with contextlib.suppress(Exception):
            write(self, name, fill)

    store.FolderStore._write = passed_over


@plant
def disk_error_untyped() -> None:
    """A full disk is a traceback."""
    store.os_error = lambda where, error: RuntimeError(str(error))


@plant
def room_is_made() -> None:
    """A write that the disk refuses removes what another stage has finished, and is refused all the same."""
    write = store.FolderStore._write

    def greedy(self: Any, name: str, fill: Any) -> None:
        try:
            write(self, name, fill)
        except Exception:
            for path in self.root.parents[1].glob("download/*/*/*.tar"):
                path.unlink()
            raise

    store.FolderStore._write = greedy


@plant
def signal_ignored() -> None:
    """SIGTERM is taken and forgotten."""
    from components import __main__ as command
    from components import signals

    signals.Stop.check = lambda self, kept: None
    command.interrupted_by_signals = lambda *numbers: signals.handling(lambda number, frame: None, *numbers)
