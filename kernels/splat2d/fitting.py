"""Pictures to splats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy.typing as npt

from splat2d._checks import (
    above_zero,
    device_of,
    gaussians_of,
    images_of,
    metric_of,
    start_of,
    whole,
)
from splat2d.adaptive import fit_fewest
from splat2d.native import Job
from splat2d.recipe import Recipe, recipe_of
from splat2d.result import FitResult


def fit(
    images: npt.ArrayLike,
    num_gaussians: int,
    *,
    recipe: str | Recipe = "default",
    num_iters: int | None = None,
    seed: int = 0,
    threads: int = 0,
    device: str = "cpu",
    lambda_color: float | None = None,
    start: Sequence[npt.ArrayLike] | None = None,
    metric: npt.ArrayLike | None = None,
    target_psnr: float | None = None,
    min_gaussians: int | None = None,
    plateau: float | None = None,
    prune_score: Literal["luminance", "loss"] | None = None,
    prune_threshold: float | None = None,
    prune_to: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> FitResult:
    """Fit `num_gaussians` Gaussians to each picture.

    images: uint8 [B, H, W, 3] or [H, W, 3]; grey [B, H, W, 1], [H, W, 1], [B, H, W] or [H, W] (a last axis of 1 or 3 is
    taken for channels), fitted as three equal channels. Settings come from `recipe` (a name of RECIPES, or a `Recipe`);
    num_iters, lambda_color, prune_score and prune_threshold override it.

    start: (means [B, M, 2], cholesky [B, M, 3], colors [B, M, 3]) or these and counts [B]: where to start instead of
    the recipe's init, such as the frame before; finite, colors within 1e4, l00 and l11 not 0 (a sign means nothing).
    Means and shapes are brought to where a fit keeps them. Of more than num_gaussians those are dropped whose loss says
    that they matter least; fewer are made up where the residual is large.

    metric [K, 3 P^2]: the loss also sums |metric . r|^2 over the picture's patches of P x P pixels, r being a patch's
    residual in picture units, flattened from [P, P, 3]. With sqrt(mu) times a model's linear patch embedding (of pixels
    in [0, 1]) that is mu times the squared error of its patch tokens. Few rows cost little. P divides height and width;
    device="cpu" only. Places for new Gaussians, the first colours, pruning and all PSNR go by pixels.

    target_psnr (dB): a picture is done as soon as it reaches this, after num_iters at the latest; `reached` of the
    result says whether it did. Where the recipe adds Gaussians as it goes, that may be before all are there.
    min_gaussians, with target_psnr: each picture gets as few Gaussians as reach it, near enough, from min_gaussians to
    num_gaussians.
    plateau (dB): a picture that gains less over 32 iterations is brought to its end, before num_iters.

    prune_threshold, prune_to: after the last step Gaussians that score (prune_score, see `Recipe`) under the threshold
    are dropped, then the worst until prune_to are left; the rest is fitted again for the recipe's refit_share.

    threads: 0 takes all processors. Results depend on neither it nor the batch a picture comes in, bit for bit; they
    depend on `backend()` in the last digits. device: "cpu" or "cuda" (the latter without target_psnr and plateau).
    `progress(done)` is called from the calling thread about every 50 ms; what it raises, and Ctrl-C, ends the fit.

    Raises ValueError on wrong shapes, types, values or combinations; RuntimeError where the device is missing.
    """
    pictures = images_of(images)
    batch, height, width, _ = pictures.shape
    number = gaussians_of(num_gaussians, height, width)
    chosen = recipe_of(
        recipe,
        num_iters=num_iters,
        lambda_color=lambda_color,
        prune_score=prune_score,
        prune_threshold=prune_threshold,
    )
    whole(threads, "threads", 0)
    whole(seed, "seed", 0, 2**64 - 1)
    device_of(device)
    for name, value in (("target_psnr", target_psnr), ("plateau", plateau)):
        if value is not None:
            above_zero(value, name)
            if device == "cuda":
                raise ValueError(f'{name}: device="cuda" cannot end pictures early; leave it out or use device="cpu"')
    if prune_to is not None:
        whole(prune_to, "prune_to", 1)
    splats = None if start is None else start_of(start, batch)
    rows = None if metric is None else metric_of(metric, height, width)
    if rows is not None and device == "cuda":
        raise ValueError('metric: device="cuda" fits by pixels alone; leave it out or use device="cpu"')
    job = Job(pictures, chosen, seed, threads, device, target_psnr, plateau, prune_to, progress, rows)
    if min_gaussians is None:
        return job.run(number, start=splats)
    others = {"start": start, "prune_to": prune_to, "prune_threshold": chosen.prune_threshold or None}
    fewest = _fewest_of(min_gaussians, number, target_psnr, others)
    return fit_fewest(job, fewest, number)


def _fewest_of(value: Any, most: int, target_psnr: float | None, others: dict[str, Any]) -> int:
    fewest = whole(value, "min_gaussians", 1)
    if fewest > most:
        raise ValueError(f"expected min_gaussians of at most num_gaussians = {most}, got {fewest}")
    if target_psnr is None:
        raise ValueError("min_gaussians: how few are enough is decided by target_psnr; give one")
    for name, other in others.items():
        if other is not None:
            raise ValueError(f"min_gaussians finds the number itself: leave out {name}")
    return fewest
