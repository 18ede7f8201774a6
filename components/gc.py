"""Removing what no manifest names: orphans, what killed writers left, uploads in parts, and unfinished outputs.

Nothing that a finished output names is ever deleted: before each file its manifest is read once more, and as soon as it
is another one than when the output was looked through, the rest of the output is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from components.errors import PermanentError, TransientError, UsageError
from components.manifest import AT_WORK, DONE, MANIFEST
from components.outputs import Output, find_outputs, lies_in_place, named, open_place, output_of, read_strictly
from components.store import Store, StoredFile, StoreNotFound, Upload, check_name

TEMPORARY_S = 3600.0  # a temporary file younger than this may be being written, whatever age is asked for
DAY_S = 86400.0


@dataclass
class Collected:
    """What went, or would go, and which outputs were left alone as their manifests are damaged."""

    files: int = 0
    bytes: int = 0
    uploads: int = 0
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What of an output may go; manifest: its bytes at the time, None: unfinished; quiet: whether nobody wrote to the
    output lately; held: what may not go yet, as somebody did.

    The mark of a stage at work comes first: one that begins meanwhile has made it anew. Then the _done entries: such a
    stage does not count on a shard that is about to go.
    """

    store: Store
    manifest: bytes | None
    files: list[StoredFile]
    held: int
    quiet: bool

    def unchanged(self) -> bool:
        """Whether the manifest still is the one that the plan was made with; or still none, and nobody has begun."""
        try:
            return self.store.get_bytes(MANIFEST) == self.manifest
        except StoreNotFound:
            return self.manifest is None and not self.store.exists(AT_WORK)


def plan(output: Output, *, unfinished: bool, older_than_s: float, now: float) -> Plan:
    """What of an output no manifest names, or all of an unfinished one if `unfinished`; now: seconds since 1970.

    Only where no file at all is younger than older_than_s: else a worker may be at it, one that began before the
    manifest was written, too, and will name in another one what this one does not.
    Raises PermanentError if the manifest is damaged or another output's.
    """
    store = output.store
    read = read_strictly(store)
    if read is not None and not lies_in_place(read[0], store.url):
        raise PermanentError(f"{store.url}/{MANIFEST}: says that it lies at {read[0].path}; put it there or delete it")
    files = [file for file in store.entries() if _ours(file)]
    live = named(read[0]) if read is not None else set()
    found = [file for file in files if file.name not in live and (file.temporary or read is not None or unfinished)]
    found.sort(key=lambda file: (file.name != AT_WORK, not file.name.startswith(f"{DONE}/"), file.name))
    quiet = all(now - file.modified >= _least_age(file, older_than_s) for file in files)
    data = read[1] if read is not None else None
    return Plan(store, data, found, 0, True) if quiet else Plan(store, data, [], len(found), False)


def _least_age(file: StoredFile, older_than_s: float) -> float:
    return max(older_than_s, TEMPORARY_S) if file.temporary else older_than_s


def carry_out(chosen: Plan) -> Iterator[StoredFile]:
    """Delete the plan's files one by one; each that went. Ends early where the output is not as it was."""
    for file in chosen.files:
        mark = file.name == AT_WORK and chosen.manifest is None  # stays where it was made anew, which `unchanged` sees
        if not mark and not chosen.unchanged():
            return
        if chosen.store.remove(file):
            yield file


def collect(
    prefix: str,
    *,
    dry_run: bool,
    unfinished: bool = False,
    older_than_s: float = DAY_S,
    tell: Callable[[str], None] = lambda line: None,
    now: float | None = None,
) -> Collected:
    """Look through all outputs at or below a prefix and delete what no manifest names; `tell` is given a line for each.

    Raises UsageError for an address that is none, PermanentError where the store refuses, TransientError where it is
    away. An output whose manifest is damaged is left alone and listed in `refused`.
    """
    top, total = open_place(prefix), Collected()
    at = time.time() if now is None else now
    done = "would delete" if dry_run else "deleted"
    outputs, outside = find_outputs(top)
    active = set()
    for output in outputs:
        if not output.placed:
            continue  # a copy of a manifest, with what else lies beside it
        try:
            chosen = plan(output, unfinished=unfinished, older_than_s=older_than_s, now=at)
        except PermanentError as error:
            total.refused.append(output.path)
            tell(f"left alone: {error}")
            continue
        count = 0
        for file in chosen.files if dry_run else carry_out(chosen):
            tell(f"{done} {chosen.store.url}/{file.name} ({file.bytes:,} bytes)")
            count, total.files, total.bytes = count + 1, total.files + 1, total.bytes + file.bytes
        kept = chosen.held + len(chosen.files) - count
        if kept or not chosen.quiet:
            active.add(output.path)
        if kept:
            tell(f"left alone: {chosen.store.url}: {kept:,} files, as somebody wrote there lately")
        if chosen.manifest is None and not unfinished:
            tell(f"not finished: {chosen.store.url} ({output.num_files:,} files); --unfinished drops it once it is old")
    alone = {*total.refused, *active}
    total.uploads = _abort_uploads(top, alone, at - max(older_than_s, TEMPORARY_S), dry_run, tell)
    if outside:
        tell(f"not looked at: {outside:,} files that belong to no output")
    uploads = f" and {total.uploads:,} uploads in parts" if total.uploads else ""
    refused = f"; {len(total.refused):,} outputs with damaged manifests left alone" if total.refused else ""
    tell(f"{top.url}: {done} {total.files:,} files with {total.bytes:,} bytes{uploads}{refused}")
    return total


def _ours(file: StoredFile) -> bool:
    """Whether its name is one that stages give; others are not ours to delete."""
    try:
        check_name(file.name if not file.temporary else f"{file.name.rpartition('/')[0]}/x".lstrip("/"))
    except UsageError:
        return False
    return True


def _abort_uploads(top: Store, alone: set[str], begun_before: float, dry_run: bool, tell: Callable[[str], None]) -> int:
    """Give up uploads that were begun before then, but of outputs that are left alone; how many.

    Where they cannot be listed, that is told.
    """
    try:
        found = top.uploads()
    except (PermanentError, TransientError) as error:
        tell(f"uploads in parts were not looked at: {error}")
        return 0
    old = [one for one in found if one.begun <= begun_before and _of_output(top, one, alone)]
    for upload in old:
        if not dry_run:
            top.abort(upload)
        tell(f"{'would give up' if dry_run else 'gave up'} an upload in parts to {top.url}/{upload.name}")
    return len(old)


def _of_output(top: Store, upload: Upload, alone: set[str]) -> bool:
    place = output_of(top, upload.name.rpartition("/")[0])
    return place is not None and place not in alone
