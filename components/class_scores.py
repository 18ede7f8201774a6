"""Scores that are means over classes: mean per-class recall and mean average precision, with paired resamplings.

As CLIP_benchmark defines them. Letters: R rows (models), n pictures, C classes, B resamplings of the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.scores import FloatArray

_CHUNK = 125  # resamplings drawn at a time


def average_precision(scores: ArrayLike, truth: ArrayLike) -> FloatArray:
    """Average precision of each class, [C]: the mean, over its pictures, of the precision at their rank.

    scores, truth: [n, C]; truth: whether the picture shows the class. 0 for a class without pictures, as CLIP_benchmark
    counts it. Among equal scores the earlier picture comes first. Raises ValueError on other shapes, or NaN.
    """
    values, shown = _checked(scores, truth)
    order = np.argsort(-values, axis=0, kind="stable")
    ranked = np.take_along_axis(shown, order, 0).astype(np.float64)
    precision = np.cumsum(ranked, 0) / np.arange(1, len(ranked) + 1)[:, None]
    found: FloatArray = (precision * ranked).sum(0) / np.maximum(ranked.sum(0), 1)
    return found


def average_precision_chance(truth: ArrayLike) -> FloatArray:
    """Expected average precision of each class in a random order, [C]; 0 for a class without pictures.

    With m of n pictures: (m-1)/(n-1) + H_n (n-m) / (n (n-1)), H_n = 1 + 1/2 + ... + 1/n: the mean over ranks k of
    [1 + (k-1) (m-1)/(n-1)] / k.
    """
    shown = np.asarray(truth, dtype=bool)
    count = len(shown)
    own: FloatArray = shown.sum(0).astype(np.float64)
    if count < 2:
        return own  # a single picture comes first
    harmonic = float((1.0 / np.arange(1, count + 1)).sum())
    expected = (own - 1) / (count - 1) + harmonic * (count - own) / (count * (count - 1))
    found: FloatArray = np.where(own > 0, expected, 0.0)
    return found


def _checked(scores: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    values, shown = np.asarray(scores), np.asarray(truth, dtype=bool)
    if values.ndim != 2 or values.shape != shown.shape or not values.size:
        raise ValueError(f"scores have shape {values.shape}, truth {shown.shape}; expected two of one shape [n, C]")
    if not np.isfinite(values).all():
        raise ValueError("scores hold values that are not finite; a model that returns NaN cannot be scored")
    return values, shown


def bootstrap_average_precision(
    scores: Sequence[ArrayLike], truth: ArrayLike, num_bootstrap: int, seed: int
) -> FloatArray:
    """Mean average precision over pictures drawn with replacement, the same pictures for all rows: [R, B].

    scores: [n, C] of each row; truth: [n, C]. A picture drawn several times takes the ranks of its copies, and each
    copy counts the precision at their middle.
    """
    pairs = [_checked(one, truth) for one in scores]
    shown = pairs[0][1]
    generator = np.random.default_rng(seed)
    count = len(shown)
    orders = [np.argsort(-values, axis=0, kind="stable") for values, _ in pairs]
    found = np.empty((len(pairs), num_bootstrap))
    for start in range(0, num_bootstrap, _CHUNK):
        stop = min(start + _CHUNK, num_bootstrap)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=stop - start).astype(np.float32)
        for row, order in enumerate(orders):
            total = np.zeros(stop - start)
            for c in range(shown.shape[1]):
                total += _precision_of(drawn[:, order[:, c]], shown[order[:, c], c])
            found[row, start:stop] = total / shown.shape[1]
    return found


def _precision_of(copies: NDArray[np.float32], own: NDArray[np.bool_]) -> FloatArray:
    """Average precision of one class in each resampling: copies [b, n] of the pictures by rank, own [n]."""
    places = np.flatnonzero(own)
    if not len(places):
        return np.zeros(len(copies))
    mine = copies[:, places].astype(np.float64)
    before = np.cumsum(copies, axis=1, dtype=np.float64)[:, places] - mine
    middle = (mine + 1) / 2
    precision = (np.cumsum(mine, 1) - mine + middle) / (before + middle)
    sums: FloatArray = (mine * precision).sum(1) / np.maximum(mine.sum(1), 1)
    return sums


def bootstrap_class_recall(hits: ArrayLike, classes: ArrayLike, num_bootstrap: int, seed: int) -> FloatArray:
    """Mean per-class recall over pictures drawn with replacement, the same pictures for all rows: [R, B].

    hits: [R, n], 1 where the class was recognised; classes: [n]. Classes of which nothing was drawn do not count.
    Pictures of one class with equal hits in all rows are interchangeable, so only how often each such kind is drawn
    matters, and those counts are multinomial.
    """
    values, labels = np.asarray(hits, dtype=np.float64), np.asarray(classes)
    if values.ndim != 2 or labels.shape != (values.shape[1],) or not values.size:
        raise ValueError(f"hits have shape {values.shape}, classes {labels.shape}; expected [R, n] and [n]")
    kinds, counts = np.unique(np.vstack([labels, values]).T, axis=0, return_counts=True)
    starts = np.flatnonzero(np.r_[True, np.diff(kinds[:, 0]) != 0])  # kinds are sorted by class
    generator = np.random.default_rng(seed)
    found = np.empty((len(values), num_bootstrap))
    for start in range(0, num_bootstrap, _CHUNK):
        stop = min(start + _CHUNK, num_bootstrap)
        drawn = generator.multinomial(len(labels), counts / len(labels), size=stop - start).astype(np.float64)
        sizes = np.add.reduceat(drawn, starts, axis=1)
        for row in range(len(values)):
            right = np.add.reduceat(drawn * kinds[:, 1 + row], starts, axis=1)
            recall = np.divide(right, sizes, out=np.zeros_like(right), where=sizes > 0)
            found[row, start:stop] = recall.sum(1) / (sizes > 0).sum(1)
    return found
