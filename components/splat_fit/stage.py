"""Fit 2D Gaussians to every picture of a set of image shards: one splat shard an image shard, resumable.

PSNR, everywhere: float render of the splats as the file gives them back, unclamped, pictures in [0, 1], mean over
pictures of per-picture dB.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import splat2d

from components.config import SplatFitParams, semantic
from components.errors import PermanentError, UsageError
from components.manifest import Artifact, Commit, ShardEntry, open_artifact
from components.progress import Bar, progress
from components.report import Report
from components.scratch import scratch_folder
from components.series import emit
from components.shards import read_shard
from components.signals import Stop, stop_on_sigterm
from components.splat_fit.reader import open_reader, reader_metric
from components.splat_fit.shard import ShardFitter, Tick
from components.splats import BYTES_PER_PARAMETER, PARAMETERS_PER_GAUSSIAN
from components.store import open_store

STAGE = "splat_fit"
VERSION = 2  # goes up when the same parameters give other bytes, be it by a change of this stage or of splat2d


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
    root = open_store(store)
    source = open_artifact(images, root)
    if source.manifest.stage != "download":
        raise UsageError(f"images is {images}, the output of {source.manifest.stage}; give the output of download")
    device = _device(params)
    inputs = {"images": source} | ({"teacher": open_reader(params.reader, root)} if params.reader else {})
    commit = Commit(root, stage=STAGE, version=VERSION, params=semantic(params), inputs=inputs)
    finished = commit.finished()
    if finished is not None:
        return _report(finished, started, cached=True, speeds={})
    metric, files = None, []
    if params.reader:
        metric, file = reader_metric(inputs["teacher"], commit, int(source.manifest.params.get("image_size", 0)))
        files = [file]
    done = commit.done()
    todo = [entry for entry in source.manifest.shards if entry.index not in done]
    total = sum(entry.ok for entry in source.manifest.shards)
    start = total - sum(entry.ok for entry in todo)
    with stop_on_sigterm() as stop, progress("splat-fit", total=total, unit="pictures", start=start) as bar:
        for entry in todo:
            fitter = ShardFitter(params, device, _ticker(stop, bar), metric)
            done[entry.index] = _fit_shard(entry, fitter, source=source, commit=commit)
            _emit(done[entry.index], bar)
            stop.check(_kept(done, source))
        rate = bar.rate()
    shards = [done[entry.index] for entry in source.manifest.shards]
    artifact = commit.finalise(shards=shards, files=files, metrics=_summary(params, shards, commit, source))
    return _report(artifact, started, cached=False, speeds={"images_per_s": rate} if todo else {})


def _emit(entry: ShardEntry, bar: Bar) -> None:
    if entry.ok:
        emit(STAGE, bar.done, {"psnr_db": entry.metrics["psnr_db_sum"] / entry.ok, "images_per_s": bar.rate()})


def _device(params: SplatFitParams) -> str:
    if params.device == "auto":
        return "cuda" if splat2d.has_cuda() and not params.target_psnr and not params.reader else "cpu"
    if params.device == "cuda" and not splat2d.has_cuda():
        raise UsageError(
            "splat_fit.device is 'cuda', but splat2d sees no CUDA device or was built without CUDA; "
            "set splat_fit.device to cpu, or install it where nvcc and a GPU are"
        )
    return params.device


def _kept(done: dict[int, ShardEntry], source: Artifact) -> str:
    return f"{len(done)} of {len(source.manifest.shards)} shards are kept; run the same command again to go on"


def _ticker(stop: Stop, bar: Bar) -> Tick:
    def tick(count: int, psnr_db: float) -> None:
        stop.check("the shard in hand was dropped, finished ones are kept; run the same command again to go on")
        if count:
            bar.advance(count, **({} if math.isnan(psnr_db) else {"psnr_db": psnr_db}))

    return tick


def _fit_shard(entry: ShardEntry, fitter: ShardFitter, *, source: Artifact, commit: Commit) -> ShardEntry:
    """Fit one shard and commit it whole; a stop drops it, so that nothing partial is ever visible."""
    with source.local(entry) as path:
        for sample in read_shard(path):
            fitter.add(sample)
        fitter.flush()
    with scratch_folder() as folder:
        tar = folder / "shard.tar"
        ok, index, sums = fitter.write(tar, f"{source.url}/{entry.name}")
        return commit.put_shard(
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


def _summary(params: SplatFitParams, shards: Sequence[ShardEntry], commit: Commit, source: Artifact) -> dict[str, Any]:
    """The manifest's metrics; PermanentError, saying why and what to do, if no picture at all could be fitted."""
    if sum(entry.ok for entry in shards):
        return summarise(shards)
    note = next((note for entry in shards for note in entry.samples), None)
    if note is None:
        raise PermanentError(f"{source.url} holds no pictures; run download on a source that has some")
    reasons = Counter(note.reason for entry in shards for note in entry.samples)
    if set(reasons) == {"too_few_pixels"}:
        name = "min_gaussians" if params.min_gaussians else "num_gaussians"
        remedy = f"lower splat_fit.{name} ({getattr(params, name)}) or raise download.image_size"
    else:
        remedy = "look at the pictures of download's source"
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    raise PermanentError(
        f"{source.url}: no picture could be fitted: {counts}; the first is {note.key!r}: {note.detail}; {remedy} "
        f"(all are named in {commit.url}/_done)"
    )


