"""Stage `download`: read a source, check and size its pictures, write image shards."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from components.config import DownloadParams, semantic
from components.download.outage import check_outage
from components.download.picture import sized
from components.download.sources import (
    CLASSNAMES,
    SPLITS,
    TEMPLATES,
    Raw,
    Ref,
    ShardPlan,
    Skip,
    Source,
    StreamingSource,
    deal,
    open_source,
)
from components.download.streaming import Made, ShardStream, refused
from components.download.table import SUCCESS, TABLE_SUFFIX, Row, row, side_files, sums_of
from components.errors import PermanentError
from components.images import ImageError
from components.manifest import Artifact, Commit, FileEntry, SampleNote, ShardEntry
from components.progress import progress
from components.prompts import DATASET_TYPE
from components.report import Report
from components.scratch import scratch_folder
from components.shards import Sample, write_shard
from components.signals import stop_on_sigterm
from components.store import open_store

VERSION = 2
MIN_SAMPLES = 3
KEPT = "hub"  # under the store: files of evaluation sets, by their sums
_WORKERS = min(os.cpu_count() or 1, 16)
_BLOCK = 64  # samples in the hands of the threads at a time, fewer where they have more bytes together than
_BLOCK_BYTES = 256 << 20


def _place(params: DownloadParams) -> str:
    return f"download.path {params.path!r}" if params.path else f"download.source {params.source!r}"


def _needed(params: DownloadParams) -> tuple[str, ...]:
    """Splits that may not be empty."""
    return ("train", "test") if params.trains else ("test",)


def plan(source: Source, params: DownloadParams) -> list[ShardPlan]:
    """All shards, in the order train, val, test; a shard takes `shard_size` samples, good or bad.

    Raises PermanentError if the source has too few samples, or leaves none to the test or to what is to be trained.
    """
    shards: list[ShardPlan] = []
    if params.trains and len(source.refs) < MIN_SAMPLES:
        raise PermanentError(
            f"{_place(params)}: number of pictures: {len(source.refs)}; at least {MIN_SAMPLES} are needed, as "
            "neither training nor the test may be left without; add pictures"
        )
    dealt = deal(source.refs, params)
    if empty := [split for split in _needed(params) if not dealt[split]]:
        there = ", ".join(sorted({ref.split or "no split" for ref in source.refs}))
        raise PermanentError(
            f"{_place(params)} leaves no picture to {empty[0]!r}: all {len(source.refs)} are of {there}; add pictures "
            f"to {empty[0]!r}, or give all without splits to have them dealt"
            + ("; a set that is only evaluated on needs num_train: -1" if empty[0] == "train" else "")
        )
    for split in SPLITS:
        refs = dealt[split]
        for start in range(0, len(refs), params.shard_size):
            shards.append(ShardPlan(len(shards), split, refs[start : start + params.shard_size]))
    return shards


def make_sample(ref: Ref, raw: Raw, source: Source, params: DownloadParams) -> Made:
    """A sample as image shards hold it, or why it cannot be used, and its row."""
    try:
        made = sized(raw.image, params)
    except ImageError as error:
        return refused(ref, raw, error, loaded=True)
    caption = raw.captions[0] if raw.captions else ""
    meta = {
        **raw.extra,
        "key": ref.key,
        "caption": caption,
        "captions": list(raw.captions),
        "class": raw.label,
        "class_name": source.class_names[raw.label] if raw.label >= 0 else "",
        **({"classes": list(raw.labels)} if raw.labels is not None else {}),
        **made.sizes,
        "source": raw.origin,
    }
    text = json.dumps(meta, ensure_ascii=False, sort_keys=True)
    fields = {made.ext: made.data, "txt": caption.encode(), "json": text.encode()}
    if raw.label >= 0:
        fields["cls"] = str(raw.label).encode()
    return Sample(ref.key, fields), row(ref.key, raw, SUCCESS, exif=made.exif, **made.sizes)


def _samples(shard: ShardPlan, source: Source, params: DownloadParams, pool: ThreadPoolExecutor) -> Iterator[Made]:
    """The shard's samples in order, good and bad."""
    for start in range(0, len(shard.refs), _BLOCK):
        jobs: list[tuple[Ref, Raw]] = []
        done: dict[str, Made] = {}
        block = shard.refs[start : start + _BLOCK]
        for ref in block:
            try:
                jobs.append((ref, source.load(ref)))
            except (Skip, ImageError) as error:
                done[ref.key] = refused(ref, source.about(ref), error, loaded=False)
            if ref is block[-1] or sum(len(raw.image) for _, raw in jobs) > _BLOCK_BYTES:
                made = pool.map(lambda job: make_sample(job[0], job[1], source, params), jobs)
                done |= {ref.key: one for (ref, _), one in zip(jobs, made, strict=True)}
                jobs.clear()
        for ref in block:
            yield done[ref.key]


Read = Callable[[ShardPlan], Iterator[Made]]


