"""The records of what stages commit, and their JSON: canonical on writing, checked on reading."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from json.encoder import encode_basestring
from typing import Any, TypeVar, get_type_hints

from components.errors import PermanentError, UsageError
from components.json_text import parse, shallow
from components.store import check_name

FORMAT = 1
OUTCOMES = ("skipped", "failed")
T = TypeVar("T")


def _scalar(item: Any) -> Any:
    if hasattr(item, "item"):  # a NumPy or torch scalar
        return item.item()
    raise TypeError(f"{type(item).__name__} is no JSON value")


_STRICT: dict[str, Any] = {"sort_keys": True, "allow_nan": False, "ensure_ascii": False, "default": _scalar}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), **_STRICT)


def _indented(value: Any, indent: str, start: str = "\n") -> str:
    """As json.dumps with an indent, which runs in Python, value by value: 128,000 shards would take it 20 s."""
    kind, inner = type(value), start + indent
    if kind is str:
        return encode_basestring(value)
    if kind is int:
        return int.__repr__(value)
    if kind is float and math.isfinite(value):
        return float.__repr__(value)
    if kind is dict and value and all(type(key) is str for key in value):
        parts = [f"{encode_basestring(key)}: {_indented(item, indent, inner)}" for key, item in sorted(value.items())]
        return f"{{{inner}{f',{inner}'.join(parts)}{start}}}"
    if kind in {list, tuple} and value:
        return f"[{inner}{f',{inner}'.join([_indented(item, indent, inner) for item in value])}{start}]"
    if kind is dict and not value:
        return "{}"
    if isinstance(value, (dict, list, tuple)) and value:  # of a kind of its own, or with keys that are no text
        text = json.dumps(value, indent=len(indent), separators=(",", ": "), **_STRICT)
        return text.replace("\n", start)  # a text's own line breaks are escaped
    return _compact(value)


def canonical(value: Any, *, indent: int | None = None) -> bytes:
    """JSON with sorted keys and a newline at the end; PermanentError on NaN, infinity or a foreign type."""
    try:
        text = _compact(value) if indent is None else _indented(value, " " * indent)
        return (text + "\n").encode()
    except (TypeError, ValueError) as error:
        raise PermanentError(f"these values cannot be recorded as JSON: {error}") from error


def sha256_bytes(data: bytes) -> str:
    """sha256 as hex digits."""
    return hashlib.sha256(data).hexdigest()


def with_sum(values: dict[str, Any]) -> dict[str, Any]:
    """The values and, as `sum`, the sha256 of their canonical JSON: a record that tells when it was changed."""
    return {**values, "sum": sha256_bytes(canonical(values))}


def without_sum(values: Any) -> tuple[dict[str, Any], bool]:
    """The values that `with_sum` was given, and whether there was a sum (older records have none).

    Raises ValueError if it is another, TypeError if it is no mapping.
    """
    if not isinstance(values, dict):
        raise TypeError("not a mapping")
    rest = {name: value for name, value in values.items() if name != "sum"}
    if "sum" in values and values["sum"] != sha256_bytes(canonical(rest)):
        raise ValueError("its sum is not that of its content: changed or damaged")
    return rest, "sum" in values


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A committed file: the name that it is asked for by, sum and size.

    stored: the name that it lies under, if that is another one: it carries the content's digest, so that no worker
    writes over what another one committed. Files of earlier versions lie under the name itself.
    """

    name: str
    sha256: str
    bytes: int
    stored: str = ""

    @property
    def place(self) -> str:
        """The name that it lies under."""
        return self.stored or self.name


