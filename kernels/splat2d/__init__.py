"""Fit pictures with 2D Gaussians, render them, store them.

Image model (GaussianVision, arXiv 2509.22615): picture(p) = sum_i c_i exp(-1/2 d^T Sigma_i^-1 d), d = p - mean_i, added
up without order or opacity. A Gaussian ends at a Mahalanobis distance of 3: beyond it the contribution is exactly zero,
in fitting, rendering and gradients alike.

Letters: B pictures, N Gaussians, H rows, W columns. means [B, N, 2] in pixels (x right, y down, pixel centres at
integers); cholesky [B, N, 3] = (l00, l10, l11) in pixels, Sigma = L L^T; colors [B, N, 3] in picture units (1 = white).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from splat2d import _core
from splat2d._checks import described, device_of, gaussians_of, images_of, size_of, splats_of, whole
from splat2d._core import Decoded, decode, encode
from splat2d.recipe import RECIPES, Recipe, recipe_of

__version__ = "0.1.0"
__all__ = [
    "RECIPES",
    "Decoded",
    "FitResult",
    "Recipe",
    "backend",
    "decode",
    "encode",
    "fit",
    "has_cuda",
    "psnr",
    "render",
]

CUTOFF = 3.0
"""Mahalanobis distance at which a Gaussian ends."""


@dataclass(frozen=True)
class FitResult:
    """What `fit` found. Rows past counts[b] are zero."""

    means: npt.NDArray[np.float32]
    """[B, N, 2]"""
    cholesky: npt.NDArray[np.float32]
    """[B, N, 3]"""
    colors: npt.NDArray[np.float32]
    """[B, N, 3]"""
    counts: npt.NDArray[np.int32]
    """[B] Gaussians kept after pruning."""
    psnr: npt.NDArray[np.float32]
    """[B] dB of the unclamped render, pictures in [0, 1]; at most 100."""
    iters: npt.NDArray[np.int32]
    """[B] optimiser steps done, a refit after pruning included."""
    num_iters: int
    """Optimiser steps asked for (a refit after pruning not counted)."""


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
    prune_threshold: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> FitResult:
    """Fit `num_gaussians` Gaussians to each picture.

    images: uint8 [B, H, W, 3] or [H, W, 3]. Settings come from `recipe` ("default", "paper" or a `Recipe`); num_iters,
    lambda_color and prune_threshold override it. Results depend on neither `threads` (0: all processors) nor the
    batch a picture comes in, bit for bit; they depend on `backend()` in the last digits. `progress(done)` is called
    from the calling thread about every 50 ms; what it raises, and Ctrl-C, ends the fit.

    Raises ValueError on wrong shapes, types or counts; RuntimeError where the device is missing.
    """
    pictures = images_of(images)
    _, height, width, _ = pictures.shape
    number = gaussians_of(num_gaussians, height, width)
    chosen = recipe_of(recipe, num_iters=num_iters, lambda_color=lambda_color, prune_threshold=prune_threshold)
    whole(chosen.num_iters, "num_iters", 0)
    whole(threads, "threads", 0)
    whole(seed, "seed", 0)
    device_of(device)
    settings = asdict(chosen) | {"seed": seed, "refit_iters": round(chosen.num_iters * chosen.refit_share)}
    means, cholesky, colors, counts, values, iters = _core.fit(pictures, number, settings, threads, device, progress)
    return FitResult(means, cholesky, colors, counts, values, iters, chosen.num_iters)


def render(
    means: npt.ArrayLike,
    cholesky: npt.ArrayLike,
    colors: npt.ArrayLike,
    height: int,
    width: int,
    *,
    counts: npt.ArrayLike | None = None,
    threads: int = 0,
    device: str = "cpu",
) -> npt.NDArray[np.float32]:
    """The pictures [B, H, W, 3] of splats, float32, not clamped.

    counts [B]: only the first counts[b] Gaussians are drawn. A Gaussian ends at Mahalanobis distance 3; one whose l00
    or l11 is 0 draws nothing. Raises ValueError on wrong shapes and on values that are not finite.
    """
    arrays = splats_of(means, cholesky, colors)
    batch, number, _ = arrays[0].shape
    size_of(height, width)
    whole(threads, "threads", 0)
    if device != "cpu":
        raise ValueError(f'expected device "cpu": rendering runs on the CPU alone, got {device!r}')
    used = np.full(batch, number, np.int32) if counts is None else np.asarray(counts)
    if used.shape != (batch,) or used.dtype.kind not in "iu":
        raise ValueError(f"expected counts integer [{batch}], got {described(used)}")
    if batch and (used.min() < 0 or used.max() > number):
        raise ValueError(f"expected counts in 0..{number}, got {used.min()}..{used.max()}")
    return _core.render(*arrays, height, width, used.astype(np.int32), threads)


def psnr(render: npt.ArrayLike, images: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """PSNR in dB [B] of renders float [B, H, W, 3], unclamped, against uint8 [B, H, W, 3]; at most 100."""
    pictures = images_of(images)
    values = np.asarray(render)
    if values.ndim == 3:
        values = values[None]
    if values.shape != pictures.shape or values.dtype.kind != "f":
        raise ValueError(f"expected render float {list(pictures.shape)}, got {described(values)}")
    error = values.astype(np.float64) - pictures.astype(np.float64) / 255.0
    mean = np.square(error).mean(axis=(1, 2, 3))
    return np.asarray(-10.0 * np.log10(np.maximum(mean, 1e-10)), dtype=np.float32)


def backend() -> str:
    """The CPU code in use: "avx512", "avx2" or "portable".

    The environment variable SPLAT2D_BACKEND forces one; RuntimeError where it cannot run.
    """
    return _core.backend()


def has_cuda() -> bool:
    """Whether this build has CUDA and a device is present."""
    return _core.has_cuda()
