"""The check of one finished output: every file that its manifest lists is read to its end, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from components.entries import (
    OUTCOMES,
    FileEntry,
    Manifest,
    ShardEntry,
    canonical,
    done_bytes,
    file_bytes,
    read_done,
    read_file,
    sha256_bytes,
)
from components.errors import PermanentError
from components.findings import Finding
from components.lineage import Lineage, Node
from components.manifest import DONE, MANIFEST
from components.outputs import Output, done_name, lies_in_place, listed, named, read_strictly
from components.progress import Bar
from components.shards import ShardIndex, read_index, read_layout
from components.store import StoreDamaged, StoredFile, StoreNotFound, sha256_file

INDEX = ".idx"
There = dict[str, StoredFile]
Look = Callable[[Path], Iterator[Finding]]


class OutputCheck:
    """Checks an output, and counts the files and bytes that were read of it."""

    def __init__(self, output: Output, bar: Bar) -> None:
        self._store, self._bar = output.store, bar
        self._url = self._store.url
        self._manifest = f"{self._url}/{MANIFEST}"
        self._again = f"delete it and {self._manifest}, then run the stage again"
        self._restore = f"delete {self._manifest}, then run the stage again"
        self.files = self.bytes = 0

    def findings(self, lineage: Lineage) -> Iterator[Finding]:
        """All that is wrong; the output joins the lineage if its manifest can be believed."""
        try:
            read = read_strictly(self._store)
        except PermanentError as error:
            yield Finding.of(error, self._manifest)
            return
        if read is None:
            yield Finding.warning(self._manifest, "was there a moment ago", "verify again when nobody works here")
            return
        manifest, data = read
        self._count(len(data))
        there = {file.name: file for file in self._store.entries()}  # after the manifest, which is written last
        if lies_in_place(manifest, self._url):
            lineage.add(Node.of(manifest, self._url))
        else:
            what = f"says that it lies at {manifest.path}: a copy, or moved"
            yield Finding.damage(self._manifest, what, "put all of it back there, or delete it")
            if not any(entry.place in there for entry in listed(manifest)):
                return
        yield from self._parameters(manifest)
        for shard in manifest.shards:
            yield from self._shard(shard, there)
            yield from self._done_shard(shard, there)
        for entry in manifest.files:
            yield from self._file(entry, there)
            yield from self._done_file(entry, there)
        for name in sorted(there.keys() - named(manifest)):
            kind = "a temporary file" if there[name].temporary else "an orphan"
            what = f"{kind} of {there[name].bytes:,} bytes: the manifest does not name it"
            yield Finding.warning(f"{self._url}/{name}", what, "`splatclip gc` removes it once it is old")

    def _count(self, num_bytes: int) -> None:
        self.files += 1
        self.bytes += num_bytes
        self._bar.advance()

    def _parameters(self, manifest: Manifest) -> Iterator[Finding]:
        again = "delete it and run the stage again"
        if sha256_bytes(canonical(manifest.params)) != manifest.params_hash:
            yield Finding.damage(self._manifest, "its params_hash is not that of its params", again)
        if foreign := [shard.name for shard in manifest.shards if shard.params_hash != manifest.params_hash]:
            yield Finding.damage(self._manifest, f"lists shards of other parameters: {', '.join(foreign)}", again)

    def _shard(self, shard: ShardEntry, there: There) -> Iterator[Finding]:
        """Its tar, whose samples are counted, and its side files; the index is compared with the tar."""
        layout: list[ShardIndex] = []
        where = f"{self._url}/{shard.name}"

        def samples(path: Path) -> Iterator[Finding]:
            try:
                found = ShardIndex.of(read_layout(path))
            except PermanentError as error:
                yield Finding.of(error, where, self._again, str(path))
                return
            layout.append(found)
            if len(found.keys) != shard.ok:
                what = f"holds {len(found.keys):,} samples, where its manifest counts {shard.ok:,} as ok"
                yield Finding.damage(where, what, self._again)

        yield from self._file(FileEntry(name=shard.name, sha256=shard.sha256, bytes=shard.bytes), there, samples)
        for side in shard.files:
            yield from self._file(side, there, self._index(side, layout) if side.name.endswith(INDEX) else None)

    def _index(self, side: FileEntry, layout: list[ShardIndex]) -> Look:
        where = f"{self._url}/{side.place}"

        def look(path: Path) -> Iterator[Finding]:
            try:
                found = read_index(path, where)
            except PermanentError as error:
                yield Finding.of(error, where, self._again)
                return
            if layout and not _same(found, layout[0]):
                yield Finding.damage(where, "is not the index of its tar: other samples or places", self._again)

        return look

    def _file(self, entry: FileEntry, there: There, look: Look | None = None) -> Iterator[Finding]:
        """A listed file: there, and of its sum and size; then `look` at what is in it."""
        where = f"{self._url}/{entry.place}"
        try:
            if entry.place not in there:
                raise self._store.not_found(entry.place)
            yield from self._content(entry, where, look)
        except StoreNotFound:
            yield Finding.damage(where, "is missing", self._restore)
        except PermanentError as error:
            yield self._refused(error, where)
        except OSError as error:
            remedy = f"check the disk and its permissions; if it is lost, {self._again}"
            yield Finding.damage(where, f"cannot be read: {error.strerror or error}", remedy)

    def _refused(self, error: PermanentError, where: str) -> Finding:
        """What the store says of a file that it does not give, or gives damaged."""
        return Finding.of(error, where, self._again if isinstance(error, StoreDamaged) else "")

    def _content(self, entry: FileEntry, where: str, look: Look | None) -> Iterator[Finding]:
        for last in (False, True):  # damaged on the way? a second download tells
            with self._store.local(entry.place) as path:  # no sum given: a folder would believe an earlier look
                size, found = path.stat().st_size, sha256_file(path)
                if found != entry.sha256 and not last:
                    continue
                self._count(size)
                if found != entry.sha256:
                    what = f"sha256 is {found}, expected {entry.sha256} ({size:,} bytes, expected {entry.bytes:,})"
                    yield Finding.damage(where, f"{what}: changed or damaged", self._again)
                elif size != entry.bytes:
                    what = f"has {size:,} bytes, where the manifest says {entry.bytes:,}"
                    yield Finding.damage(where, what, self._again)
                elif look is not None:
                    yield from look(path)
                return

    def _done(self, name: str, there: There) -> bytes | Finding | None:
        if name not in there:
            return None
        try:
            data = self._store.get_bytes(name)
        except StoreNotFound:
            return None
        except PermanentError as error:
            return self._refused(error, f"{self._url}/{name}")
        self._count(len(data))
        return data

    def _done_shard(self, shard: ShardEntry, there: There) -> Iterator[Finding]:
        """A shard's _done entry: there, and the same as the manifest says; its samples are those that are counted."""
        name = f"{DONE}/{shard.index:05d}.json"
        where, data = f"{self._url}/{name}", self._done(name, there)
        if data is None:
            yield Finding.damage(where, f"is missing, and with it the names of samples of {shard.name}", self._restore)
            return
        if isinstance(data, Finding):
            yield data
            return
        try:
            found = read_done(data)
            second = _second(found, shard, data)
        except (ValueError, TypeError, KeyError, AttributeError, PermanentError) as error:
            yield Finding.damage(where, f"not a valid entry ({error})", self._again)
            return
        if second:
            theirs, ours = next(pair for pair in zip(_places(found), _places(shard), strict=False) if len({*pair}) > 1)
            yield _second_worker(where, theirs, ours)
            return
        notes = {kind: Counter(note.reason for note in found.samples if note.outcome == kind) for kind in OUTCOMES}
        if any(notes[kind] != getattr(shard, kind) for kind in OUTCOMES):
            what = f"names other samples than those that the manifest counts as skipped and failed of {shard.name}"
            yield Finding.damage(where, what, self._again)
        elif _as_written(data, replace(shard, samples=found.samples)):
            return
        elif data == done_bytes(replace(shard, samples=found.samples, backend=found.backend)):
            yield _second_worker(where, f"backend {found.backend!r}", f"backend {shard.backend!r}")
        else:
            yield Finding.damage(where, f"says something else of {shard.name} than the manifest", self._again)

    def _done_file(self, entry: FileEntry, there: There) -> Iterator[Finding]:
        """The _done entry of a numbered file, where it has one."""
        name = done_name(entry.place)
        data = self._done(name, there) if name else None
        if isinstance(data, Finding):
            yield data
            return
        if data is None or data == file_bytes(entry):
            return
        where = f"{self._url}/{name}"
        try:
            found = read_file(data)
            second = found.place != entry.place and data == file_bytes(found) and done_name(found.place) == name
        except (ValueError, TypeError, AttributeError, PermanentError) as error:
            yield Finding.damage(where, f"not a valid entry ({error})", self._again)
            return
        if second:
            yield _second_worker(where, found.place, entry.place)
        else:
            yield Finding.damage(where, f"says something else of {entry.name} than the manifest", self._again)


def _as_written(data: bytes, entry: ShardEntry) -> bool:
    return data in {done_bytes(entry), done_bytes(entry, summed=False)}


def _second(found: ShardEntry, shard: ShardEntry, data: bytes) -> bool:
    """Whether an entry is whole, and of the same work as the shard, but of other bytes."""
    name = f"{shard.split}/{shard.index:05d}-{found.sha256[:12]}.tar"
    same = (found.index, found.split, found.params_hash) == (shard.index, shard.split, shard.params_hash)
    other = found.name != shard.name or (_places(found) != _places(shard) and data == done_bytes(found))
    return same and other and name == found.name and _as_written(data, found)


def _places(shard: ShardEntry) -> list[str]:
    return [shard.place, *(side.place for side in shard.files)]


def _second_worker(where: str, found: str, listed_name: str) -> Finding:
    what = f"names {found}, a second worker's; the manifest names {listed_name}"
    return Finding.warning(where, what, "nothing to do: readers go by the manifest")


def _same(one: ShardIndex, other: ShardIndex) -> bool:
    return (
        one.keys == other.keys
        and one.fields.keys() == other.fields.keys()
        and all(np.array_equal(spans, other.fields[ext]) for ext, spans in one.fields.items())
    )
