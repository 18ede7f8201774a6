"""Splats to pictures, and how near they come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splat2d import _core
from splat2d._checks import counts_of, described, images_of, size_of, splats_of, whole


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
    size_of(height, width)
    whole(threads, "threads", 0)
    if device != "cpu":
        raise ValueError(f'expected device "cpu": rendering runs on the CPU alone, got {device!r}')
    used = counts_of(counts, *arrays[0].shape[:2])
    return _core.render(*arrays, height, width, used, threads)


def psnr(render: npt.ArrayLike, images: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """PSNR in dB [B] of renders float [B, H, W, 3], unclamped, against pictures as `fit` takes them; at most 100."""
    pictures = images_of(images)
    values = np.asarray(render)
    if values.ndim == 3:
        values = values[None]
    if values.shape != pictures.shape or values.dtype.kind != "f":
        raise ValueError(f"expected render float {list(pictures.shape)}, got {described(values)}")
    mean = np.array([_squared_error(*pair) for pair in zip(values, pictures, strict=True)])
    return np.asarray(-10.0 * np.log10(np.maximum(mean, 1e-10)), dtype=np.float32)


def _squared_error(render: npt.NDArray[np.floating], picture: npt.NDArray[np.generic]) -> float:
    """The mean of one picture: a batch's doubles would not stay in the cache."""
    error = np.divide(picture, 255.0, dtype=np.float64)
    np.subtract(render, error, out=error)
    return float(np.square(error, out=error).mean())
