"""Pruning: what a Gaussian is worth, and which are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import splat2d
from splat2d import reference
from splat2d_pictures import assert_same, pictures

IMAGES = pictures(2, 26, 33)
SHARP = replace(splat2d.RECIPES["default"], scale_min=0.3, refit_share=0.0)


def loss_scores(result: splat2d.FitResult, image: npt.NDArray[np.uint8], b: int) -> npt.NDArray[np.float64]:
    """Brute force, in float64: drop each Gaussian and measure."""
    parts = [values[b].astype(np.float64) for values in (result.means, result.cholesky, result.colors)]
    number = len(parts[0])
    before = reference.loss(*parts, image)
    left = (np.delete(np.arange(number), i) for i in range(number))
    return np.array([reference.loss(*(part[rest] for part in parts), image) - before for rest in left])


@pytest.mark.parametrize("recipe", ["paper", "sharp"])
@pytest.mark.parametrize("keep", [0.2, 0.7])
def test_the_loss_score_is_what_dropping_each_one_costs(recipe: str, keep: float) -> None:
    settings = SHARP if recipe == "sharp" else replace(splat2d.RECIPES["paper"], refit_share=0.0)
    whole = splat2d.fit(IMAGES, 40, recipe=settings, num_iters=25)
    for b, image in enumerate(IMAGES):
        scores = np.sort(loss_scores(whole, image, b))
        at = int((1 - keep) * len(scores))
        threshold = float(np.sqrt(max(scores[at - 1], 1e-9) * scores[at]))
        expected = loss_scores(whole, image, b) >= threshold
        pruned = splat2d.fit(image, 40, recipe=settings, num_iters=25, prune_score="loss", prune_threshold=threshold)
        assert pruned.counts == [expected.sum()]
        np.testing.assert_array_equal(pruned.means[0, : pruned.counts[0]], whole.means[b][expected])
        # The value itself is right, not its order alone: a threshold that close to a score parts it from the others.
        for near in (scores[at] * (1 - 1e-4), scores[at] * (1 + 1e-4)):
            pruned = splat2d.fit(
                image, 40, recipe=settings, num_iters=25, prune_score="loss", prune_threshold=float(near)
            )
            assert pruned.counts == [(scores >= near).sum()]


@pytest.mark.parametrize("score", ["luminance", "loss"])
def test_prune_to_keeps_the_best(score: str) -> None:
    settings = replace(SHARP, prune_score=score)  # type: ignore[arg-type]
    whole = splat2d.fit(IMAGES, 40, recipe=settings, num_iters=25)
    pruned = splat2d.fit(IMAGES, 40, recipe=settings, num_iters=25, prune_to=17)
    assert (pruned.counts == 17).all()
    for b, image in enumerate(IMAGES):
        values = np.abs(whole.colors[b]) @ np.array([0.2126, 0.7152, 0.0722], np.float32)
        if score == "loss":
            values = loss_scores(whole, image, b)
        best = np.sort(np.argsort(-values, kind="stable")[:17])
        np.testing.assert_array_equal(pruned.means[b, :17], whole.means[b][best])
        assert not pruned.means[b, 17:].any()
    assert_same(whole, splat2d.fit(IMAGES, 40, recipe=settings, num_iters=25, prune_to=40))


def test_of_equals_the_first_are_kept() -> None:
    start = tuple(np.repeat(np.array([[row]], np.float32), 6, axis=1) for row in ([9, 9], [3, 0, 3], [0.1, 0.1, 0.1]))
    start[0][0, :, 0] += np.arange(6)
    settings = replace(SHARP, color_steps=0)
    pruned = splat2d.fit(IMAGES[:1], 6, recipe=settings, num_iters=0, start=start, prune_to=4)
    np.testing.assert_allclose(pruned.means[0, :4, 0], start[0][0, :4, 0], atol=1e-5)


def test_the_refit_makes_up_for_part_of_it_and_is_counted() -> None:
    images = pictures(3, 48, 48)
    plain, refitted = (
        splat2d.fit(
            images, 100, recipe=replace(SHARP, refit_share=share), num_iters=60, prune_score="loss", prune_to=60
        )
        for share in (0.0, 0.5)
    )
    assert (plain.iters == 60).all()
    assert (refitted.iters == 90).all()
    assert (refitted.psnr > plain.psnr + 0.5).all()


def test_loss_is_the_better_judge() -> None:
    images = pictures(4, 48, 48)
    by_loss, by_luminance = (
        splat2d.fit(images, 120, recipe=SHARP, num_iters=60, prune_to=80, prune_score=score)
        for score in ("loss", "luminance")
    )
    assert by_loss.psnr.mean() > by_luminance.psnr.mean() + 1


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="expected prune_to: an integer >= 1, got 0"):
        splat2d.fit(IMAGES, 4, prune_to=0)
    with pytest.raises(ValueError, match='expected prune_score "luminance" or "loss", got \'energy\''):
        splat2d.fit(IMAGES, 4, prune_score="energy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prune_threshold >= 0"):
        splat2d.fit(IMAGES, 4, prune_threshold=-1.0)