@dataclass(frozen=True, kw_only=True)
class SampleNote:
    """A sample that is not ok. outcome: "skipped" (left out on purpose) or "failed"; reason: a short stable word."""

    key: str
    outcome: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A committed shard. samples: each one that is not ok, named; kept in its _done entry, not in the manifest."""

    index: int
    split: str
    name: str
    sha256: str
    bytes: int
    ok: int
    skipped: dict[str, int]
    failed: dict[str, int]
    samples: list[SampleNote] = field(default_factory=list)
    source: str | None
    files: list[FileEntry]
    metrics: dict[str, float]
    backend: str
    params_hash: str

    @property
    def place(self) -> str:
        """The name that it lies under."""
        return self.name


def stored_name(name: str, sha256: str) -> str:
    """What a file's name becomes in the store: model.safetensors -> model-<first 12 digits of its sum>.safetensors."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return name if sha256[:12] in last else f"{folder}{slash}{stem}-{sha256[:12]}{dot}{suffix}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a stage committed.

    path: "<stage>/<key>" under the store's root. counts: in = ok + skipped + failed, and reasons. summed: whether its
    JSON holds its own sum; that of earlier versions does not, and keeps its bytes.
    """

    format: int = FORMAT
    stage: str
    version: int
    key: str
    path: str
    params: dict[str, Any]
    params_hash: str
    inputs: dict[str, dict[str, str]]
    shards: list[ShardEntry]
    files: list[FileEntry]
    counts: dict[str, Any]
    metrics: dict[str, Any]
    summed: bool = True

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "summed"}
        values["shards"] = [_values(shard, samples=False) for shard in self.shards]
        values["files"] = [_values(entry) for entry in self.files]
        return canonical(with_sum(values) if self.summed else values, indent=1)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Read and check a manifest; PermanentError naming `where` if it is damaged or of another format."""
        remedy = "delete it and run the stage again"
        try:
            values = parse(data)
            if isinstance(values, dict) and values.get("format") != FORMAT:
                raise PermanentError(
                    f"{where}: manifest format {values.get('format')!r}; this version reads format {FORMAT}: {remedy}"
                )
            values, summed = without_sum(values)
            values["shards"] = [shard_entry(shard) for shard in values["shards"]]
            values["files"] = [_file(entry) for entry in values["files"]]
            shallow(*(value for name, value in values.items() if name not in {"shards", "files"}))
            manifest = _build(cls, {**values, "summed": summed})
            _check_counts(manifest)
            if not summed:  # whatever is read can be written: no NaN, no half of a surrogate pair
                manifest.to_bytes()
        except PermanentError as error:
            raise PermanentError(str(error) if where in str(error) else f"{where}: {error}; {remedy}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PermanentError(f"{where}: not a valid manifest ({error}); {remedy}") from error
        return manifest

    @cached_property
    def sha256(self) -> str:
        """Sum of its canonical bytes."""
        return sha256_bytes(self.to_bytes())

    def split(self, name: str) -> list[ShardEntry]:
        """The shards of one split, by index; PermanentError if there is no such split."""
        found = sorted((shard for shard in self.shards if shard.split == name), key=lambda shard: shard.index)
        if not found:
            raise PermanentError(f"{self.path} has no split {name!r}; it has: {', '.join(self.splits()) or 'none'}")
        return found

    def splits(self) -> list[str]:
        """Names of the splits that have shards."""
        return sorted({shard.split for shard in self.shards})


def _values(entry: Any, *, samples: bool = True) -> dict[str, Any]:
    """An entry's fields as JSON has them: as dataclasses.asdict, without its copies of all they hold.

    A file does not say where it lies if that is its name.
    """
    values = dict(vars(entry))
    if isinstance(entry, ShardEntry):
        values["files"] = [_values(file) for file in entry.files]
        values["samples"] = [vars(note) for note in entry.samples]
        if not samples:
            del values["samples"]
    elif isinstance(entry, FileEntry) and not entry.stored:
        del values["stored"]
    return values


@cache
def _kinds(cls: type) -> tuple[set[str], dict[str, type]]:
    """A dataclass's fields, and those that hold a simple type."""
    hints = get_type_hints(cls)
    simple = {name: dict if str(hint).startswith("dict") else hint for name, hint in hints.items()}
    return {one.name for one in fields(cls)}, {name: kind for name, kind in simple.items() if kind in {int, str, dict}}


def _build(cls: type[T], values: Any) -> T:
    """A dataclass from a mapping of exactly its fields, simple types checked; raises TypeError."""
    known, simple = _kinds(cls)  # type: ignore[arg-type]
    if not isinstance(values, dict) or set(values) != known:
        found = sorted(set(values) ^ known) if isinstance(values, dict) else type(values).__name__
        raise TypeError(f"{cls.__name__}: missing or unknown: {found}")
    for name, kind in simple.items():
        if type(values[name]) is not kind and not (kind is dict and isinstance(values[name], dict)):
            raise TypeError(f"{cls.__name__}.{name} is {values[name]!r}")
    try:
        if "name" in values:
            check_name(values["name"])
        if values.get("stored"):
            check_name(values["stored"])
    except UsageError as error:
        raise ValueError(str(error)) from None
    return cls(**values)


def _file(values: Any) -> FileEntry:
    """A file's entry from its JSON mapping; raises TypeError or ValueError."""
    if isinstance(values, dict):
        if values.get("stored") == "":
            raise ValueError("FileEntry.stored is empty")
        stored = values.get("stored", "")
        values = {**values, "stored": "" if stored == values.get("name") else stored}
    return _build(FileEntry, values)


def shard_entry(values: Any) -> ShardEntry:
    """A shard's entry from its JSON mapping; raises TypeError, ValueError or KeyError."""
    if not isinstance(values, dict):
        raise TypeError(f"a shard is {values!r}")
    notes = [_build(SampleNote, note) for note in values.get("samples", [])]
    files = [_file(entry) for entry in values["files"]]
    entry = _build(ShardEntry, {**values, "samples": notes, "files": files})
    shallow(entry.metrics, entry.source, entry.skipped, entry.failed)
    counted = {"index": entry.index, "bytes": entry.bytes, "ok": entry.ok, **entry.skipped, **entry.failed}
    for name, number in counted.items():
        if type(number) is not int or number < 0:
            raise ValueError(f"ShardEntry: {name} is {number!r}; expected a count")
    return entry


def read_done(data: bytes) -> ShardEntry:
    """The shard of a _done entry; raises TypeError, ValueError, KeyError or AttributeError where it is damaged."""
    return shard_entry(without_sum(parse(data))[0])


def _read(build: Callable[[bytes], T], data: bytes, where: str) -> T:
    """What `build` makes of a _done file; as with a manifest, whatever is read can be written."""
    try:
        entry = build(data)
        canonical(_values(entry))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, PermanentError) as error:
        raise PermanentError(f"{where}: not a valid entry ({error}); delete it and run the stage again") from error
    return entry


