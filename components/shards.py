"""Shards: tar files of samples as webdataset reads and writes them, and indexes that spare a walk through the tar.

Samples are read in place; nothing is ever unpacked to disk.
"""

from __future__ import annotations

import json
import mmap
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import orjson

from components.errors import PermanentError
from components.tar import BLOCK, members, unsafe

RECORD = 10240
# webdataset's rule: split at the first dot of the last part
_KEY_AND_EXT = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$", re.DOTALL)
Layout = list[tuple[str, dict[str, tuple[int, int]]]]  # key, then extension -> (offset, size) in the tar


@dataclass(frozen=True)
class Sample:
    """One sample: its key, and extension without dot -> content."""

    key: str
    fields: dict[str, bytes] = field(repr=False)


def _layout(data: bytes | mmap.mmap, where: str) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    current: str | None = None
    spans: dict[str, tuple[int, int]] = {}
    for name, offset, size in members(data, where):
        match = _KEY_AND_EXT.match(name)
        if not match:  # a file without an extension belongs to no sample, as in webdataset
            continue
        key, ext = match[1].removeprefix("./"), match[2].lower()
        if key != current:
            if current is not None:
                yield current, spans
            current, spans = key, {}
        if ext in spans:
            raise PermanentError(f"{where}: member {name!r} is there twice; a sample has one file of a kind")
        spans[ext] = (offset, size)
    if current is not None:
        yield current, spans


def _map(path: Path) -> tuple[mmap.mmap | bytes, str]:
    try:
        with path.open("rb") as stream:
            if path.stat().st_size == 0:
                raise PermanentError(f"{path}: the file is empty, not a tar; fetch it again")
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), str(path)
    except OSError as error:
        raise PermanentError(f"{path}: cannot read the shard: {error.strerror}") from error


def read_shard(path: Path) -> Iterator[Sample]:
    """All samples of a tar in order, members grouped by key as webdataset does.

    Raises PermanentError, naming the member, on links, devices, names that lead outside, duplicates and a damaged tar.
    """
    data, where = _map(path)
    for key, spans in _layout(data, where):
        yield Sample(key, {ext: bytes(data[offset : offset + size]) for ext, (offset, size) in spans.items()})


def read_layout(path: Path) -> Layout:
    """Keys and the places of their fields, in order; raises as read_shard does."""
    data, where = _map(path)
    return list(_layout(data, where))


def _check_sample(sample: Sample) -> None:
    for ext in sample.fields:
        name = f"{sample.key}.{ext}"
        match = _KEY_AND_EXT.match(name)
        if not match or match[1] != sample.key or ext != ext.lower() or unsafe(name) or sample.key.startswith("./"):
            raise PermanentError(
                f"sample {name!r} cannot be written to a shard: a key has no dot in its last part and stays inside"
            )


def write_shard(path: Path, samples: Iterable[Sample]) -> Layout:
    """Write samples to a tar at `path` and return where each field lies.

    The bytes depend on the samples alone (time 0, owner 0, mode 644). Raises PermanentError on a key that a reader
    would split differently, or one that is there twice.
    """
    layout: Layout = []
    seen: set[str] = set()
    position = 0
    with path.open("wb") as stream:
        for sample in samples:
            _check_sample(sample)
            if sample.key in seen:
                raise PermanentError(f"sample key {sample.key!r} is there twice in one shard")
            seen.add(sample.key)
            spans = {}
            for ext, content in sample.fields.items():
                info = tarfile.TarInfo(f"{sample.key}.{ext}")
                info.size = len(content)
                header = info.tobuf(format=tarfile.PAX_FORMAT)
                stream.write(header)
                stream.write(content)
                padding = -len(content) % BLOCK
                stream.write(bytes(padding))
                spans[ext] = (position + len(header), len(content))
                position += len(header) + len(content) + padding
            layout.append((sample.key, spans))
        end = 2 * BLOCK + -(position + 2 * BLOCK) % RECORD
        stream.write(bytes(end))
    return layout


Spans = npt.NDArray[np.int64]  # [n, 2]: offset and size of each sample's field in the tar; size ABSENT: it has none
ABSENT = -1


