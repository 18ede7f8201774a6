"""What the benchmarks decide and count, apart from any measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

CUTOFF = 3.0
Floats = npt.NDArray[np.float32]


def first_reaching(ladder: Sequence[int], goal_db: float, psnr_of: Callable[[int], float]) -> int | None:
    """The smallest budget of an ascending ladder whose PSNR is at least the goal; later ones are not tried."""
    if list(ladder) != sorted(set(ladder)):
        raise ValueError(f"expected an ascending ladder, got {list(ladder)}")
    return next((num_iters for num_iters in ladder if psnr_of(num_iters) >= goal_db), None)


def largest_within(share_of: Callable[[int], float], share: float, probes: tuple[int, int]) -> int:
    """The largest number of iterations that it finds to take at most `share` of a time.

    share_of(num_iters) measures. Two probes give a line; further measurements correct it, up to six in all, until one
    lies within 3 % below the share. The best of those within the share is taken, or the smallest tried.
    """
    tried = {num_iters: share_of(num_iters) for num_iters in probes}
    low, high = probes
    slope = max((tried[high] - tried[low]) / (high - low), 1e-9)
    guess = low + (0.985 * share - tried[low]) / slope
    for _ in range(4):
        num_iters = max(1, int(min(guess, 4 * max(tried))))  # a slope lost in noise leads nowhere far
        if num_iters not in tried:
            tried[num_iters] = share_of(num_iters)
        if 0.97 * share <= tried[num_iters] <= share:
            break
        guess = num_iters * 0.985 * share / tried[num_iters]
    within = [num_iters for num_iters, taken in tried.items() if taken <= share]
    return max(within) if within else min(tried)


def bootstrap_interval(values: npt.ArrayLike, *, resamples: int = 10000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean, over resampled pictures."""
    array = np.asarray(values, np.float64)
    index = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
    low, high = np.percentile(array[index].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def pairs_inside(means: Floats, cholesky: Floats, height: int, width: int) -> int:
    """How many pairs of a Gaussian and a pixel centre of the picture lie inside the 3-sigma ellipses.

    means [N, 2], cholesky [N, 3]. Row by row: with Sigma = L L^T, row dy cuts the ellipse around
    x + dy Sxy / Syy at +- sqrt(9 - dy^2 / Syy) sqrt(Sxx - Sxy^2 / Syy).
    """
    x, y = means.astype(np.float64).T
    l00, l10, l11 = cholesky.astype(np.float64).T
    sxx, sxy, syy = l00 * l00, l00 * l10, l10 * l10 + l11 * l11
    reach = CUTOFF * np.sqrt(syy)
    first = np.ceil(np.clip(y - reach, 0, height)).astype(np.int64)
    last = np.floor(np.clip(y + reach, -1, height - 1)).astype(np.int64)
    rows = np.maximum(last - first + 1, 0)
    which = np.repeat(np.arange(len(x)), rows)
    row = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows) + first[which]
    dy = row - y[which]
    middle = x[which] + dy * (sxy / syy)[which]
    half = np.sqrt(np.maximum(CUTOFF * CUTOFF - dy * dy / syy[which], 0.0)) * np.sqrt(sxx - sxy * sxy / syy)[which]
    left = np.ceil(np.clip(middle - half, 0, width))
    right = np.floor(np.clip(middle + half, -1, width - 1))
    return int(np.maximum(right - left + 1, 0).sum())
