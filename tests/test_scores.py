"""Scores against values worked out by hand, by brute force and by their own definitions."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import scores

LOGITS = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [1.0, 2.0, 3.0], [9.0, 8.0, 7.0]])
TARGETS = np.array([0, 2, 1, 2])


def test_hand_computed_classification() -> None:
    result = scores.classify(LOGITS, TARGETS)
    assert scores.target_ranks(LOGITS, TARGETS).tolist() == [0, 1, 1, 2]
    assert result.predictions.tolist() == [0, 1, 2, 0]
    assert result.confusion.tolist() == [[1, 0, 0], [0, 0, 1], [1, 1, 0]]
    assert result.acc1 == 0.25
    assert result.acc5 == 1.0  # three classes: the first three
    assert result.mean_per_class_recall == pytest.approx(1 / 3)


def test_top_five_of_ten() -> None:
    logits = np.tile(np.arange(10.0), (10, 1))  # class 9 first, class 0 last
    result = scores.classify(logits, np.arange(10))
    assert result.hits5.tolist() == [False] * 5 + [True] * 5
    assert (result.acc1, result.acc5) == (0.1, 0.5)


def test_mean_per_class_recall_weighs_classes_not_pictures() -> None:
    logits = np.tile([1.0, 0.0, -1.0], (10, 1))  # always class 0
    result = scores.classify(logits, np.array([0] * 9 + [1]))
    assert result.acc1 == 0.9
    assert result.mean_per_class_recall == 0.5  # class 2 has no pictures and does not count
    assert np.isnan(scores.per_class_recall(result.confusion)[2])


def test_a_constant_model_scores_chance() -> None:
    result = scores.classify(np.zeros((100, 10)), np.arange(100) % 10)
    assert (result.acc1, result.acc5) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (np.array([[np.nan, 1.0]]), np.array([0]), "not finite"),
        (np.zeros((2, 3)), np.array([0, 3]), "expected 0..2"),
        (np.zeros((2, 3)), np.array([0, -1]), "expected 0..2"),
        (np.zeros((2, 3)), np.array([0]), "expected 2 integers"),
        (np.zeros((0, 3)), np.array([], dtype=int), "non-empty"),
        (np.zeros((1, 3)), np.array([0.0]), "integers"),
    ],
)
def test_bad_input_is_refused(logits: np.ndarray, targets: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores.classify(logits, targets)


@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_classification_invariants(n: int, num_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 4, (n, num_classes)).astype(np.float32)  # many ties
    targets = rng.integers(0, num_classes, n)
    result = scores.classify(logits, targets)
    assert result.confusion.sum() == n
    assert np.trace(result.confusion) / n == pytest.approx(result.acc1)
    assert (result.hits1 == (logits.argmax(1) == targets)).all()
    assert (result.hits5 | ~result.hits1).all()
    order = np.argsort(-logits, axis=1, kind="stable")
    assert (scores.target_ranks(logits, targets) == (order == targets[:, None]).argmax(1)).all()
    assert scores.classify(2.0 * logits + 1.0, targets).acc1 == result.acc1
    permuted = rng.permutation(n)
    assert scores.classify(logits[permuted], targets[permuted]).mean_per_class_recall == pytest.approx(
        result.mean_per_class_recall
    )


SIMILARITY = np.array(  # captions x pictures; captions 0-1 of picture 0, 2 of picture 1, 3 of picture 2
    [[0.9, 0.1, 0.3], [0.2, 0.8, 0.1], [0.4, 0.5, 0.6], [0.7, 0.0, 0.2]]
)
OWNERS = np.array([0, 0, 1, 2])


def test_hand_computed_retrieval() -> None:
    result = scores.retrieve(SIMILARITY, OWNERS)
    assert result.image_ranks.tolist() == [0, 1, 1, 1]
    assert result.text_ranks.tolist() == [0, 1, 2]
    assert (result.image_recall(1), result.image_recall(2)) == (0.25, 1.0)
    assert result.text_recall(1) == pytest.approx(1 / 3)
    hits, captions = result.image_hits(2)
    assert hits.tolist() == [2, 1, 1]
    assert captions.tolist() == [2, 1, 1]


def test_a_picture_without_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="1 pictures have no caption, the first is number 1"):
        scores.retrieve(np.ones((2, 3)), np.array([0, 2]))


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_retrieval_as_clip_benchmark_defines_it(num_images: int, captions: int, seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(num_images), rng.integers(1, captions + 1, num_images))
    similarity = rng.permutation(len(owners) * num_images).reshape(len(owners), num_images) / 7.0
    result = scores.retrieve(similarity, owners)
    positive = owners[:, None] == np.arange(num_images)

    def recall(sims: np.ndarray, pairs: np.ndarray) -> float:
        first = np.argsort(-sims, axis=1)[:, :k]
        return float((np.take_along_axis(pairs, first, axis=1).sum(1) > 0).mean())

    assert result.image_recall(k) == pytest.approx(recall(similarity, positive))
    assert result.text_recall(k) == pytest.approx(recall(similarity.T, positive.T))
    hits, counts = result.image_hits(k)
    assert hits.sum() / counts.sum() == pytest.approx(result.image_recall(k))


def test_chance_of_retrieval_is_what_random_orders_score() -> None:
    rng = np.random.default_rng(3)
    owners = np.repeat(np.arange(6), [1, 5, 2, 2, 1, 3])
    results = [scores.retrieve(rng.random((14, 6)), owners) for _ in range(4000)]
    for k in (1, 5):
        assert scores.image_chance(owners, k) == pytest.approx(np.mean([r.image_recall(k) for r in results]), abs=0.01)
        assert scores.text_chance(owners, k) == pytest.approx(np.mean([r.text_recall(k) for r in results]), abs=0.015)
    assert scores.text_chance(owners, 20) == 1.0


def test_chance_corrected() -> None:
    assert scores.chance_corrected(0.1, 0.1) == 0.0
    assert scores.chance_corrected(1.0, 0.1) == 1.0
    assert scores.chance_corrected(0.55, 0.1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="chance"):
        scores.chance_corrected(0.5, 1.0)


def test_bootstrap_is_the_bootstrap_over_pictures() -> None:
    rng = np.random.default_rng(0)
    hits = np.stack([rng.random(300) < 0.6, rng.random(300) < 0.5]).astype(float)
    weights = rng.integers(1, 4, 300).astype(float)
    fast = scores.bootstrap_means(hits * weights, 20000, seed=1, weights=weights)
    drawn = rng.integers(0, 300, (20000, 300))
    slow = np.stack([(row * weights)[drawn].sum(1) / weights[drawn].sum(1) for row in hits])
    assert fast.mean(1) == pytest.approx(slow.mean(1), abs=1e-3)
    assert np.cov(fast) == pytest.approx(np.cov(slow), rel=0.06, abs=3e-5)
    assert np.quantile(fast, [0.025, 0.975], axis=1) == pytest.approx(
        np.quantile(slow, [0.025, 0.975], axis=1), abs=3e-3
    )


def test_bootstrap_is_paired_seeded_and_fast() -> None:
    rng = np.random.default_rng(0)
    row = rng.random(10_000) < 0.6
    started = time.process_time()
    means = scores.bootstrap_means(np.stack([row, row, ~row]), 2000, seed=5)
    assert time.process_time() - started < 2.0
    assert (means[0] == means[1]).all()
    assert means[0] + means[2] == pytest.approx(np.ones(2000))
    assert (scores.bootstrap_means(np.stack([row, row, ~row]), 2000, seed=5) == means).all()
    assert (scores.bootstrap_means(np.stack([row, row, ~row]), 2000, seed=6) != means).any()


def test_real_valued_rows_are_fast_too() -> None:
    values = np.random.default_rng(0).random((2, 10_000))  # no two pictures alike: the worst case
    started = time.process_time()
    means = scores.bootstrap_means(values, 2000, seed=0)
    assert time.process_time() - started < 5.0
    assert means.std(axis=1) == pytest.approx(values.std(axis=1) / 100, rel=0.06)


def test_intervals_cover_the_truth() -> None:
    """Of 95 % intervals on fresh draws from a known model, 95 % hold the truth: accuracy, ratio, corrected ratio."""
    rng = np.random.default_rng(11)
    trials, covered = 600, np.zeros(3)
    difficulty = 0.3
    for trial in range(trials):
        easy = rng.random(400) < 1 - difficulty  # the rows share easy and hard pictures
        student = np.where(easy, rng.random(400) < 0.75, rng.random(400) < 0.25)
        control = np.where(easy, rng.random(400) < 0.85, rng.random(400) < 0.35)
        means = scores.bootstrap_means(np.stack([student, control]), 500, seed=trial)
        truth = 0.7 * 0.75 + 0.3 * 0.25, 0.7 * 0.85 + 0.3 * 0.35
        plain = scores.ratio(student.mean(), means[0], control.mean(), means[1])
        fair = scores.ratio(student.mean(), means[0], control.mean(), means[1], chance=0.1)
        assert plain is not None
        assert fair is not None
        figures = [scores.estimate(student.mean(), means[0]), plain, fair]
        truths = [truth[0], truth[0] / truth[1], (truth[0] - 0.1) / (truth[1] - 0.1)]
        covered += [e.low <= t <= e.high for e, t in zip(figures, truths, strict=True)]
    assert covered / trials == pytest.approx(np.full(3, 0.95), abs=0.025)


def test_pairing_narrows_the_ratio() -> None:
    rng = np.random.default_rng(2)
    control = rng.random(2000) < 0.6
    student = control & (rng.random(2000) < 0.9)
    means = scores.bootstrap_means(np.stack([student, control]), 2000, seed=0)
    paired = scores.ratio(student.mean(), means[0], control.mean(), means[1])
    crossed = scores.ratio(student.mean(), means[0], control.mean(), rng.permutation(means[1]))
    assert paired is not None
    assert crossed is not None
    assert paired.high - paired.low < 0.6 * (crossed.high - crossed.low)


def test_a_ratio_to_chance_is_refused() -> None:
    samples = np.array([0.09, 0.1, 0.12])
    assert scores.ratio(0.2, samples, 0.1, samples, chance=0.1) is None
    assert scores.ratio(0.2, samples, 0.11, samples, chance=0.1) is None  # one resampling is below chance
    assert scores.ratio(0.2, samples, 0.11, samples) is not None