def _spans(places: Sequence[Sequence[int] | None], count: int) -> Spans:
    """Raises ValueError or TypeError where these are not `count` places, each (offset, size) or None."""
    missing = [i for i, place in enumerate(places) if place is None] if None in places else []
    found = np.array([(0, 0) if place is None else place for place in places] if missing else places)
    if not count:
        found = np.empty((len(found), 2), np.int64)
    whole = found.astype(np.int64) if found.dtype.kind in "iu" else None
    if whole is None or whole.shape != (count, 2) or (whole < 0).any():
        raise ValueError(f"expected {count} places of two whole numbers from 0 on, or null, for each field")
    whole[missing, 1] = ABSENT
    return whole


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where each sample's fields lie in a tar: `fields[ext][i]` is offset and size of sample i's."""

    keys: list[str]
    fields: dict[str, Spans]

    @classmethod
    def of(cls, layout: Layout) -> ShardIndex:
        """The index of what write_shard or read_layout returned."""
        names = sorted({ext for _, spans in layout for ext in spans})
        fields = {ext: _spans([spans.get(ext) for _, spans in layout], len(layout)) for ext in names}
        return cls([key for key, _ in layout], fields)

    def to_bytes(self) -> bytes:
        """The `.idx` side file: JSON {"keys": [...], "fields": {"gs2d": [[offset, size] | null, ...], ...}}."""
        fields = {
            ext: [None if place[1] == ABSENT else place for place in spans.tolist()]
            for ext, spans in self.fields.items()
        }
        values = {"keys": self.keys, "fields": fields}
        return (json.dumps(values, sort_keys=True, separators=(",", ":")) + "\n").encode()


def write_index(path: Path, layout: Layout) -> None:
    """Write the `.idx` side file of a shard."""
    path.write_bytes(ShardIndex.of(layout).to_bytes())


def read_index(source: Path | mmap.mmap, where: str = "") -> ShardIndex:
    """Read an `.idx` side file from its path or its content; PermanentError, naming `where`, if it is not one."""
    try:
        values = orjson.loads(source.read_bytes() if isinstance(source, Path) else source[:])
        keys = [str(key) for key in values["keys"]]
        fields = {str(ext): _spans(places, len(keys)) for ext, places in values["fields"].items()}
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise PermanentError(
            f"{where or source}: not a shard's index ({error}); delete it and run the stage again"
        ) from error
    return ShardIndex(keys, fields)


class IndexedShard:
    """A tar mapped into memory: fields by position, without a copy. Without an index the tar is walked once.

    source: its path, or its content, which is then called `where` in errors. The memory goes with the last of the shard
    and its views, or with `close`.
    """

    def __init__(self, source: Path | mmap.mmap, index: ShardIndex | Path | None = None, where: str = "") -> None:
        self._data, where = _map(source) if isinstance(source, Path) else (source, where)
        if index is None:
            index = ShardIndex.of(list(_layout(self._data, where)))
        self.index = read_index(index) if isinstance(index, Path) else index
        total = len(self._data)
        if any((spans[:, 0] > total - np.maximum(spans[:, 1], 0)).any() for spans in self.index.fields.values()):
            raise PermanentError(
                f"{where}: its index points outside the file; delete the index and run the stage again"
            )
        self._view = memoryview(self._data).toreadonly()

    @property
    def keys(self) -> list[str]:
        """The samples' keys, in order."""
        return self.index.keys

    def __len__(self) -> int:
        return len(self.index.keys)

    def has(self, i: int, ext: str) -> bool:
        """Whether sample `i` has such a field."""
        spans = self.index.fields.get(ext)
        return spans is not None and bool(spans[i, 1] != ABSENT)

    def get(self, i: int, ext: str) -> memoryview | None:
        """As `field`, None where the sample has no such field."""
        return self.column(ext, [i])[0]

    def field(self, i: int, ext: str) -> memoryview:
        """The bytes of field `ext` of sample `i`, valid while the shard is open; KeyError if it has none."""
        found = self.get(i, ext)
        if found is None:
            raise KeyError(f"sample {self.keys[i]!r} has no field {ext!r}")
        return found

    def column(self, ext: str, rows: Sequence[int]) -> list[memoryview | None]:
        """Field `ext` of several samples, None where one has none; fastest for a range."""
        spans, view = self.index.fields.get(ext), self._view
        if spans is None:
            return [None] * len(rows)
        chosen = spans[rows.start : rows.stop] if isinstance(rows, range) and rows.step == 1 else spans[list(rows)]
        return [None if size == ABSENT else view[offset : offset + size] for offset, size in chosen.tolist()]

    def close(self) -> None:
        """Let go of the file; views that are still held keep it mapped until they go."""
        self._view.release()
        if isinstance(self._data, mmap.mmap):
            try:
                self._data.close()
            except BufferError:
                return  # a caller's view is alive; the map goes with it

    def __enter__(self) -> IndexedShard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
