"""What a stage has committed: entries while it works, and one manifest, written last, that lists all of it.

A manifest holds no time, no speed and no address: the same work gives the same bytes in any store, resumed or not.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.entries import (
    OUTCOMES,
    FileEntry,
    Manifest,
    SampleNote,
    ShardEntry,
    canonical,
    count,
    done_bytes,
    read_entry,
    sha256_bytes,
    stored_name,
)
from components.errors import PermanentError, TransientError, UsageError
from components.json_text import parse
from components.store import Store, StoreNotFound, check_name, open_store, os_error, sha256_file

__all__ = [
    "Artifact",
    "Commit",
    "FileEntry",
    "Manifest",
    "SampleNote",
    "ShardEntry",
    "canonical",
    "open_artifact",
    "output_key",
    "read_manifest",
    "sha256_bytes",
]
MANIFEST = "manifest.json"
DONE = "_done"
AT_WORK = "_at_work"  # written where an earlier call left something, removed at the end
FAILED = "_failed"
READERS = 16  # entries read at a time
FEW = 64  # that are read one after another


@dataclass(frozen=True)
class Artifact:
    """A finished stage's output: its manifest, and its prefix.

    plain: whether it is a copy for people (`--files-out`), whose files lie under the names that they are asked for by.
    """

    manifest: Manifest
    store: Store
    url: str
    plain: bool = False

    def local(self, entry: ShardEntry | FileEntry | str) -> AbstractContextManager[Path]:
        """A local path of a shard or file for the length of the context, checked by its sha256.

        Raises PermanentError if the manifest does not list it or the content differs.
        """
        if isinstance(entry, str):
            entry = self.entry(entry)
        return self.store.local(self._place(entry), entry.sha256)

    def content(self, entry: ShardEntry | FileEntry) -> AbstractContextManager[Path | mmap.mmap]:
        """As `local`; of a store that is not a folder, what is not too large comes in memory (see Store.content)."""
        return self.store.content(self._place(entry), entry.sha256, entry.bytes)

    def _place(self, entry: ShardEntry | FileEntry) -> str:
        return entry.name if self.plain else entry.place

    def entry(self, name: str) -> FileEntry:
        """The entry of a listed file, a shard or a shard's side file; PermanentError if it is not listed."""
        for shard in self.manifest.shards:
            if shard.name == name:
                return FileEntry(name=name, sha256=shard.sha256, bytes=shard.bytes)
        side = (entry for shard in self.manifest.shards for entry in shard.files)
        for entry in (*self.manifest.files, *side):
            if entry.name == name:
                return entry
        raise PermanentError(f"{self.url}: its manifest lists no file {name!r}")

    def has(self, name: str) -> bool:
        """Whether the manifest lists a file (not a shard) of that name."""
        return any(entry.name == name for entry in self.manifest.files)


def read_manifest(store: Store) -> Manifest:
    """The manifest at a prefix; PermanentError if there is none or it is damaged."""
    try:
        data = store.get_bytes(MANIFEST)
    except StoreNotFound:
        raise PermanentError(f"{store.url} has no {MANIFEST}: the stage has not finished; run it again") from None
    return Manifest.from_bytes(data, f"{store.url}/{MANIFEST}")


def open_artifact(ref: str, store: Store) -> Artifact:
    """Open a finished stage's output.

    ref: its prefix (a folder or s3://...), or a copy of its manifest.json (or a folder that holds only that copy),
    whose `path` is then looked up under `store`. Raises PermanentError if it is not finished, damaged, or if the
    store's manifest is another one than the copy.
    """
    if not ref:
        raise UsageError("an input's address is empty; give a stage's prefix or its manifest.json")
    try:
        data = Path(ref).read_bytes() if Path(ref).is_file() else None
    except OSError as error:
        raise os_error(Path(ref), error) from error
    if data is not None:
        manifest = Manifest.from_bytes(data, ref)
        place = open_store(str(Path(ref).parent)) if Path(ref).name == MANIFEST else None
    else:
        place = open_store(ref.rstrip("/").removesuffix(f"/{MANIFEST}") or ref)
        manifest = read_manifest(place)
    if place is not None:
        listed: list[ShardEntry | FileEntry] = [*manifest.shards, *manifest.files]
        first = listed[0] if listed else None
        if place.url.rstrip("/").endswith(f"/{manifest.path}") or (first and place.exists(first.place)):
            return Artifact(manifest, place, place.url)
        if first and place.exists(first.name):
            return Artifact(manifest, place, place.url, plain=True)
    there = store.sub(manifest.path)
    if not there.exists(MANIFEST):
        raise PermanentError(
            f"{ref} is a copy; {manifest.path} itself is not finished under the store {store.url}, where it was looked "
            "for: name the store that holds it (--store), or give its prefix there"
        )
    if read_manifest(there).sha256 != manifest.sha256:
        raise PermanentError(f"{ref}: {there.url}/{MANIFEST} is another one; run the stage that made it again")
    return Artifact(manifest, there, there.url)


