"""Scores of image-text models: accuracy, recall, and how sure one can be of them. Pure functions on NumPy arrays.

Intervals come from a paired bootstrap over pictures: every resampling draws the same pictures for all rows, so what
two models have in common (easy pictures, hard pictures) cancels in their ratio. They tell how much the figures would
move with another test set of the same kind; they do not cover another training run. Retrieval follows CLIP_benchmark:
a query counts as a hit when at least one of its positives is among the first k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
CONFIDENCE = 0.95
_CHUNK = 250  # resamplings drawn at a time


def _matrix(values: ArrayLike, name: str) -> NDArray[np.floating]:
    matrix = np.asarray(values)
    if matrix.ndim != 2 or matrix.shape[0] == 0 or matrix.shape[1] == 0:
        raise ValueError(f"{name} has shape {matrix.shape}; expected two non-empty dimensions")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} holds values that are not finite; a model that returns NaN cannot be scored")
    return matrix


def _labels(values: ArrayLike, count: int, num_classes: int, name: str) -> IntArray:
    labels = np.asarray(values)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} has shape {labels.shape} and type {labels.dtype}; expected {count} integers")
    if count and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"{name} holds {labels.min()}..{labels.max()}; expected 0..{num_classes - 1}")
    return labels.astype(np.int64)


def target_ranks(logits: ArrayLike, targets: ArrayLike) -> IntArray:
    """Place of the true class of each picture, 0 = first.

    logits: [n, C], targets: [n] integers in 0..C-1. Among equal logits the lower class index comes first, so that
    rank 0 is exactly `argmax == target` and a constant model scores chance. Raises ValueError on other shapes or NaN.
    """
    matrix = _matrix(logits, "logits")
    labels = _labels(targets, matrix.shape[0], matrix.shape[1], "targets")
    own = matrix[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(matrix.shape[1])[None, :] < labels[:, None]
    ranks: IntArray = np.count_nonzero((matrix > own) | ((matrix == own) & earlier), axis=1).astype(np.int64)
    return ranks


def confusion_matrix(predictions: ArrayLike, targets: ArrayLike, num_classes: int) -> IntArray:
    """Counts [C, C] of pictures: row = true class, column = predicted class."""
    labels = _labels(targets, np.asarray(targets).shape[0], num_classes, "targets")
    guesses = _labels(predictions, len(labels), num_classes, "predictions")
    flat = np.bincount(labels * num_classes + guesses, minlength=num_classes * num_classes)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def per_class_recall(confusion: ArrayLike) -> FloatArray:
    """Share of each class's pictures that were recognised, [C]; NaN for a class without pictures."""
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=1)
    recall: FloatArray = np.divide(np.diagonal(counts), totals, out=np.full(len(totals), np.nan), where=totals > 0)
    return recall


@dataclass(frozen=True)
class Classification:
    """Classification of n pictures into C classes by one model.

    predictions: [n]; hits1, hits5: [n], the true class is first, or among the first min(5, C); confusion: [C, C];
    mean_per_class_recall: over the classes that have pictures.
    """

    predictions: IntArray
    hits1: BoolArray
    hits5: BoolArray
    confusion: IntArray

    @property
    def acc1(self) -> float:
        """Share of pictures whose first guess is right."""
        return float(self.hits1.mean())

    @property
    def acc5(self) -> float:
        """Share of pictures whose class is among the first min(5, C) guesses."""
        return float(self.hits5.mean())

    @property
    def mean_per_class_recall(self) -> float:
        """Mean over the classes that have pictures of their recall."""
        return float(np.nanmean(per_class_recall(self.confusion)))


def classify(logits: ArrayLike, targets: ArrayLike) -> Classification:
    """Score logits [n, C] against targets [n]. Raises ValueError as `target_ranks` does."""
    matrix = _matrix(logits, "logits")
    ranks = target_ranks(matrix, targets)
    predictions = matrix.argmax(axis=1).astype(np.int64)
    confusion = confusion_matrix(predictions, targets, matrix.shape[1])
    return Classification(predictions, ranks < 1, ranks < min(5, matrix.shape[1]), confusion)


@dataclass(frozen=True)
class Retrieval:
    """Retrieval among I pictures and T captions by one model.

    image_ranks: [T], place of its picture for each caption; text_ranks: [I], place of the first of its captions for
    each picture; text_image: [T], the picture each caption belongs to.
    """

    image_ranks: IntArray
    text_ranks: IntArray
    text_image: IntArray

    def image_recall(self, k: int) -> float:
        """Share of captions whose picture is among the first k (CLIP_benchmark's image_retrieval_recall@k)."""
        return float((self.image_ranks < k).mean())

    def text_recall(self, k: int) -> float:
        """Share of pictures with a caption of theirs among the first k (text_retrieval_recall@k)."""
        return float((self.text_ranks < k).mean())

    def image_hits(self, k: int) -> tuple[FloatArray, FloatArray]:
        """Per picture: how many of its captions find it among the first k, and how many captions it has. [I] each."""
        hits = np.bincount(self.text_image, weights=self.image_ranks < k, minlength=len(self.text_ranks))
        return hits.astype(np.float64), np.bincount(self.text_image, minlength=len(hits)).astype(np.float64)


