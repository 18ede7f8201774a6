"""What a set's fits come to: the manifest's figures, from the sums that each shard's entry holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from components.config import SplatFitParams
from components.errors import PermanentError
from components.manifest import ShardEntry
from components.splats import BYTES_PER_PARAMETER, PARAMETERS_PER_GAUSSIAN


def summary(params: SplatFitParams, shards: Sequence[ShardEntry], *, source: str, output: str) -> dict[str, Any]:
    """The manifest's metrics; PermanentError, saying why and what to do, if no picture at all could be fitted.

    source, output: the addresses of the pictures and of what is made of them.
    """
    if sum(entry.ok for entry in shards):
        return summarise(shards)
    note = next((note for entry in shards for note in entry.samples), None)
    if note is None:
        raise PermanentError(f"{source} holds no pictures; run download on a source that has some")
    reasons = Counter(note.reason for entry in shards for note in entry.samples)
    if set(reasons) == {"too_few_pixels"}:
        name = "min_gaussians" if params.min_gaussians else "num_gaussians"
        remedy = f"lower splat_fit.{name} ({getattr(params, name)}) or raise download.image_size"
    else:
        remedy = "look at the pictures of download's source"
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    raise PermanentError(
        f"{source}: no picture could be fitted: {counts}; the first is {note.key!r}: {note.detail}; {remedy} "
        f"(all are named in {output}/_done)"
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