def output_key(stage: str, version: int, params: Mapping[str, Any], inputs: Mapping[str, str], source: str = "") -> str:
    """What a stage's output lies under: a hash of all that decides it. inputs: sha256 of their manifests by name."""
    whole = {"stage": stage, "version": version, "params": params, "inputs": dict(inputs), "source": source}
    return sha256_bytes(canonical(whole))[:16]


def done_name(index: int) -> str:
    """Where a shard's entry lies below the prefix."""
    return f"{DONE}/{index:05d}.json"


class Commit:
    """One stage's write side, at `<store>/<stage>/<key>`.

    key: of stage, version, params, the inputs' manifests and `source` (a fingerprint of what lies outside the store).
    """

    def __init__(
        self,
        store: Store,
        *,
        stage: str,
        version: int,
        params: dict[str, Any],
        inputs: dict[str, Artifact],
        source: str = "",
    ) -> None:
        self.stage, self.version, self.params = stage, version, params
        self.inputs = {
            name: {"path": given.manifest.path, "sha256": given.manifest.sha256}
            for name, given in sorted(inputs.items())
        }
        sums = {name: given["sha256"] for name, given in self.inputs.items()}
        self.key = output_key(stage, version, params, sums, source)
        self.params_hash = sha256_bytes(canonical(params))
        self.path = f"{stage}/{self.key}"
        self.root, self.store = store, store.sub(self.path)
        self.url = self.store.url
        self._marked = False
        self._failed: list[str] = []  # notes of failures that `done` saw

    def finished(self) -> Artifact | None:
        """What an earlier call finished, or None. Raises PermanentError if its manifest is damaged."""
        if not self.store.exists(MANIFEST):
            return None
        return Artifact(read_manifest(self.store), self.store, self.url)

    def done(self, indexes: Collection[int] | None = None) -> dict[int, ShardEntry]:
        """The committed shards by index; not those of other parameters or whose files are missing or of other size.

        indexes: only these; a few requests for each, and none for what else lies there.
        """
        sizes: dict[str, int] = {}
        if indexes is not None:
            read = [self._entry(done_name(index)) for index in indexes]
            if any(read):
                self._mark()
                # what was deleted before the mark came is not counted on
                read = [entry and self._entry(done_name(entry.index)) for entry in read]
        else:
            self.begin()
            # one listing tells the sizes of all: asking file by file takes two requests a shard
            sizes = {file.name: file.bytes for file in self.store.entries() if not file.temporary}
            self._failed = [name for name in sizes if name.startswith(f"{FAILED}/")]
            names = sorted(name for name in sizes if name.startswith(f"{DONE}/"))
            if len(names) <= FEW:
                read = [self._entry(name) for name in names]
            else:
                with ThreadPoolExecutor(READERS) as pool:
                    read = list(pool.map(self._entry, names))
        return {entry.index: entry for entry in read if entry is not None and self._whole(entry, sizes)}

    def done_indexes(self) -> set[int]:
        """The indexes that have an entry, from a listing of names alone: how far the work is, nothing checked."""
        stems = (name.rpartition("/")[2].removesuffix(".json") for name in self.store.list(f"{DONE}/"))
        return {int(stem) for stem in stems if stem.isdecimal()}

    def begin(self, left: str = DONE) -> None:
        """Say that somebody is at work, where an earlier call has left entries: gc leaves alone what is young.

        To be called before what was left is looked through. left: where that lies, if it is something else.
        """
        if self.store.list(f"{left}/"):
            self._mark()

    def _mark(self) -> None:
        self.store.put_bytes(AT_WORK, b"a stage is at work here, or was when it was killed\n")
        self._marked = True

    def put_failure(self, index: int, reason: str) -> None:
        """Leave a note of why a shard cannot be made, for whoever waits for it elsewhere."""
        self.store.put_bytes(f"{FAILED}/{index:05d}.json", canonical({"index": index, "reason": reason}))

    def failures(self) -> dict[int, str]:
        """The reasons that were noted, by index; those of shards that a later call made may still be among them."""
        reasons = {}
        for name in self.store.list(f"{FAILED}/"):
            with suppress(StoreNotFound, ValueError, TypeError, KeyError):  # another call finished and removed it
                note = parse(self.store.get_bytes(name))
                reasons[int(note["index"])] = str(note["reason"])
        return reasons

    def _entry(self, name: str) -> ShardEntry | None:
        """An entry of these parameters, or None."""
        try:
            entry = read_entry(self.store.get_bytes(name), f"{self.url}/{name}")
        except StoreNotFound:
            return None
        return entry if entry.params_hash == self.params_hash else None

    def _whole(self, entry: ShardEntry, sizes: Mapping[str, int]) -> bool:
        """Whether an entry's files are there. sizes: what a listing gave; what it lacks may have come after it."""
        files: list[ShardEntry | FileEntry] = [entry, *entry.files]
        return all(sizes.get(file.place) == file.bytes or self._there(file.place, file.bytes) for file in files)

    def put_file(self, name: str, content: bytes | Path) -> FileEntry:
        """Commit a file (a model, a table) under the prefix; it lies under its name and its content's digest."""
        check_name(name)
        if isinstance(content, Path):
            digest, size = sha256_file(content), content.stat().st_size
            self.store.put_file(place := stored_name(name, digest), content)
        else:
            digest, size = sha256_bytes(content), len(content)
            self.store.put_bytes(place := stored_name(name, digest), content)
        return FileEntry(name=name, sha256=digest, bytes=size, stored="" if place == name else place)

    def put_shard(
        self,
        file: Path,
        *,
        index: int,
        split: str,
        ok: int,
        notes: Sequence[SampleNote] = (),
        source: str | None = None,
        side_files: Mapping[str, Path | bytes] | None = None,
        metrics: Mapping[str, float] | None = None,
        backend: str = "",
    ) -> ShardEntry:
        """Commit a shard under a name made of its content, its side files (suffix -> content), then its entry."""
        for note in notes:
            if note.outcome not in OUTCOMES:
                raise UsageError(f"sample {note.key!r}: outcome {note.outcome!r}; choose one of: {', '.join(OUTCOMES)}")
        digest = sha256_file(file)
        stem = f"{split}/{index:05d}-{digest[:12]}"
        self.store.put_file(f"{stem}.tar", file)
        files = [self.put_file(stem + suffix, content) for suffix, content in sorted((side_files or {}).items())]
        counts = {
            outcome: dict(sorted(Counter(note.reason for note in notes if note.outcome == outcome).items()))
            for outcome in OUTCOMES
        }
        entry = ShardEntry(
            index=index,
            split=split,
            name=f"{stem}.tar",
            sha256=digest,
            bytes=file.stat().st_size,
            ok=ok,
            skipped=counts["skipped"],
            failed=counts["failed"],
            samples=list(notes),
            source=source,
            files=files,
            metrics=dict(metrics or {}),
            backend=backend,
            params_hash=self.params_hash,
        )
        self.store.put_bytes(done_name(index), done_bytes(entry))
        return entry

    def _check_there(self, shards: Sequence[ShardEntry], files: Sequence[FileEntry]) -> None:
        """TransientError if something that the manifest is to name is gone; by one listing of all."""
        sides = (side for shard in shards for side in shard.files)
        listed: list[ShardEntry | FileEntry] = [*shards, *sides, *files]
        missing: dict[str, int | None] = {entry.place: entry.bytes for entry in listed}
        missing |= {done_name(shard.index): None for shard in shards}  # by now a second worker's, perhaps
        for file in self.store.entries() if missing else ():
            if missing.get(file.name, file.bytes) in {None, file.bytes}:
                missing.pop(file.name, None)
        lost = [name for name, size in missing.items() if not self._there(name, size)]  # a listing may be behind
        if lost:
            raise TransientError(
                f"{self.url}: {len(lost)} files that were committed are gone or of other size, such as {lost[0]}: "
                "something removed them meanwhile; run the same command again"
            )

    def _there(self, name: str, size: int | None) -> bool:
        try:
            return self.store.size(name) == size or size is None
        except StoreNotFound:
            return False

    def finalise(
        self, *, shards: Sequence[ShardEntry], files: Sequence[FileEntry], metrics: Mapping[str, Any]
    ) -> Artifact:
        """Write manifest.json, which makes all of it visible; or return what another worker has finished meanwhile.

        That is asked again after the check of what the manifest names, a listing that takes its time; what is returned
        is what readers find.
        Raises PermanentError on entries that do not belong, TransientError where a file is no longer there.
        """
        repeated = [index for index, times in Counter(shard.index for shard in shards).items() if times > 1]
        foreign = [shard.index for shard in shards if shard.params_hash != self.params_hash]
        if repeated or foreign:
            raise PermanentError(
                f"{self.url}: shards listed twice {repeated} or of other parameters {foreign}; run it again"
            )
        manifest = Manifest(
            stage=self.stage,
            version=self.version,
            key=self.key,
            path=self.path,
            params=self.params,
            params_hash=self.params_hash,
            inputs=self.inputs,
            shards=sorted(shards, key=lambda shard: shard.index),
            files=sorted(files, key=lambda entry: entry.name),
            counts=count(shards),
            metrics=dict(metrics),
        )
        data = manifest.to_bytes()
        Manifest.from_bytes(data, f"{self.url}/{MANIFEST}")  # whatever is written can be read
        made = self.finished()
        if made is None:
            self._check_there(shards, files)
            made = self.finished()
        if made is None:
            self.store.put_bytes(MANIFEST, data)
            made = Artifact(read_manifest(self.store), self.store, self.url)
        for name in [*self._failed, *([AT_WORK] if self._marked else [])]:
            self.store.delete(name)
        self.store.sweep()
        return made