@contextmanager
def _reader(
    source: Source,
    params: DownloadParams,
    todo: list[ShardPlan],
    seen: Callable[[], set[str]],
    check: Callable[[], None],
) -> Iterator[Read]:
    """How the samples of a shard are read that is still to be written; `todo` are all of these.

    seen: the pictures of the others alone, or a shard that another worker commits meanwhile repeats itself.
    """
    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        if not isinstance(source, StreamingSource):
            yield lambda shard: _samples(shard, source, params, pool)
            return
        with ShardStream(
            source,
            todo,
            lambda ref, raw: make_sample(ref, raw, source, params),
            pool,
            seen=seen() if params.urls.dedup else None,
            check=check,
            workers=_WORKERS,
        ) as stream:
            yield stream.samples


def _pictures_of(commit: Commit, entries: Iterable[ShardEntry]) -> set[str]:
    """sha256 sums of the pictures, as they came, of committed shards."""
    found: set[str] = set()
    for entry in entries:
        table = next(file for file in entry.files if file.name.endswith(TABLE_SUFFIX))
        with commit.store.local(table.place, table.sha256) as path:
            found |= sums_of(path)
    return found


def _write(commit: Commit, shard: ShardPlan, source: Source, read: Read) -> ShardEntry:
    notes: list[SampleNote] = []
    rows: list[Row] = []

    def good() -> Iterator[Sample]:
        for result, line in read(shard):
            rows.append(line)
            if isinstance(result, SampleNote):
                notes.append(result)
            else:
                yield result

    with scratch_folder() as folder:
        path = folder / "shard.tar"
        layout = write_shard(path, good())
        check_outage(shard.index, rows, notes)
        groups = {source.group_name(ref.group) for ref in shard.refs}
        origin = groups.pop() if len(groups) == 1 else None
        return commit.put_shard(
            path,
            index=shard.index,
            split=shard.split,
            ok=len(layout),
            notes=notes,
            source=origin,
            side_files=side_files(rows),
        )


def _class_files(commit: Commit, source: Source) -> list[FileEntry]:
    texts = {CLASSNAMES: source.class_names, TEMPLATES: source.templates} if source.class_names else {}
    texts |= {DATASET_TYPE: [source.kind]} if source.kind else {}
    return [commit.put_file(name, "".join(f"{line}\n" for line in lines).encode()) for name, lines in texts.items()]


def _report(artifact: Artifact, *, cached: bool, started: float, made: int) -> Report:
    seconds = time.monotonic() - started
    return Report(
        stage="download",
        url=artifact.url,
        manifest_sha256=artifact.manifest.sha256,
        cached=cached,
        metrics=artifact.manifest.metrics,
        seconds=seconds,
        speeds={} if cached else {"images_per_s": made / max(seconds, 1e-9)},
        manifest=artifact.manifest,
    )


def run(params: DownloadParams, *, store: str) -> Report:
    """Read the source and commit image shards of it to `store`/download/<key>.

    Shards that an earlier, interrupted call committed are kept. Every sample that is not ok is counted by reason in the
    manifest and named in its shard's _done entry. Raises UsageError, PermanentError (nothing usable in the source),
    TransientError (network, store), or
    Interrupted after SIGTERM or Ctrl-C: when the shard in hand is committed, of a source that streams at once.
    """
    started = time.monotonic()
    place = open_store(store)
    with open_source(params, place.sub(KEPT)) as source:
        commit = Commit(
            place, stage="download", version=VERSION, params=semantic(params), inputs={}, source=source.fingerprint
        )
        if (finished := commit.finished()) is not None:
            return _report(finished, cached=True, started=started, made=0)
        shards = plan(source, params)
        done = commit.done()
        kept = sum(len(shard.refs) for shard in shards if shard.index in done)
        total = sum(len(shard.refs) for shard in shards)
        entries: list[ShardEntry] = []
        with progress("download", total=total, unit="images", start=kept) as bar, stop_on_sigterm() as stop:

            def check() -> None:
                stop.check(f"{len(entries)} of {len(shards)} shards are kept; run the same command again to go on")

            todo = [shard for shard in shards if shard.index not in done]
            with _reader(source, params, todo, lambda: _pictures_of(commit, done.values()), check) as read:
                for shard in shards:
                    check()
                    if (entry := done.get(shard.index)) is None:
                        entry = _write(commit, shard, source, read)
                        bar.advance(len(shard.refs))
                    entries.append(entry)
        _check_usable(entries, params, commit.url)
        metrics: dict[str, Any] = {
            "num_classes": len(source.class_names),
            "image_size": params.image_size,
            "dataset": params.dataset,
        }
        metrics |= source.left_out
        metrics |= {"origin": source.origin} if source.origin else {}
        artifact = commit.finalise(shards=entries, files=_class_files(commit, source), metrics=metrics)
    return _report(artifact, cached=False, started=started, made=total - kept)


def _check_usable(entries: list[ShardEntry], params: DownloadParams, where: str) -> None:
    """What is needed has a good sample each; PermanentError that says which split has none, and the first reason."""
    for split in _needed(params):
        mine = [entry for entry in entries if entry.split == split]
        if any(entry.ok for entry in mine):
            continue
        notes = [note for entry in mine for note in entry.samples]
        first = f"; the first: {notes[0].key} ({notes[0].reason}: {notes[0].detail})" if notes else ""
        raise PermanentError(
            f"{_place(params)}: none of the {len(notes)} samples of {split!r} can be used{first}; mend or replace them"
            + (f", or delete {where} to fetch them once more" if params.source in {"urls", "datacomp"} else "")
        )
