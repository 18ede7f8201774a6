"""The outputs that lie below a prefix, finished or not, and which files their manifests name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from components import STAGES
from components.entries import FileEntry, Manifest
from components.errors import PermanentError, UsageError
from components.manifest import DONE, MANIFEST
from components.store import Store, StoreNotFound, open_store

KEPT_BY_STAGES = "teacher_embeddings"  # what train_adapter keeps for the next student
_PLACE = re.compile(rf"(?:^|.*?/)(?:{'|'.join((*STAGES, KEPT_BY_STAGES))})/[0-9a-f]{{16}}(?=/|$)")
_NUMBERED = re.compile(r"^(\d{5,})-")


@dataclass(frozen=True)
class Output:
    """A place below `top`: path from there ("": itself), its files at the time, whether a manifest was among them."""

    top: Store
    path: str
    num_files: int
    finished: bool

    @property
    def store(self) -> Store:
        """What it holds."""
        return self.top.sub(self.path) if self.path else self.top

    @property
    def placed(self) -> bool:
        """Whether it lies as stages put their outputs: <stage>/<key>."""
        return bool(_PLACE.fullmatch(self.store.url))


def open_place(prefix: str) -> Store:
    """The store at what was given: an output, its manifest.json, a stage's folder or a whole store.

    Raises UsageError for an address that is none, or another file than a manifest.
    """
    place = prefix.rstrip("/").removesuffix(f"/{MANIFEST}") or prefix
    if "://" in place:
        return open_store(place)
    if not place:
        raise UsageError("the prefix is empty; give an output, or a store with outputs in it: a folder or s3://...")
    path = os.path.abspath(os.path.expanduser(place if place != MANIFEST else "."))  # "." may be an output as well
    if os.path.isfile(path):
        raise UsageError(f"{prefix} is a file; give the prefix that it belongs to: a folder or s3://...")
    return open_store(path)


def find_outputs(top: Store) -> tuple[list[Output], int]:
    """All outputs at or below a place, by path, and how many files belong to none of them.

    Memory for a listing's folders, not for its files.
    """
    files: Counter[str] = Counter()
    finished = set()
    for file in top.entries():
        folder, _, last = file.name.rpartition("/")
        files[folder] += 1
        if last == MANIFEST:
            finished.add(folder)
    counts: Counter[str] = Counter()
    outside = 0
    for folder, number in files.items():
        place = output_of(top, folder, finished)
        if place is None:
            outside += number
        else:
            counts[place] += number
    return [Output(top, path, counts[path], path in finished) for path in sorted(counts)], outside


def output_of(top: Store, folder: str, finished: Collection[str] = ()) -> str | None:
    """The outermost output that a folder below `top` is, or lies in: <stage>/<key>, or one of `finished`; or None."""
    url = top.url.rstrip("/")
    for above in _above(folder):
        if above in finished or _PLACE.fullmatch(f"{url}/{above}".rstrip("/")):
            return above
    return None


def _above(folder: str) -> Iterator[str]:
    """The place itself, the folder's parents, the outermost first, and the folder."""
    yield ""
    for end, char in enumerate(folder):
        if char == "/":
            yield folder[:end]
    if folder:
        yield folder


def read_strictly(store: Store) -> tuple[Manifest, bytes] | None:
    """The manifest at a prefix, and its bytes; None if there is none.

    PermanentError if it is damaged, not as a stage writes it, or not the one of this place.
    """
    where = f"{store.url}/{MANIFEST}"
    try:
        data = store.get_bytes(MANIFEST)
    except StoreNotFound:
        return None
    manifest = Manifest.from_bytes(data, where)
    if manifest.to_bytes() != data:
        raise PermanentError(f"{where}: not as a stage wrote it: changed or damaged; delete it and run the stage again")
    return manifest, data


def lies_in_place(manifest: Manifest, url: str) -> bool:
    """Whether an output's address ends as its manifest says."""
    return url.rstrip("/").endswith(f"/{manifest.path}")


def root_of(manifest: Manifest, url: str) -> str:
    """The address of the store that an output in its place lies in."""
    return url.rstrip("/").removesuffix(manifest.path).rstrip("/") or "/"


def listed(manifest: Manifest) -> Iterator[FileEntry]:
    """Every file that a manifest lists: each shard followed by its side files, then the other files."""
    for shard in manifest.shards:
        yield FileEntry(name=shard.name, sha256=shard.sha256, bytes=shard.bytes)
        yield from shard.files
    yield from manifest.files


def done_name(name: str) -> str:
    """The _done entry of a numbered file (00012-<hash>.tar), or "" for others."""
    number = _NUMBERED.match(name.rpartition("/")[2])
    return f"{DONE}/{number[1]}.json" if number else ""


def named(manifest: Manifest) -> set[str]:
    """Names that all of a finished output lies under: itself, what it lists, and the _done entries of that."""
    names = {MANIFEST} | {entry.place for entry in listed(manifest)}
    return names | {done for name in names if (done := done_name(name))}
