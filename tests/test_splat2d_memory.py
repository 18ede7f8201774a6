"""The fitter's own arrays: bytes a pixel and a Gaussian, at any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import splat2d
from splat2d import _core


def picture(height: int, width: int) -> np.ndarray:
    """Shading with detail everywhere, so that Gaussians spread over the whole picture."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + k)) * np.cos(y / (7 + k)) + np.sin((x + y) / 90) for k in range(3)]
    return np.asarray(127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)[None]


# Strips are as wide as a vector: a Gaussian as large as the picture has twice as many entries in narrower ones.
PER_GAUSSIAN = 256 if splat2d.backend() == "avx512" else 320


def allowed(height: int, width: int, number: int) -> int:
    return 64 * height * width + PER_GAUSSIAN * number


def allowed_at_any_size(height: int, width: int, number: int) -> int:
    """What does not grow with the picture tells in small ones, and in those that are a few rows or columns only."""
    return allowed(max(height, 16), max(width, 16), number) + 256 * 1024


def peak_of_fit(
    images: np.ndarray, number: int, recipe: str, threads: int = 1, num_iters: int = 2, **options: Any
) -> int:
    _core.reset_peak_bytes()
    held = _core.peak_bytes()
    splat2d.fit(images, number, recipe=recipe, num_iters=num_iters, threads=threads, **options)
    peak = _core.peak_bytes()
    _core.reset_peak_bytes()
    assert _core.peak_bytes() == held  # all of it was given back
    return peak - held


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize(
    ("height", "width", "number"),
    [(64, 64, 64), (64, 64, 1000), (224, 224, 400), (224, 224, 3136), (2000, 16, 900), (30, 1500, 900), (256, 256, 9)],
)
def test_a_fit_keeps_to_its_bytes(height: int, width: int, number: int, recipe: str) -> None:
    used = peak_of_fit(picture(height, width), number, recipe)
    assert used < allowed(height, width, number)
    assert used > 3 * height * width  # the target alone


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("num_iters", [0, 30])
@pytest.mark.parametrize(
    ("height", "width", "number"),
    [(1, 1, 1), (1, 2000, 10), (2000, 1, 10), (20, 20, 400), (64, 64, 4096), (96, 96, 9216)],
)
def test_small_and_crowded_pictures(height: int, width: int, number: int, num_iters: int, recipe: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3)).astype(np.uint8)
    for images in (noise, picture(height, width)):
        used = peak_of_fit(images, number, recipe, num_iters=num_iters)
        assert used < allowed_at_any_size(height, width, number)


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("size", [2.0, 100.0])
@pytest.mark.parametrize(("given", "number"), [(5000, 100), (100, 5000), (4096, 4096)])
def test_warm_starts_count_the_larger_number(given: int, number: int, size: float, recipe: str) -> None:
    height = width = 96
    means = np.random.default_rng(0).uniform(0, 96, (1, given, 2)).astype(np.float32)
    start = (means, np.tile(np.array([size, 0, size], np.float32), (1, given, 1)), np.full((1, given, 3), 1e-3))
    used = peak_of_fit(picture(height, width), number, recipe, start=start)
    assert used < allowed_at_any_size(height, width, max(given, number))


def test_a_large_picture_keeps_to_its_bytes() -> None:
    assert peak_of_fit(picture(1024, 1024), 20_000, "default") < allowed(1024, 1024, 20_000)


def test_threads_hold_their_own() -> None:
    images = np.repeat(picture(96, 96), 4, axis=0)
    assert peak_of_fit(images, 300, "default", threads=2) < 2 * allowed(96, 96, 300)


def test_wide_gaussians_keep_to_their_bytes() -> None:
    """Each of 20 covers the whole picture, among 4000 small ones."""
    height, width, number = 512, 512, 4020
    rng = np.random.default_rng(0)
    means = rng.uniform(0, 511, (1, number, 2)).astype(np.float32)
    cholesky = np.tile(np.array([2, 0.3, 2], np.float32), (1, number, 1))
    cholesky[:, :10] = 300, 0, 300
    cholesky[:, 10:20] = 300, 4000, 0.2  # steep: the row recurrence starts anew in almost every row
    colors = np.full((1, number, 3), 1e-3, np.float32)
    _core.reset_peak_bytes()
    held = _core.peak_bytes()
    _core.loss_and_grad(means, cholesky, colors, picture(height, width), 0.0, 1)
    assert _core.peak_bytes() - held < allowed(height, width, number)
