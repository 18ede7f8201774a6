"""Fitting: what a recipe promises, whatever the picture's size, the threads or the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import splat2d
from splat2d_pictures import arrays, assert_same, pictures


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_fitting_improves_and_reports_what_render_shows(recipe: str) -> None:
    images = pictures(3, 48, 64)
    start, end = (splat2d.fit(images, 100, recipe=recipe, num_iters=its) for its in (0, 150))
    assert (end.psnr > start.psnr + 3).all()
    assert (end.psnr > 24).all()
    rendered = splat2d.render(end.means, end.cholesky, end.colors, 48, 64)
    np.testing.assert_allclose(splat2d.psnr(rendered, images), end.psnr, atol=2e-3)
    assert end.means.shape == (3, 100, 2)
    assert end.cholesky.shape == end.colors.shape == (3, 100, 3)
    assert (end.counts == 100).all()
    assert end.num_iters == 150
    assert (end.cholesky[..., [0, 2]] > 0).all()


def test_default_beats_paper_at_the_same_iterations() -> None:
    images = pictures(4, 64, 64)
    default, paper = (splat2d.fit(images, 100, recipe=name, num_iters=100) for name in ("default", "paper"))
    assert default.psnr.mean() > paper.psnr.mean() + 1


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_results_do_not_depend_on_threads_or_batches(recipe: str) -> None:
    images = pictures(5, 40, 33)
    whole = splat2d.fit(images, 60, recipe=recipe, num_iters=30, threads=1, seed=3)
    assert_same(whole, splat2d.fit(images, 60, recipe=recipe, num_iters=30, threads=2, seed=3))
    for index in range(5):
        alone = splat2d.fit(images[index], 60, recipe=recipe, num_iters=30, threads=1, seed=3)
        for ours, theirs in zip(arrays(alone), arrays(whole), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[index])


def test_seed_decides_the_start() -> None:
    images = pictures(1, 32, 32)
    first, again, other = (splat2d.fit(images, 40, num_iters=5, seed=seed) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not np.array_equal(first.means, other.means)


@pytest.mark.parametrize(
    ("height", "width", "number"),
    [(1, 1, 1), (1, 9, 1), (1, 37, 37), (23, 1, 5), (2, 2, 4), (17, 31, 1), (9, 13, 117), (33, 16, 50), (15, 200, 64)],
)
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_any_size_and_number(height: int, width: int, number: int, recipe: str) -> None:
    images = pictures(2, height, width)
    result = splat2d.fit(images, number, recipe=recipe, num_iters=40)
    for values in arrays(result):
        assert np.isfinite(values).all()
    rendered = splat2d.render(result.means, result.cholesky, result.colors, height, width)
    np.testing.assert_allclose(splat2d.psnr(rendered, images), result.psnr, atol=5e-3)
    assert (result.psnr > 8).all()


@pytest.mark.parametrize("value", [0, 1, 128, 255])
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_constant_pictures(value: int, recipe: str) -> None:
    images = np.full((1, 24, 24, 3), value, np.uint8)
    result = splat2d.fit(images, 16, recipe=recipe, num_iters=100)
    for values in arrays(result):
        assert np.isfinite(values).all()
    assert result.psnr[0] > 22


def test_pruning_drops_dim_gaussians_and_counts() -> None:
    images = pictures(3, 32, 32)
    images[:, :, :16] = 0  # half of each picture is black: its Gaussians have nothing to show
    whole = splat2d.fit(images, 100, recipe="paper", num_iters=60)
    pruned = splat2d.fit(images, 100, recipe="paper", num_iters=60, prune_threshold=0.05)
    score = np.abs(whole.colors) @ np.array([0.2126, 0.7152, 0.0722])
    np.testing.assert_array_equal(pruned.counts, (score >= 0.05).sum(axis=1))
    assert (pruned.counts < 90).all()
    assert (pruned.counts > 10).all()
    for b, count in enumerate(pruned.counts):
        assert not pruned.colors[b, count:].any()
        assert not pruned.cholesky[b, count:].any()
    rendered = splat2d.render(pruned.means, pruned.cholesky, pruned.colors, 32, 32, counts=pruned.counts)
    np.testing.assert_allclose(splat2d.psnr(rendered, images), pruned.psnr, atol=2e-3)
    everything = splat2d.fit(images, 100, recipe="paper", num_iters=10, prune_threshold=100.0)
    assert (everything.counts == 0).all()


def test_lambda_shrinks_colours() -> None:
    images = pictures(2, 32, 32)
    loose, tight = (splat2d.fit(images, 64, num_iters=60, lambda_color=weight) for weight in (0.0, 3e-3))
    assert np.abs(tight.colors).sum() < 0.95 * np.abs(loose.colors).sum()


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_channels_are_treated_alike(recipe: str) -> None:
    """A grey picture keeps grey Gaussians, and the L1 term shrinks each channel: no channel is left out of a step."""
    grey = np.repeat(pictures(2, 32, 32).mean(-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    sums = []
    for weight in (0.0, 3e-3):
        colors = splat2d.fit(grey, 32, recipe=recipe, num_iters=60, lambda_color=weight).colors
        np.testing.assert_allclose(colors, np.repeat(colors[..., :1], 3, axis=-1), rtol=0, atol=1e-4)
        sums.append(np.abs(colors).sum((0, 1)))
    assert (sums[1] < sums[0]).all()


def test_unusual_memory_layouts_are_taken() -> None:
    images = pictures(2, 20, 24)
    wide = np.zeros((2, 20, 48, 3), np.uint8)
    wide[:, :, ::2] = images
    assert_same(splat2d.fit(images, 9, num_iters=5), splat2d.fit(wide[:, :, ::2], 9, num_iters=5))


def test_empty_batch() -> None:
    result = splat2d.fit(np.zeros((0, 8, 8, 3), np.uint8), 4)
    assert result.means.shape == (0, 4, 2)


def test_progress_is_called_and_can_stop() -> None:
    images = pictures(4, 64, 64)
    seen: list[int] = []
    splat2d.fit(images, 64, num_iters=20, progress=seen.append)
    assert seen[-1] == 4

    def stop(done: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        splat2d.fit(images, 1000, recipe="paper", num_iters=100000, progress=stop)


BACKEND_CODE = """
import sys, numpy as np, splat2d
images = np.load(sys.argv[1])
r = splat2d.fit(images, 80, num_iters=40)
picture = splat2d.render(r.means, r.cholesky, r.colors, *images.shape[1:3])
np.savez(sys.argv[2], backend=splat2d.backend(), psnr=r.psnr, picture=picture)
"""


def run_backend(name: str, source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BACKEND_CODE, str(source), str(target)]
    environment = os.environ | {"SPLAT2D_BACKEND": name}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_all_backends_agree(tmp_path: Path) -> None:
    images = pictures(3, 48, 52)
    np.save(tmp_path / "images.npy", images)
    found = {}
    for name in ("portable", "avx2", "avx512"):
        done = run_backend(name, tmp_path / "images.npy", tmp_path / f"{name}.npz")
        if name != "portable" and "does not support it" in done.stderr:
            continue
        assert done.returncode == 0, done.stderr
        found[name] = np.load(tmp_path / f"{name}.npz")
        assert found[name]["backend"] == name
    for name, values in found.items():
        # Rounding differs, and 40 steps of a descent enlarge it: the pictures stay the same to the eye.
        assert np.abs(values["psnr"] - found["portable"]["psnr"]).max() < 0.2, name
        assert np.abs(values["picture"] - found["portable"]["picture"]).mean() < 5e-3, name


def test_unknown_backend_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", pictures(1, 16, 16))
    done = run_backend("sse9", tmp_path / "images.npy", tmp_path / "out.npz")
    assert done.returncode != 0
    assert "SPLAT2D_BACKEND=sse9" in done.stderr


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 4), np.float32), r"expected images uint8 \[B, H, W, 3\], or grey .*, got float32 \[3, 4\]"),
        (np.zeros((1, 4, 4, 3), np.float32), r"got float32 \[1, 4, 4, 3\]"),
        (np.zeros((1, 4, 4, 4), np.uint8), r"got uint8 \[1, 4, 4, 4\]"),
        (np.zeros((1, 0, 4, 3), np.uint8), r"got uint8 \[1, 0, 4, 3\]"),
    ],
)
def test_wrong_pictures(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splat2d.fit(images, 1)


@pytest.mark.parametrize("number", [0, -1, 65, 2.0, True])
def test_wrong_numbers(number: Any) -> None:
    with pytest.raises(ValueError, match="expected num_gaussians"):
        splat2d.fit(pictures(1, 8, 8), number)


def test_wrong_settings() -> None:
    images = pictures(1, 8, 8)
    with pytest.raises(ValueError, match="unknown recipe 'papr'"):
        splat2d.fit(images, 4, recipe="papr")
    with pytest.raises(ValueError, match="num_iters >= 0, got -1"):
        splat2d.fit(images, 4, num_iters=-1)
    with pytest.raises(ValueError, match="lambda_color >= 0"):
        splat2d.fit(images, 4, lambda_color=float("nan"))
    with pytest.raises(ValueError, match=r"beta1 in \[0, 1\)"):
        replace(splat2d.RECIPES["default"], beta1=1.0)
    for name, value in (("lr_color", float("inf")), ("lambda_color", 1e38), ("num_iters", 2**31)):
        with pytest.raises(ValueError, match=f"expected {name} of at most"):
            replace(splat2d.RECIPES["default"], **{name: value})
    for name, kind in (("num_iters", "an integer"), ("lambda_color", "a number"), ("lr_shape", "a number")):
        with pytest.raises(ValueError, match=f"expected {name}: {kind}, got 'x'"):
            replace(splat2d.RECIPES["default"], **{name: "x"})
    for name, most in (("seed", 2**64), ("threads", 2**31), ("prune_to", 2**31)):
        with pytest.raises(ValueError, match=f"expected {name}: an integer of at most {most - 1}, got {most}"):
            splat2d.fit(images, 4, **{name: most})
    with pytest.raises(ValueError, match='device "cpu" or "cuda"'):
        splat2d.fit(images, 4, device="tpu")


def test_missing_cuda_names_the_remedy() -> None:
    if splat2d.has_cuda():
        pytest.skip("this build has CUDA and a device")
    with pytest.raises(RuntimeError, match="SPLAT2D_CUDA=ON"):
        splat2d.fit(pictures(1, 8, 8), 4, device="cuda")


def test_wrong_splats() -> None:
    means, shapes = np.zeros((1, 2, 2), np.float32), np.ones((1, 2, 3), np.float32)
    with pytest.raises(ValueError, match=r"expected cholesky float \[B, N, 3\].*got float32 \[1, 3, 3\]"):
        splat2d.render(means, np.ones((1, 3, 3), np.float32), shapes, 4, 4)
    with pytest.raises(ValueError, match="expected finite means"):
        splat2d.render(means * np.nan, shapes, shapes, 4, 4)
    with pytest.raises(ValueError, match=r"expected counts in 0\.\.2, got 3\.\.3"):
        splat2d.render(means, shapes, shapes, 4, 4, counts=[3])
    assert not splat2d.render(means, shapes * [0, 0, 1], shapes, 4, 4).any()  # degenerate: draws nothing