def read_entry(data: bytes, where: str) -> ShardEntry:
    """A shard's entry from its _done file; PermanentError naming `where` if it is damaged."""
    return _read(read_done, data, where)


def file_entry(data: bytes, where: str) -> FileEntry:
    """A file's entry from its _done file; PermanentError naming `where` if it is damaged."""
    return _read(read_file, data, where)


def read_file(data: bytes) -> FileEntry:
    """The file of a _done entry; raises TypeError or ValueError where it is damaged."""
    return _file(parse(data))


def file_bytes(entry: FileEntry) -> bytes:
    """A file's _done entry."""
    return canonical(_values(entry))


def done_bytes(entry: ShardEntry, *, summed: bool = True) -> bytes:
    """A shard's _done entry. summed: see Manifest."""
    values = _values(entry)
    return canonical(with_sum(values) if summed else values, indent=1)


def count(shards: Sequence[ShardEntry]) -> dict[str, Any]:
    """A manifest's counts."""
    reasons: Counter[str] = Counter()
    for shard in shards:
        reasons.update(shard.skipped)
        reasons.update(shard.failed)
    ok = sum(shard.ok for shard in shards)
    skipped, failed = (sum(sum(getattr(shard, outcome).values()) for shard in shards) for outcome in OUTCOMES)
    return {
        "in": ok + skipped + failed,
        "ok": ok,
        "skipped": skipped,
        "failed": failed,
        "reasons": dict(sorted(reasons.items())),
    }


def _check_counts(manifest: Manifest) -> None:
    if manifest.counts != count(manifest.shards):
        raise ValueError("its counts are not the sum of its shards'")
    if manifest.path != f"{manifest.stage}/{manifest.key}":
        raise ValueError("its path is not its stage and key")
    if len({shard.index for shard in manifest.shards}) != len(manifest.shards):
        raise ValueError("a shard is listed twice")
