"""Growth: a fit adds Gaussians where the error is largest, and moves the weakest there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import splat2d

DEFAULT = splat2d.RECIPES["default"]
STILL = replace(DEFAULT, move_steps=0)
AT_ONCE = replace(STILL, start_share=1.0, grow_steps=0)
CELL_SHARE = 0.4  # kCellShare of growth.h
ARRAYS = ("means", "cholesky", "colors", "counts", "psnr")


def planted(batch: int = 1, size: int = 96) -> npt.NDArray[np.uint8]:
    """Strong smooth waves, and in one corner (x 8 to 31, y 60 to 83) faint fine noise that gradients hardly show."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:size, :size] / size
    out = np.empty((batch, size, size, 3))
    for b in range(batch):
        out[b] = (0.5 + 0.4 * np.sin(23 * x + b) * np.cos(19 * y))[..., None]
        out[b, 60:84, 8:32] += np.kron(rng.uniform(-0.1, 0.1, (12, 12, 3)), np.ones((2, 2, 1)))
    return np.asarray(np.round(np.clip(out, 0, 1) * 255), dtype=np.uint8)


def assert_same(first: splat2d.FitResult, second: splat2d.FitResult) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def test_growth_beats_a_fit_that_begins_with_all_gaussians() -> None:
    images = planted(4)
    grown, at_once = (splat2d.fit(images, 160, recipe=recipe, num_iters=150) for recipe in (DEFAULT, AT_ONCE))
    assert (grown.counts == 160).all()
    assert (grown.psnr > at_once.psnr + 1.5).all()


def worst_cells(residual: npt.NDArray[np.float64], number: int) -> npt.NDArray[np.float64]:
    """Centres of mass (x, y) of the squared residual in the `number` worst square cells, row by row."""
    height, width, _ = residual.shape
    side = max(1, round(CELL_SHARE * np.sqrt(height * width / number)))
    cells = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            error = np.square(residual[top : top + side, left : left + side]).sum(axis=2)
            y, x = np.indices(error.shape)
            weight = error.sum()
            cells.append((weight, left + (error * x).sum() / weight, top + (error * y).sum() / weight))
    chosen = sorted(range(len(cells)), key=lambda i: -cells[i][0])[:number]
    return np.array([cells[i][1:] for i in sorted(chosen)])


@pytest.mark.parametrize("name", ["default", "paper"])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (50, 67)])
def test_new_gaussians_come_where_the_error_is(name: str, height: int, width: int) -> None:
    """One part added before the last step, which is tiny: what stands last is black, round, and where the rest errs."""
    recipe = replace(
        splat2d.RECIPES[name], start_share=0.7, grow_steps=1, grow_first=0.99, grow_last=0.99, move_steps=0
    )
    images = planted()[:, -height:, :width]
    result = splat2d.fit(images, 100, recipe=replace(recipe, lr_final=1e-6), num_iters=150)
    old, new = slice(70), slice(70, 100)
    parts = [array[:, old] for array in (result.means, result.cholesky, result.colors)]
    residual = splat2d.render(*parts, height, width) - images / 255.0
    np.testing.assert_allclose(result.means[0, new], worst_cells(residual[0], 30), atol=0.02)
    np.testing.assert_allclose(result.colors[0, new], 0, atol=1e-4)
    np.testing.assert_allclose(result.cholesky[0, new, 0], result.cholesky[0, new, 2], rtol=1e-3)
    np.testing.assert_allclose(result.cholesky[0, new, 1], 0, atol=1e-3)


def test_growth_does_not_depend_on_threads_or_batch() -> None:
    images = planted(3)
    recipe = replace(DEFAULT, start_share=0.4, grow_steps=3, grow_first=0.2, grow_last=0.6)
    result = splat2d.fit(images, 101, recipe=recipe, num_iters=30, threads=1)
    assert (result.counts == 101).all()
    assert_same(result, splat2d.fit(images, 101, recipe=recipe, num_iters=30, threads=3))
    alone = splat2d.fit(images[1], 101, recipe=recipe, num_iters=30)
    np.testing.assert_array_equal(result.means[1], alone.means[0])
    np.testing.assert_array_equal(result.psnr[1], alone.psnr[0])


@pytest.mark.parametrize("number", [1, 2, 7, 35])
@pytest.mark.parametrize("num_iters", [0, 1, 2, 5])
def test_every_gaussian_is_placed_however_short_the_fit(number: int, num_iters: int) -> None:
    """Pictures of 5 x 7 pixels, one of a single colour: no error anywhere decides nothing, and nothing is left out."""
    images = np.stack([planted(1, 96)[0, 60:65, 8:15], np.zeros((5, 7, 3), np.uint8)])
    result = splat2d.fit(images, number, num_iters=num_iters)
    assert (result.counts == number).all()
    assert (result.cholesky[..., [0, 2]] > 0).all()
    assert np.isfinite(result.means).all()
    assert (result.means[..., 0] > -4).all()
    assert (result.means[..., 0] < 11).all()


