"""As few Gaussians as reach a PSNR."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import splat2d
from splat2d_pictures import arrays, assert_same, pictures

IMAGES = pictures(5, 48, 56)
IMAGES[3] = 120  # little to show
GOAL = 33.0


@pytest.fixture(scope="module")
def result() -> splat2d.FitResult:
    return splat2d.fit(IMAGES, 600, min_gaussians=8, target_psnr=GOAL)


def test_each_picture_gets_its_own_number(result: splat2d.FitResult) -> None:
    assert result.reached.all()
    assert (np.delete(result.counts, 3) > result.counts[3]).all()
    assert len(set(result.counts.tolist())) >= 4
    for b, count in enumerate(result.counts):
        for values in (result.means, result.cholesky, result.colors):
            assert not values[b, count:].any()
        assert (result.cholesky[b, :count, 0] > 0).all()
    rendered = splat2d.render(result.means, result.cholesky, result.colors, 48, 56, counts=result.counts)
    np.testing.assert_allclose(splat2d.psnr(rendered, IMAGES), result.psnr, atol=2e-3)


def test_it_is_near_the_fewest_that_do(result: splat2d.FitResult) -> None:
    def reach(share: float) -> list[bool]:
        fits = (splat2d.fit(IMAGES[b], max(1, int(result.counts[b] * share)), target_psnr=GOAL) for b in (0, 1, 2, 4))
        return [bool(fit.reached[0]) for fit in fits]

    assert sum(reach(0.6)) == 0
    assert sum(reach(1.3)) == 4


def test_it_depends_on_neither_threads_nor_batch(result: splat2d.FitResult) -> None:
    assert_same(result, splat2d.fit(IMAGES, 600, min_gaussians=8, target_psnr=GOAL, threads=1))
    for index in (1, 3):
        alone = splat2d.fit(IMAGES[index], 600, min_gaussians=8, target_psnr=GOAL)
        for ours, theirs in zip(arrays(alone), arrays(result), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[index])


def test_out_of_reach_takes_all_that_are_allowed() -> None:
    result = splat2d.fit(IMAGES[:3], 60, min_gaussians=20, target_psnr=60.0)
    assert (result.counts == 60).all()
    assert not result.reached.any()
    plain = splat2d.fit(IMAGES[:3], 60)
    assert result.psnr.mean() > plain.psnr.mean() - 1


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_odd_bounds(recipe: str) -> None:
    for options in ({"num_iters": 0}, {"num_iters": 1}, {"num_iters": 30}):
        for fewest, most in ((1, 1), (5, 5), (1, 40)):
            result = splat2d.fit(IMAGES[:2], most, recipe=recipe, min_gaussians=fewest, target_psnr=20.0, **options)
            assert ((fewest <= result.counts) & (result.counts <= most)).all()
            assert np.isfinite(result.psnr).all()
    assert splat2d.fit(IMAGES[:0], 4, min_gaussians=1, target_psnr=20.0).means.shape == (0, 4, 2)


def test_progress_ends_with_all_pictures_and_can_stop() -> None:
    seen: list[int] = []
    splat2d.fit(IMAGES[:2], 50, min_gaussians=10, target_psnr=25.0, progress=seen.append)
    assert seen[-1] == 2
    assert set(seen[:-1]) <= {0}

    def stop(done: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        splat2d.fit(IMAGES, 500, min_gaussians=10, target_psnr=60.0, num_iters=100_000, progress=stop)


def test_wrong_combinations_are_named() -> None:
    images = IMAGES[:1]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"min_gaussians": 5}, "how few are enough is decided by target_psnr; give one"),
        ({"min_gaussians": 0, "target_psnr": 30.0}, "expected min_gaussians: an integer >= 1, got 0"),
        ({"min_gaussians": 9, "target_psnr": 30.0}, "expected min_gaussians of at most num_gaussians = 8, got 9"),
        ({"min_gaussians": 5, "target_psnr": 30.0, "prune_to": 3}, "leave out prune_to"),
        ({"min_gaussians": 5, "target_psnr": 30.0, "prune_threshold": 0.1}, "leave out prune_threshold"),
        (
            {"min_gaussians": 5, "target_psnr": 30.0, "recipe": replace(splat2d.RECIPES["paper"], prune_threshold=0.1)},
            "leave out prune_threshold",
        ),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            splat2d.fit(images, 8, **options)
