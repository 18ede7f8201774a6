"""Fits whose loss also weighs the residual patch by patch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import splat2d

PATCH = 7  # 147 values: no multiple of any vector
STEADY = replace(splat2d.RECIPES["default"], name="steady", start_share=1.0, grow_steps=0, move_steps=0)


@pytest.fixture(scope="module")
def pictures() -> npt.NDArray[np.uint8]:
    """Blocks of random colours, [2, 21, 35, 3]: 15 patches each."""
    blocks = np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3))
    return blocks.repeat(4, axis=1).repeat(5, axis=2).astype(np.uint8)[:, :21]


def seen(result: splat2d.FitResult, pictures: npt.NDArray[np.uint8], metric: npt.NDArray[np.float64]) -> float:
    """The sum over pictures and patches of |metric . residual|^2."""
    height, width = pictures.shape[1:3]
    residual = splat2d.render(result.means, result.cholesky, result.colors, height, width) - pictures / 255.0
    rows, columns = height // PATCH, width // PATCH
    patches = residual.reshape(-1, rows, PATCH, columns, PATCH, 3).swapaxes(2, 3).reshape(-1, 3 * PATCH**2)
    return float(np.square(patches @ metric.T).sum())


def test_what_the_metric_sees_is_fitted(pictures: npt.NDArray[np.uint8]) -> None:
    """Under a heavy metric of three random rows hardly anything is left of what they see."""
    metric = np.random.default_rng(1).normal(size=(3, 3 * PATCH**2)) * 3
    plain, fitted = (splat2d.fit(pictures, 20, recipe=STEADY, metric=rows) for rows in (None, metric))
    assert seen(fitted, pictures, metric) < 0.1 * seen(plain, pictures, metric)
    assert fitted.psnr.mean() < plain.psnr.mean()


@pytest.mark.parametrize("recipe", [STEADY, "paper"])
def test_weighing_all_values_alike_changes_nothing(
    pictures: npt.NDArray[np.uint8], recipe: str | splat2d.Recipe
) -> None:
    """A metric of the identity scales the gradient; the steps do not see its size."""
    plain, fitted = (
        splat2d.fit(pictures, 12, recipe=recipe, num_iters=8, metric=rows)
        for rows in (None, 1.7 * np.eye(3 * PATCH**2))
    )
    for one, other in zip(plain.arrays()[:3], fitted.arrays()[:3], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


def test_results_depend_on_neither_threads_nor_batch(pictures: npt.NDArray[np.uint8]) -> None:
    metric = np.random.default_rng(2).normal(size=(40, 3 * PATCH**2))
    both = splat2d.fit(pictures, 12, num_iters=30, metric=metric, threads=2)
    alone = splat2d.fit(pictures[1], 12, num_iters=30, metric=metric, threads=1)
    for one, other in zip(both.arrays(), alone.arrays(), strict=True):
        np.testing.assert_array_equal(one[1:], other)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (np.zeros((0, 147)), "expected metric float"),
        (np.zeros((2, 146)), "expected metric float"),
        (np.zeros((2, 147), int), "expected metric float"),
        (np.zeros(147), "expected metric float"),
        (np.zeros((2, 3 * 8**2)), "8 x 8 pixels do not tile pictures of 21 x 35"),
        (np.full((2, 147), np.nan), "within 10000, got nan"),
        (np.full((2, 147), 2e4), "within 10000, got 20000"),
    ],
)
def test_what_is_no_metric_is_refused(
    pictures: npt.NDArray[np.uint8], metric: npt.NDArray[np.float64], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        splat2d.fit(pictures, 4, metric=metric)


def test_cuda_refuses_a_metric(pictures: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splat2d.fitting.device_of", lambda device: None)  # as on a machine that has one
    with pytest.raises(ValueError, match=r'metric: device="cuda" fits by pixels alone'):
        splat2d.fit(pictures, 4, metric=np.ones((1, 147)), device="cuda")