@pytest.mark.parametrize("num_iters", [1, 7, 200])
def test_growth_at_the_very_end_leaves_none_out(num_iters: int) -> None:
    late = replace(DEFAULT, grow_first=0.999999999, grow_last=0.999999999, move_last=0.999999999)
    assert splat2d.fit(planted(), 100, recipe=late, num_iters=num_iters).counts == [100]


@pytest.mark.parametrize("name", ["default", "paper"])
@pytest.mark.parametrize("field", ["lambda_color", "lr_color"])
def test_errors_that_are_no_numbers_choose_no_cells(name: str, field: str) -> None:
    """Every Gaussian is still placed. Such settings are refused; here they go round the check."""
    growing: dict[str, Any] = {"start_share": 0.2, "grow_steps": 3, "grow_first": 0.2, "grow_last": 0.6}
    recipe = replace(splat2d.RECIPES[name], num_iters=10, move_share=0.3, move_steps=2, move_last=0.8, **growing)
    object.__setattr__(recipe, field, 3e38)
    result = splat2d.fit(planted(2)[:, 48:, :48], 600, recipe=recipe)
    assert not np.isfinite(result.means).all()
    assert (result.counts == 600).all()


@pytest.mark.parametrize("name", ["default", "paper"])
def test_the_weakest_move_to_where_the_error_is(name: str) -> None:
    """They move before the last step, which is tiny: beside a fit without moves, only they are different."""
    recipe = replace(splat2d.RECIPES[name], start_share=1.0, grow_steps=0, grow_first=0, grow_last=0, lr_final=1e-6)
    moving = replace(recipe, move_share=0.2, move_steps=1, move_last=0.99)
    still, moved = (
        splat2d.fit(planted(), 100, recipe=chosen, num_iters=150) for chosen in (replace(recipe, move_steps=0), moving)
    )
    area = still.cholesky[0, :, 0] * still.cholesky[0, :, 2]
    weakest = np.sort(np.argsort(np.square(still.colors[0]).sum(axis=1) * area)[:20])
    others = np.setdiff1d(np.arange(100), weakest)
    np.testing.assert_allclose(moved.means[0, others], still.means[0, others], atol=1e-3)
    np.testing.assert_allclose(moved.colors[0, others], still.colors[0, others], atol=1e-3)
    residual = splat2d.render(moved.means, moved.cholesky, moved.colors, 96, 96) - planted() / 255.0
    np.testing.assert_allclose(moved.colors[0, weakest], 0, atol=1e-4)
    np.testing.assert_allclose(moved.means[0, weakest], worst_cells(residual[0], 20), atol=0.02)


def test_moves_beat_a_fit_without() -> None:
    images = planted(4)
    moving, still = (splat2d.fit(images, 160, recipe=recipe) for recipe in (DEFAULT, STILL))
    assert (moving.counts == 160).all()
    assert (moving.psnr - still.psnr).mean() > 0.05


def test_quality_gives_more_db_in_more_time() -> None:
    images = planted(4)
    default, quality = (splat2d.fit(images, 160, recipe=name) for name in ("default", "quality"))
    assert quality.num_iters > default.num_iters
    assert (quality.counts == 160).all()
    assert (quality.psnr > default.psnr + 0.5).all()


def test_pruning_is_not_undone_by_growth() -> None:
    result = splat2d.fit(planted(), 120, num_iters=60, prune_threshold=0.05)
    assert 0 < result.counts[0] < 120


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_share": 0.0},
        {"start_share": 1.5},
        {"grow_steps": -1},
        {"grow_first": 0.5, "grow_last": 0.4},
        {"grow_first": 0.5, "grow_last": 1.1},
        {"grow_first": -0.1},
        {"move_steps": -1},
        {"move_share": 1.0},
        {"move_share": -0.1},
        {"move_last": 0.4},
        {"move_last": 1.0},
        {"grow_last": 1.0},
        {"grow_steps": 2.5},
    ],
)
def test_wrong_growth_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="recipe default: expected"):
        replace(DEFAULT, **wrong)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (40, 130)])
def test_no_gaussian_outgrows_the_picture(height: int, width: int) -> None:
    """Faint stripes a few degrees off an axis: what fits them best is long and thin."""
    y, x = np.mgrid[:height, :width]
    stripes = 128 + 20 * np.sin((x + 0.04 * y) / 2) + 20 * np.sin((y + 0.03 * x) / 3)
    images = np.repeat(stripes[None, ..., None], 3, axis=-1).astype(np.uint8)
    result = splat2d.fit(images, 150, recipe="quality")
    lower = np.zeros((150, 2, 2))
    lower[:, 0, 0], lower[:, 1, 0], lower[:, 1, 1] = result.cholesky[0].T
    longest = 0.45 * max(height, width) + 2  # scale_max
    assert np.linalg.norm(lower, ord=2, axis=(1, 2)).max() < 1.5 * longest
    assert abs(lower[:, 0, 0]).max() < 1.001 * longest
