"""Means over classes: against direct counting and against the definition of a bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from components.class_scores import (
    average_precision,
    average_precision_chance,
    bootstrap_average_precision,
    bootstrap_class_recall,
)
from components.scores import confusion_matrix, per_class_recall


def example(seed: int, count: int = 60, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((count, classes)) < (0.1 + 0.2 * np.arange(classes))
    return rng.normal(size=truth.shape) + truth, truth


def test_average_precision_by_counting() -> None:
    scores, truth = example(0)
    expected = []
    for c in range(4):
        ranked = truth[np.argsort(-scores[:, c]), c]
        expected.append(np.mean([ranked[: k + 1].mean() for k in np.flatnonzero(ranked)]))
    assert average_precision(scores, truth) == pytest.approx(expected)
    assert average_precision([[0.1], [0.2]], [[False], [False]]).tolist() == [0.0]
    assert average_precision([[0.2], [0.1]], [[True], [True]]).tolist() == [1.0]


def test_chance_is_the_mean_over_random_orders() -> None:
    _, truth = example(1, count=12)
    truth[:, 3] = False
    rng = np.random.default_rng(0)
    found = np.mean([average_precision(rng.random(truth.shape), truth) for _ in range(20_000)], axis=0)
    assert average_precision_chance(truth) == pytest.approx(found, abs=0.004)
    assert average_precision_chance(truth)[3] == 0
    assert average_precision_chance([[True, False]]).tolist() == [1.0, 0.0]


def test_resamplings_of_average_precision_are_those_of_drawn_pictures() -> None:
    """Mean, spread and pairing, against pictures drawn one by one."""
    scores, truth = example(2)
    worse = scores + np.random.default_rng(5).normal(size=scores.shape)
    fast = bootstrap_average_precision([scores, worse], truth, 1000, seed=0)
    rng = np.random.default_rng(1)
    slow = np.empty((2, 1000))
    for b in range(1000):
        drawn = rng.integers(0, len(truth), len(truth))
        slow[:, b] = [average_precision(one[drawn], truth[drawn]).mean() for one in (scores, worse)]
    assert fast.mean(1) == pytest.approx(slow.mean(1), abs=0.006)
    assert fast.std(1) == pytest.approx(slow.std(1), rel=0.1)
    assert (fast[0] - fast[1]).std() == pytest.approx((slow[0] - slow[1]).std(), rel=0.1)
    assert (bootstrap_average_precision([scores, scores], truth, 50, seed=0).std(axis=0) == 0).all()


def test_resamplings_of_class_recall_are_those_of_drawn_pictures() -> None:
    rng = np.random.default_rng(3)
    classes = np.sort(rng.integers(0, 5, 80) ** 2 // 4)
    guesses = np.where(rng.random((2, 80)) < 0.6, classes, 0)
    hits = (guesses == classes).astype(float)
    fast = bootstrap_class_recall(hits, classes, 2000, seed=0)
    slow = np.empty((2, 2000))
    for b in range(2000):
        drawn = rng.integers(0, 80, 80)
        for row in (0, 1):
            counts = confusion_matrix(guesses[row][drawn], classes[drawn], int(classes.max()) + 1)
            slow[row, b] = np.nanmean(per_class_recall(counts))
    assert fast.mean(1) == pytest.approx(slow.mean(1), abs=0.01)
    assert fast.std(1) == pytest.approx(slow.std(1), rel=0.1)
    assert np.corrcoef(fast)[0, 1] == pytest.approx(np.corrcoef(slow)[0, 1], abs=0.08)


@pytest.mark.parametrize(
    ("scores", "truth"), [([[0.1]], [[True, False]]), ([[np.nan]], [[True]]), (np.ones((0, 2)), np.ones((0, 2)))]
)
def test_what_cannot_be_scored_is_refused(scores: list, truth: list) -> None:
    with pytest.raises(ValueError, match=r"expected two of one shape|not finite"):
        average_precision(scores, truth)
    with pytest.raises(ValueError, match=r"expected \[R, n\]"):
        bootstrap_class_recall([[1.0, 0.0]], [0], 10, 0)