def summarise(shards: Sequence[ShardEntry]) -> dict[str, Any]:
    """Metrics of the whole from the sums of its shards: the same in whatever order and calls they were made.

    psnr_db_mean [dB] (an exact picture counts 100) and psnr_db_mean_by_split; num_gaussians_mean and num_iters_mean: a
    picture, kept and steps done; target_reached: share of the pictures whose file gives back target_psnr, where there
    is one; num_clamped: values that .gs2d holds clamped; bytes_per_image of the .gs2d, of the source picture's file and
    of raw RGB; compression_ratio: raw RGB over 16 bytes a Gaussian (the paper's definition, arXiv 2509.22615).
    """

    def total(name: str, part: Sequence[ShardEntry]) -> float:
        return math.fsum(entry.metrics[name] for entry in part)

    def mean(name: str, part: Sequence[ShardEntry]) -> float:
        return total(name, part) / sum(entry.ok for entry in part)

    shards = [entry for entry in shards if entry.ok]
    splits = {split: [entry for entry in shards if entry.split == split] for split in {e.split for e in shards}}
    gaussian_bytes = PARAMETERS_PER_GAUSSIAN * BYTES_PER_PARAMETER * total("num_gaussians", shards)
    metrics: dict[str, Any] = {
        "psnr_db_mean": mean("psnr_db_sum", shards),
        "psnr_db_mean_by_split": {split: mean("psnr_db_sum", part) for split, part in sorted(splits.items())},
        "num_gaussians_mean": mean("num_gaussians", shards),
        "num_iters_mean": mean("num_iters", shards),
        "num_clamped": int(total("num_clamped", shards)),
        "bytes_per_image": {name: mean(f"{name}_bytes", shards) for name in ("gs2d", "image", "raw")},
        "backend": ", ".join(sorted({entry.backend for entry in shards})),
    }
    if all("target_reached" in entry.metrics for entry in shards):
        metrics["target_reached"] = mean("target_reached", shards)
    if gaussian_bytes:
        metrics["compression_ratio"] = total("raw_bytes", shards) / gaussian_bytes
    return metrics


def _report(artifact: Artifact, started: float, *, cached: bool, speeds: dict[str, float]) -> Report:
    return Report(
        stage=STAGE,
        url=artifact.url,
        manifest_sha256=artifact.manifest.sha256,
        cached=cached,
        metrics=artifact.manifest.metrics,
        seconds=time.monotonic() - started,
        speeds=speeds,
        manifest=artifact.manifest,
    )