def retrieve(similarity: ArrayLike, text_image: ArrayLike) -> Retrieval:
    """Score similarities [T, I] of captions and pictures; text_image [T] names each caption's picture.

    Every picture needs a caption (ValueError otherwise). Among equal similarities the lower index comes first.
    """
    matrix = _matrix(similarity, "similarity")
    owners = _labels(text_image, matrix.shape[0], matrix.shape[1], "text_image")
    num_images = matrix.shape[1]
    bare = np.flatnonzero(np.bincount(owners, minlength=num_images) == 0)
    if len(bare):
        raise ValueError(f"{len(bare)} pictures have no caption, the first is number {bare[0]}")
    positive = np.where(owners[:, None] == np.arange(num_images)[None, :], matrix, -np.inf)
    best_text = positive.argmax(axis=0)
    text_ranks = target_ranks(np.ascontiguousarray(matrix.T), best_text)
    return Retrieval(target_ranks(matrix, owners), text_ranks, owners)


def image_chance(text_image: ArrayLike, k: int) -> float:
    """Expected image_recall(k) of a random order: k / I."""
    return min(1.0, k / (int(np.asarray(text_image).max()) + 1))


def text_chance(text_image: ArrayLike, k: int) -> float:
    """Expected text_recall(k) of a random order: 1 - C(T - m, k) / C(T, k), the mean over pictures with m captions."""
    captions = np.bincount(np.asarray(text_image))
    total = int(captions.sum())
    draws = np.arange(min(k, total))
    missed = np.clip(total - captions[:, None] - draws, 0, None) / (total - draws)
    return float((1.0 - missed.prod(axis=1)).mean())


def chance_corrected(accuracy: float, chance: float) -> float:
    """(accuracy - chance) / (1 - chance): 0 for guessing, 1 for no error, below 0 for worse than guessing."""
    if not 0 <= chance < 1:
        raise ValueError(f"chance is {chance}; expected 0 <= chance < 1")
    return (accuracy - chance) / (1.0 - chance)


def bootstrap_means(hits: ArrayLike, num_bootstrap: int, seed: int, weights: ArrayLike | None = None) -> FloatArray:
    """Means of each row over pictures drawn with replacement, the same pictures for all rows.

    hits: [R, n], one value a row and picture; weights: [n], how much of the mean's denominator a picture holds
    (1 when left out; its number of captions in image retrieval, where hits counts captions).
    Returns [R, num_bootstrap].

    Pictures with equal values in all rows are interchangeable, so only how often each pattern of values is drawn
    matters, and those counts are multinomial: the same distribution as drawing pictures, a thousand times faster.
    """
    values = _matrix(hits, "hits").astype(np.float64)
    n = values.shape[1]
    held = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if held.shape != (n,) or (held <= 0).any() or num_bootstrap < 1:
        raise ValueError(f"expected {n} weights above 0 and num_bootstrap of at least 1, got {num_bootstrap}")
    patterns, counts = np.unique(np.vstack([values, held]).T, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    sums = np.empty((num_bootstrap, patterns.shape[1]))
    for start in range(0, num_bootstrap, _CHUNK):
        stop = min(start + _CHUNK, num_bootstrap)
        sums[start:stop] = generator.multinomial(n, counts / n, size=stop - start) @ patterns
    means: FloatArray = (sums[:, :-1] / sums[:, -1:]).T
    return means


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95 % percentile interval."""

    value: float
    low: float
    high: float


def estimate(value: float, samples: ArrayLike) -> Estimate:
    """The 95 % percentile interval of bootstrap samples [num_bootstrap] around the figure they resample."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(np.asarray(samples, dtype=np.float64), [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high))


def ratio(
    value: float, samples: ArrayLike, base: float, base_samples: ArrayLike, chance: float = 0.0
) -> Estimate | None:
    """(value - chance) / (base - chance) with the interval of the paired samples.

    chance = 0 gives the plain ratio. None where the base is not above chance in the figure and in every resampling:
    a ratio to nothing means nothing.
    """
    below = np.asarray(base_samples, dtype=np.float64) - chance
    if base <= chance or (below <= 0).any():
        return None
    return estimate((value - chance) / (base - chance), (np.asarray(samples, dtype=np.float64) - chance) / below)
