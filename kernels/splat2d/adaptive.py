"""As few Gaussians as reach a PSNR, picture by picture.

PSNR grows with the logarithm of their number, by about 3 dB an octave on photographs. A short fit of all pictures with
one number gives each a first guess; fits with that, ended by the target, bracket the number between one that reached
and one that did not; later rounds start from the nearest result, with Gaussians dropped or added, and take half the
iterations. Each picture's numbers follow from its own figures alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from splat2d.native import Job, Start
from splat2d.result import FitResult

ROUNDS = 5
SCOUT_SHARE = 0.3  # of the iterations
SCOUT_GAIN = 1.8  # dB that the rest of the iterations adds, about
SLOPE = 3.0  # dB an octave of Gaussians
DOUBLING = (0.8, 0.25)  # dB that twice the iterations add to a fit from nothing, and to one that starts from another
CLOSE = 1.04  # a bracket that is narrow enough
SMALL = 0.12  # dB not worth another round

Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int32]


@dataclass
class _Search:
    """What is known of each picture [B]."""

    fewest: int
    most: int
    number: Numbers  # of the round to come
    low: Numbers  # the largest number that did not do; fewest - 1: none is known
    high: Numbers  # the smallest that did; most + 1: none is known
    open: npt.NDArray[np.bool_]

    def learn(self, rows: npt.NDArray[np.intp], result: FitResult, spare: Doubles, goal: float) -> None:
        """Take in a round of the pictures `rows`; spare: dB above the goal that all iterations would have given."""
        reached = result.reached
        tried = np.where(reached, result.counts, self.number[rows])  # fewer where the recipe had not added all yet
        self.high[rows] = np.where(reached, tried, self.high[rows])
        self.low[rows] = np.where(reached, self.low[rows], tried)
        gap = np.where(reached, -spare, goal + 0.05 - result.psnr.astype(np.float64))
        wanted = tried * 2.0 ** (gap / SLOPE)
        low, high = self.low[rows], self.high[rows]
        inside = np.sqrt(np.maximum(low, 1) * np.minimum(high, self.most).astype(np.float64))
        bracketed = (low >= self.fewest) & (high <= self.most)
        wanted = np.where(bracketed & ((wanted <= low * 1.01) | (wanted >= high * 0.99)), inside, wanted)
        self.number[rows] = np.clip(np.ceil(wanted), self.fewest, self.most).astype(np.int32)
        done = (reached & (spare < SMALL)) | (high <= np.maximum(low, self.fewest) * CLOSE) | (low >= self.most)
        self.open[rows] = ~done & (self.number[rows] != tried)


def fit_fewest(job: Job, fewest: int, most: int) -> FitResult:
    """The fit of each picture with the smallest number found, in fewest..most, that reaches job.target_psnr."""
    if job.target_psnr is None:
        raise ValueError("target_psnr is what decides how few are enough; give one")
    batch = len(job.pictures)
    budget = job.recipe.num_iters
    middle = max(fewest, min(most, round((fewest * most) ** 0.5)))
    scouting = replace(job, recipe=replace(job.recipe, num_iters=round(budget * SCOUT_SHARE)), progress=job.waiting())
    scout = scouting.run(middle)
    octaves = (job.target_psnr - SCOUT_GAIN - scout.psnr.astype(np.float64)) / SLOPE
    number = np.clip(np.ceil(middle * 2.0**octaves), fewest, most).astype(np.int32)
    search = _Search(
        fewest, most, number, np.full(batch, fewest - 1, np.int32), np.full(batch, most + 1, np.int32),
        np.ones(batch, np.bool_),
    )  # fmt: skip
    means, cholesky, colors = (np.zeros((batch, most, columns), np.float32) for columns in (2, 3, 3))
    counts, psnr = np.zeros(batch, np.int32), np.full(batch, -np.inf, np.float32)
    best = FitResult(means, cholesky, colors, counts, psnr, scout.iters.copy(), budget, job.target_psnr)
    for turn in range(ROUNDS):
        rows = np.flatnonzero(search.open)
        if not len(rows):
            break
        iters = budget if turn == 0 else (budget + 1) // 2
        part = replace(job.part(rows), recipe=replace(job.recipe, num_iters=iters), progress=job.waiting())
        result = part.run(most, numbers=search.number[rows], start=_rows(best, rows) if turn else None)
        best.iters[rows] += result.iters
        spare = DOUBLING[min(turn, 1)] * np.log2(max(iters, 1) / np.maximum(result.iters, 1.0))
        search.learn(rows, result, spare, job.target_psnr)
        better = np.where(result.reached, True, ~best.reached[rows] & (result.psnr > best.psnr[rows]))
        for kept, new in zip(best.arrays(), result.arrays(), strict=True):
            kept[rows[better]] = new[better]
    if job.progress is not None:
        job.progress(batch)
    return best


def _rows(result: FitResult, rows: npt.NDArray[np.intp]) -> Start:
    return result.means[rows], result.cholesky[rows], result.colors[rows], result.counts[rows]
