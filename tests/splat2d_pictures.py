"""Pictures to fit, and how results are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import splat2d

Images = npt.NDArray[np.uint8]


def pictures(batch: int, height: int, width: int, seed: int = 0) -> Images:
    """Smooth shading, a hard-edged disc and a stripe, each picture another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    out = np.empty((batch, height, width, 3))
    for b in range(batch):
        a, c, d = rng.uniform(0, 1, (3, 3))
        cx, cy, radius = rng.uniform(0.2, 0.8, 3) * (1, 1, 0.4)
        out[b] = a + (c - a) * (0.5 + 0.5 * np.sin(4 * x + 3 * b * y))[..., None]
        out[b][(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = d
        out[b][np.abs(x - y - 0.3 * b + 0.3) < 0.04] = 1 - a
    return np.asarray(np.clip(out * 255, 0, 255).astype(np.uint8))


def arrays(result: splat2d.FitResult) -> list[Any]:
    return [result.means, result.cholesky, result.colors, result.counts, result.psnr, result.iters]


def assert_same(first: splat2d.FitResult, second: splat2d.FitResult) -> None:
    for ours, theirs in zip(arrays(first), arrays(second), strict=True):
        np.testing.assert_array_equal(ours, theirs)
