"""Fit 2D Gaussians to every picture of a set of image shards: one splat shard an image shard, resumable.

`run` does all of it in this process. Where many share it, each takes a group of shards (`fit_group`), and one call
writes the manifest in the end (`finalise`): whoever fitted what, the same bytes lie in the store.

PSNR, everywhere: float render of the splats as the file gives them back, unclamped, pictures in [0, 1], mean over
pictures of per-picture dB.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import splat2d

from components.config import SplatFitParams, semantic
from components.errors import AccessError, MachineError, PermanentError, SplatClipError, TransientError, UsageError
from components.manifest import Artifact, Commit, FileEntry, ShardEntry, open_artifact
from components.progress import Bar, progress
from components.report import Report
from components.scratch import scratch_folder
from components.series import emit
from components.shards import read_shard
from components.signals import Stop, stop_on_sigterm
from components.splat_fit.reader import Rows, open_reader, reader_metric
from components.splat_fit.shard import ShardFitter, Tick
from components.splat_fit.summary import summary
from components.splat_fit.work import Share, write_numbers
from components.store import open_store

STAGE = "splat_fit"
VERSION = 2  # goes up when the same parameters give other bytes, be it by a change of this stage or of splat2d
MOST_NAMED = 5  # failures that an error spells out


def run(params: SplatFitParams, *, images: str, store: str) -> Report:
    """Fit the pictures of `images` (download's output) and commit splat shards under `store`.

    Each image shard of each split gives one splat shard of the same index and order: key.gs2d, key.txt, key.json
    (with psnr_db, num_gaussians, num_bytes) and key.cls where there is one, with an index beside the tar. Shards that
    an earlier call finished are kept, so a stopped run goes on where it was; the result is the same in any number of
    calls and threads. A picture that cannot be fitted is counted and named as failed. With `reader` the teacher is one
    of the output's inputs, and its metric lies beside the shards.
    Raises UsageError on a wrong input, PermanentError where not one picture can be fitted or an input is damaged,
    Interrupted on SIGTERM or Ctrl-C.
    """
    started = time.monotonic()
    work = open_work(params, images, store)
    device = device_of(params)
    finished = work.commit.finished()
    if finished is not None:
        return work.report(finished, started, cached=True)
    metric, files = work.metric()
    done = work.commit.done()
    todo = [entry for entry in work.shards if entry.index not in done]
    total = sum(entry.ok for entry in work.shards)
    start = total - sum(entry.ok for entry in todo)
    with stop_on_sigterm() as stop, progress("splat-fit", total=total, unit="pictures", start=start) as bar:
        for entry in todo:
            fitter = ShardFitter(params, device, _ticker(stop, bar), metric)
            done[entry.index] = _fit_shard(entry, fitter, work)
            _emit(done[entry.index], bar)
            stop.check(work.kept(len(done)))
        rate = bar.rate()
    artifact = work.finalise(done, files)
    return work.report(artifact, started, speeds={"images_per_s": rate} if todo else {})


@dataclass(frozen=True)
class Work:
    """The stage's work on one set: where the pictures come from, and where their splats go."""

    params: SplatFitParams
    source: Artifact
    reader: Artifact | None
    commit: Commit

    @property
    def shards(self) -> list[ShardEntry]:
        """The image shards, of which each becomes a splat shard of the same index."""
        return self.source.manifest.shards

    def metric(self) -> tuple[Rows | None, list[FileEntry]]:
        """What the reader sees of a patch, and the file that holds it; worked out where that was not yet done."""
        if self.reader is None:
            return None, []
        side = int(self.source.manifest.params.get("image_size", 0))
        rows, file = reader_metric(self.reader, self.commit, side)
        return rows, [file]

    def kept(self, done: int) -> str:
        """What a stop at this moment leaves."""
        return f"{done} of {len(self.shards)} shards are kept; run the same command again to go on"

    def finalise(self, done: Mapping[int, ShardEntry], files: Sequence[FileEntry]) -> Artifact:
        """Write the manifest of shards that are all done."""
        shards = [done[entry.index] for entry in self.shards]
        metrics = summary(self.params, shards, source=self.source.url, output=self.commit.url)
        return self.commit.finalise(shards=shards, files=files, metrics=metrics)

    def report(
        self, artifact: Artifact, started: float, *, cached: bool = False, speeds: Mapping[str, float] | None = None
    ) -> Report:
        """What a finished output comes to. started: time.monotonic() at the beginning of the call."""
        return Report(
            stage=STAGE,
            url=artifact.url,
            manifest_sha256=artifact.manifest.sha256,
            cached=cached,
            metrics=artifact.manifest.metrics,
            seconds=time.monotonic() - started,
            speeds=dict(speeds or {}),
            manifest=artifact.manifest,
        )


def open_work(params: SplatFitParams, images: str, store: str) -> Work:
    """The work on `images`, download's output; UsageError for another stage's. Nothing is fitted or written yet."""
    root = open_store(store)
    source = open_artifact(images, root)
    if source.manifest.stage != "download":
        raise UsageError(f"images is {images}, the output of {source.manifest.stage}; give the output of download")
    reader = open_reader(params.reader, root) if params.reader else None
    inputs = {"images": source} | ({"teacher": reader} if reader else {})
    commit = Commit(root, stage=STAGE, version=VERSION, params=semantic(params), inputs=inputs)
    return Work(params, source, reader, commit)


@dataclass(frozen=True)
class GroupReport:
    """What one call did of a share. fitted: shards by this call; found: shards that were committed before."""

    url: str
    share: Share
    fitted: int
    found: int

    def __str__(self) -> str:
        return f"groups {self.share}: {self.fitted} shards fitted, {self.found} found  {self.url}"


def fit_group(params: SplatFitParams, *, images: str, store: str, share: Share, output: str = "") -> GroupReport:
    """Fit the shards of some groups and commit each, but write no manifest; those committed before are kept.

    A shard that cannot be fitted is noted beside the entries, and the others of the share are fitted nevertheless;
    PermanentError names these in the end. Other errors, of `run`, and AccessError end the call at once. Any number of
    calls may have the same share at the same time. output: the <stage>/<key> that the caller waits for; UsageError if
    this one's is another, as another version's may be.
    """
    work = open_work(params, images, store)
    if output not in {"", work.commit.path}:
        raise UsageError(
            f"this is splat_fit version {VERSION}, whose output is {work.commit.path}, but {output} was asked for: the "
            "one that asks runs another version; use the same image for both"
        )
    todo = share.of(work.shards)
    number = len(todo)
    if number == 0 or work.commit.finished() is not None:
        return GroupReport(work.commit.url, share, 0, number)
    done = work.commit.done([entry.index for entry in todo])
    todo = [entry for entry in todo if entry.index not in done]
    if not todo:
        return GroupReport(work.commit.url, share, 0, number)
    device, (metric, _) = device_of(params), work.metric()
    failed: dict[str, str] = {}
    label = f"splat-fit {share}"
    with (
        stop_on_sigterm() as stop,
        progress(label, total=sum(entry.ok for entry in todo), unit="pictures") as bar,
    ):
        for entry in todo:
            stop.check(f"{len(done)} of {number} shards of groups {share} are kept; the same command goes on")
            fitter = ShardFitter(params, device, _ticker(stop, bar), metric)
            try:
                done[entry.index] = _fit_shard(entry, fitter, work)
            except AccessError:  # the store's, not the shard's: the next one would meet it too
                raise
            except PermanentError as error:
                failed[entry.name] = str(error)
                print(f"{label}: {entry.name}: {error}", file=sys.stderr, flush=True)
                with suppress(SplatClipError):  # the error itself says more
                    work.commit.put_failure(entry.index, str(error))
    if failed:
        raise cannot_be_fitted(failed, work, f"the other {len(done)} of groups {share} are kept")
    return GroupReport(work.commit.url, share, len(todo), number - len(todo))


def cannot_be_fitted(failed: Mapping[str, str], work: Work, kept: str) -> PermanentError:
    """The error of shards that cannot be made, by name with the reason."""
    named = "; ".join(f"{name}: {reason}" for name, reason in [*failed.items()][:MOST_NAMED])
    more = f"; and {len(failed) - MOST_NAMED} more" if len(failed) > MOST_NAMED else ""
    return PermanentError(
        f"{len(failed)} shard{'s' * (len(failed) > 1)} of {work.source.url} cannot be fitted: {named}{more}; {kept}"
    )


def finalise(
    params: SplatFitParams,
    *,
    images: str,
    store: str,
    work: Work | None = None,
    speeds: Mapping[str, float] | None = None,
) -> Report:
    """Write the manifest of a set whose shards are all committed; fit nothing.

    work: where the caller has opened it already.
    Raises PermanentError where shards failed for good, TransientError where some are missing that may still come.
    """
    started = time.monotonic()
    work = work or open_work(params, images, store)
    finished = work.commit.finished()
    if finished is not None:
        return work.report(finished, started, cached=True)
    done = work.commit.done()
    missing = {entry.index: entry.name for entry in work.shards if entry.index not in done}
    if missing:
        reasons = work.commit.failures()
        failed = {name: reasons[index] for index, name in missing.items() if index in reasons}
        if failed:
            raise cannot_be_fitted(failed, work, f"the {len(done)} fitted ones are kept")
        raise TransientError(
            f"{work.commit.url}: {len(missing)} of {len(work.shards)} shards are not fitted yet "
            f"({write_numbers(missing)[:200]}); fit them first: the same command without --finalise does"
        )
    _, files = work.metric()
    return work.report(work.finalise(done, files), started, speeds=speeds)


def _emit(entry: ShardEntry, bar: Bar) -> None:
    if entry.ok:
        emit(STAGE, bar.done, {"psnr_db": entry.metrics["psnr_db_sum"] / entry.ok, "images_per_s": bar.rate()})


def cuda_takes(params: SplatFitParams) -> bool:
    """Whether a GPU can fit by these parameters."""
    return not params.target_psnr and not params.reader


def device_of(params: SplatFitParams) -> str:
    """Where this process fits: "cpu" or "cuda"; MachineError for a device that is not there."""
    if params.device == "auto":
        return "cuda" if splat2d.has_cuda() and cuda_takes(params) else "cpu"
    if params.device == "cuda" and not splat2d.has_cuda():
        raise MachineError(
            "splat_fit.device is 'cuda', but splat2d sees no CUDA device or was built without CUDA; "
            "set splat_fit.device to cpu, or install it where nvcc and a GPU are"
        )
    return params.device


def _ticker(stop: Stop, bar: Bar) -> Tick:
    def tick(count: int, psnr_db: float) -> None:
        stop.check("the shard in hand was dropped, finished ones are kept; run the same command again to go on")
        if count:
            bar.advance(count, **({} if math.isnan(psnr_db) else {"psnr_db": psnr_db}))

    return tick


def _fit_shard(entry: ShardEntry, fitter: ShardFitter, work: Work) -> ShardEntry:
    """Fit one shard and commit it whole; a stop drops it, so that nothing partial is ever visible."""
    with work.source.local(entry) as path:
        for sample in read_shard(path):
            fitter.add(sample)
        fitter.flush()
    with scratch_folder() as folder:
        tar = folder / "shard.tar"
        ok, index, sums = fitter.write(tar, f"{work.source.url}/{entry.name}")
        return work.commit.put_shard(
            tar,
            index=entry.index,
            split=entry.split,
            ok=ok,
            notes=fitter.notes,
            source=entry.name,
            side_files={".idx": index},
            metrics=sums,
            backend=splat2d.backend() if fitter.device == "cpu" else fitter.device,
        )
