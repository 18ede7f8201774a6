"""Fits that end early, that start from other splats, and grey pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import splat2d
from splat2d_pictures import arrays, assert_same, pictures

IMAGES = pictures(4, 48, 56)


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_target_ends_each_picture_as_it_is_reached(recipe: str) -> None:
    budget = {"default": 200, "paper": 1000}[recipe]
    goal = float(np.median(splat2d.fit(IMAGES, 120, recipe=recipe, num_iters=budget // 2).psnr))
    result = splat2d.fit(IMAGES, 120, recipe=recipe, num_iters=budget, target_psnr=goal)
    assert result.target_psnr == goal
    assert result.reached.sum() >= 2
    np.testing.assert_array_equal(result.reached, result.psnr >= np.float32(goal))
    assert (result.iters[result.reached] < budget).all()
    assert (result.iters[~result.reached] == budget).all()
    assert (result.psnr[result.reached] < goal + 2).all()  # no later than need be
    rendered = splat2d.render(result.means, result.cholesky, result.colors, 48, 56)
    np.testing.assert_allclose(splat2d.psnr(rendered, IMAGES), result.psnr, atol=2e-3)


def test_a_target_out_of_reach_costs_little() -> None:
    free, bound = (splat2d.fit(IMAGES, 120, num_iters=150, target_psnr=goal) for goal in (None, 99.0))
    assert (bound.iters == 150).all()
    assert not bound.reached.any()
    assert bound.psnr.mean() > free.psnr.mean() - 1.5


def test_a_target_below_the_start_takes_no_step() -> None:
    assert (splat2d.fit(IMAGES, 120, target_psnr=5.0).iters == 0).all()


def test_a_plateau_ends_pictures_where_little_is_to_be_gained() -> None:
    flat = np.full((1, 48, 56, 3), 90, np.uint8)
    images = np.concatenate([IMAGES, flat])
    whole = splat2d.fit(images, 80, num_iters=600)
    early, later = (splat2d.fit(images, 80, num_iters=600, plateau=gain) for gain in (1.0, 0.05))
    assert (early.iters < 600).all()
    assert early.iters.mean() < later.iters.mean()
    assert early.psnr[:4].mean() > whole.psnr[:4].mean() - 6  # beyond 40 dB one picture varies by dB with rounding
    assert later.psnr[:4].mean() > early.psnr[:4].mean()


@pytest.mark.parametrize("options", [{"target_psnr": 27.0}, {"plateau": 2.0}, {"target_psnr": 38.0, "plateau": 2.0}])
def test_early_ends_depend_on_neither_threads_nor_batch(options: dict[str, Any]) -> None:
    options |= {"num_iters": 400}
    whole = splat2d.fit(IMAGES, 90, threads=1, **options)
    assert len(set(whole.iters.tolist())) > 1
    assert_same(whole, splat2d.fit(IMAGES, 90, threads=2, **options))
    for index in range(len(IMAGES)):
        alone = splat2d.fit(IMAGES[index], 90, threads=1, **options)
        for ours, theirs in zip(arrays(alone), arrays(whole), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[index])


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_start_is_where_the_fit_begins(recipe: str) -> None:
    first = splat2d.fit(IMAGES, 100, num_iters=80)
    given = (first.means, first.cholesky, first.colors)
    same = splat2d.fit(IMAGES, 100, recipe=recipe, num_iters=0, start=given)
    np.testing.assert_allclose(same.psnr, first.psnr, atol=0.3)  # color_steps may better it
    assert (same.psnr > first.psnr - 0.05).all()
    np.testing.assert_allclose(same.means, first.means, atol=1e-4)
    np.testing.assert_allclose(same.cholesky, first.cholesky, rtol=1e-4, atol=1e-4)
    later = (IMAGES * 0.9).astype(np.uint8)  # the next frame: it grows dark
    warm, cold = (splat2d.fit(later, 100, num_iters=30, start=begin) for begin in (given, None))
    assert warm.psnr.mean() > cold.psnr.mean() + 1


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, 1, -1), (-1, -1, -1)])
def test_the_signs_of_columns_mean_nothing(recipe: str, signs: tuple[int, int, int]) -> None:
    """L and L with a column negated have the same L L^T."""
    first = splat2d.fit(IMAGES, 100, num_iters=40)
    flipped = first.cholesky * np.array(signs, np.float32)
    given, other = (
        splat2d.fit(IMAGES, 100, recipe=recipe, num_iters=15, start=(first.means, cholesky, first.colors))
        for cholesky in (first.cholesky, flipped)
    )
    assert (np.abs(first.cholesky[..., 1]) > 0.2).any()
    assert_same(given, other)


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("extreme", [(1e15, 0, 1), (1, 1e25, 1), (1, -1e25, 1e-20), (1e30, 1e30, 1e30), (1e-30, 1, 1)])
@pytest.mark.parametrize("place", [20.0, -1e30])
def test_extreme_starts_stay_finite(recipe: str, extreme: tuple[float, float, float], place: float) -> None:
    first = splat2d.fit(IMAGES, 30, num_iters=20)
    first.cholesky[:, 3] = extreme
    first.means[:, 3] = place
    first.colors[:, 3] = 5.0
    start = (first.means, first.cholesky, first.colors)
    result = splat2d.fit(IMAGES, 30, recipe=recipe, num_iters=30, start=start)
    for values in arrays(result):
        assert np.isfinite(values).all()


def test_a_plateau_of_a_warm_start_does_not_wait_for_growth() -> None:
    """All Gaussians are there: the first look, after 32 iterations, brings the end."""
    first = splat2d.fit(IMAGES, 100, num_iters=100)
    start = (first.means, first.cholesky, first.colors)
    assert (splat2d.fit(IMAGES, 100, num_iters=400, start=start, plateau=30.0).iters < 50).all()


def test_an_exact_picture_reaches_the_highest_psnr() -> None:
    black = np.zeros((1, 48, 56, 3), np.uint8)
    result = splat2d.fit(black, 10, recipe="paper", num_iters=300, target_psnr=99.9999)
    assert result.iters[0] < 300
    assert result.reached.all()


@pytest.mark.parametrize("number", [60, 100, 170])
def test_a_start_of_another_number_is_brought_to_it(number: int) -> None:
    images = IMAGES[:2]
    first = splat2d.fit(images, 100, num_iters=60)
    counts = np.array([100, 80])
    start = (first.means, first.cholesky, first.colors, counts)
    result = splat2d.fit(images, number, num_iters=40, start=start)
    assert (result.counts == number).all()
    begun = splat2d.fit(images, number, num_iters=0, start=start)
    assert result.psnr.mean() > begun.psnr.mean()
    if number > 100:
        left = [values[:, :100] * (np.arange(100) < counts[:, None])[..., None] for values in start[:3]]
        assert (begun.psnr > splat2d.psnr(splat2d.render(*left, 48, 56), images) + 0.2).all()  # made up: a gain at once
        assert (result.psnr > first.psnr).all()


def test_grey_pictures_give_three_equal_channels() -> None:
    grey = np.ascontiguousarray(IMAGES[..., 0])
    forms = [grey, grey[..., None], np.repeat(grey[..., None], 3, axis=-1)]
    results = [splat2d.fit(form, 50, num_iters=20) for form in forms]
    for result in results[1:]:
        assert_same(results[0], result)
    np.testing.assert_allclose(results[0].colors, results[0].colors[..., :1].repeat(3, -1), atol=1e-4)
    one = splat2d.fit(grey[0], 50, num_iters=20)
    np.testing.assert_array_equal(one.means[0], results[0].means[0])
    assert splat2d.fit(np.zeros((9, 3), np.uint8), 2, num_iters=1).means.shape == (1, 2, 2)
    assert splat2d.fit(np.zeros((5, 9, 3), np.uint8), 2, num_iters=1).means.shape == (1, 2, 2)


def test_wrong_options_are_named() -> None:
    images = IMAGES[:1]
    for value in (0.0, -3.0, float("nan"), float("inf"), "30", True):
        with pytest.raises(ValueError, match="expected target_psnr: a finite number above 0"):
            splat2d.fit(images, 4, target_psnr=value)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected plateau: a finite number above 0"):
            splat2d.fit(images, 4, plateau=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the fit had no target_psnr"):
        _ = splat2d.fit(images, 4, num_iters=0).reached
    means, shapes = np.zeros((1, 5, 2), np.float32), np.ones((1, 5, 3), np.float32)
    with pytest.raises(ValueError, match=r"expected start: \(means, cholesky, colors\) and maybe counts, got 2 arrays"):
        splat2d.fit(images, 4, start=(means, shapes))
    with pytest.raises(ValueError, match=r"expected start: .* got int"):
        splat2d.fit(images, 4, start=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"start: expected colors within 10000 .* got 1e\+18 in picture 0"):
        splat2d.fit(images, 4, start=(means, shapes, shapes * 1e18))
    with pytest.raises(ValueError, match="start: expected colors float"):
        splat2d.fit(images, 4, start=(means, shapes, means))
    with pytest.raises(ValueError, match="expected start for 2 pictures"):
        splat2d.fit(IMAGES[:2], 4, start=(means, shapes, shapes))
    with pytest.raises(ValueError, match="start: picture 0 has a Gaussian whose l00 or l11 is 0 among its 5"):
        splat2d.fit(images, 4, start=(means, shapes * 0, shapes))
    with pytest.raises(ValueError, match=r"expected counts in 0\.\.5"):
        splat2d.fit(images, 4, start=(means, shapes, shapes, [6]))
    assert splat2d.fit(images, 7, num_iters=2, start=(means, shapes * 0, shapes, [0])).counts == [7]
