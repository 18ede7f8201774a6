"""Evidence ladder: finite differences -> float64 reference -> native code -> torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from splat2d import _core, reference, render
from splat2d import torch as splat2d_torch

HEIGHT, WIDTH, NUMBER = 37, 45, 30
# Float32 against float64, sums over at most 37 x 45 pixels, the row recurrence restarted every 16 rows.
RENDER_TOLERANCE = 3e-5
GRADIENT_TOLERANCE = 2e-5  # relative to the largest gradient
# A pixel this close to the cut-off may fall on either side of it in float32.
EDGE = 2e-4


def scene(seed: int, *, number: int = NUMBER, height: int = HEIGHT, width: int = WIDTH) -> tuple[Any, Any, Any, Any]:
    """Gaussians of all sizes and slants, some beyond the picture's edge, and a picture of noise."""
    rng = np.random.default_rng(seed)
    means = rng.uniform(-4, [width + 4, height + 4], (number, 2))
    slant = rng.uniform(-8, 8, number)
    cholesky = np.stack([rng.uniform(0.3, 9, number), slant, rng.uniform(0.3, 9, number)], axis=1)
    colors = rng.normal(size=(number, 3))
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    means, cholesky, colors = (a.astype(np.float32).astype(np.float64) for a in (means, cholesky, colors))
    return means, cholesky, colors, image


def as_batch(*arrays: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float32]]:
    return [array.astype(np.float32)[None] for array in arrays]


def far_from_edge(means: Any, cholesky: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    inner = reference.values(means, cholesky, height, width, 3.0 - EDGE) > 0
    outer = reference.values(means, cholesky, height, width, 3.0 + EDGE) > 0
    return np.asarray((inner == outer).all(axis=0))


@pytest.mark.parametrize("array", ["means", "cholesky", "colors"])
def test_reference_agrees_with_finite_differences(array: str) -> None:
    means, cholesky, colors, image = scene(0, number=4, height=11, width=13)
    arrays = {"means": means, "cholesky": np.abs(cholesky) + 0.5, "colors": colors}
    # Without a cut-off the loss is smooth; the formulas are the same with one.
    gradients = reference.loss_gradients(**arrays, image=image, lambda_color=1e-3, cutoff=40.0)
    for index in np.ndindex(arrays[array].shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = {name: values.copy() for name, values in arrays.items()}
            moved[array][index] += step
            ends.append(reference.loss(**moved, image=image, lambda_color=1e-3, cutoff=40.0))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(getattr(gradients, array)[index], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_render_agrees_with_the_reference(seed: int) -> None:
    means, cholesky, colors, _ = scene(seed)
    native = render(*as_batch(means, cholesky, colors), HEIGHT, WIDTH)[0]
    expected = reference.render(means, cholesky, colors, HEIGHT, WIDTH)
    clear = far_from_edge(means, cholesky, HEIGHT, WIDTH)
    assert clear.mean() > 0.98
    np.testing.assert_allclose(native[clear], expected[clear], atol=RENDER_TOLERANCE)
    # At the edge itself one side or the other: off by at most the value there.
    jump = np.exp(-4.5) * 1.01 * np.abs(colors).max() * 2
    np.testing.assert_allclose(native, expected, atol=jump)


@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradients_agree_with_the_reference(seed: int) -> None:
    means, cholesky, colors, image = scene(seed)
    loss, *native = _core.loss_and_grad(*as_batch(means, cholesky, colors), image[None], 1e-3, 1)
    assert loss[0] == pytest.approx(reference.loss(means, cholesky, colors, image, lambda_color=1e-3), rel=1e-5)
    expected = reference.loss_gradients(means, cholesky, colors, image, lambda_color=1e-3)
    edge_pixels = (~far_from_edge(means, cholesky, HEIGHT, WIDTH)).sum()
    for ours, theirs, name in zip(native, expected, expected._fields, strict=True):
        scale = np.abs(theirs).max()
        # Each pixel that fell on the other side of a cut-off moves a gradient by little; most cases have none.
        allowed = (GRADIENT_TOLERANCE + 2e-3 * min(edge_pixels, 3)) * scale
        assert np.abs(ours[0] - theirs).max() < allowed, name
        assert np.median(np.abs(ours[0] - theirs)) < GRADIENT_TOLERANCE * scale, name


def test_gaussians_that_cross_bands_of_rows() -> None:
    """The kernels work on tall pictures in bands of at most 512 rows."""
    height, width = 1100, 21
    means, cholesky, colors, image = scene(7, number=40, height=height, width=width)
    cholesky[:10, 2] *= 40  # some cross a band from end to end
    cholesky[10:14, 1] = 60, -60, 200, -200  # steep
    colors /= 4
    clear = far_from_edge(means, cholesky, height, width)
    native = render(*as_batch(means, cholesky, colors), height, width)[0]
    expected = reference.render(means, cholesky, colors, height, width)
    np.testing.assert_allclose(native[clear], expected[clear], atol=2e-4)
    splats = as_batch(means, cholesky, colors)
    loss, *gradients = _core.loss_and_grad(*splats, image[None], 0.0, 1)
    assert loss[0] == pytest.approx(reference.loss(means, cholesky, colors, image, lambda_color=0.0), rel=1e-5)
    exact = reference.loss_gradients(means, cholesky, colors, image, lambda_color=0.0)
    for ours, theirs, name in zip(gradients, exact, exact._fields, strict=True):
        np.testing.assert_allclose(ours[0], theirs, atol=5e-3 * np.abs(theirs).max(), err_msg=name)


def test_a_steep_thin_gaussian_is_drawn_whole() -> None:
    """The row recurrence must not lose lanes that enter the ellipse late: slants far above one pixel a row."""
    for cholesky in ([0.2, 30.0, 0.2], [12.0, 30.0, 0.25], [0.25, -3.0, 25.0], [20.0, 0.0, 0.2]):
        splat = [np.array([a], np.float64) for a in ([20.3, 17.8], cholesky, [1.0, -0.5, 0.25])]
        native = render(*as_batch(*splat), 40, 48)[0]
        expected = reference.render(*splat, 40, 48)
        clear = far_from_edge(splat[0], splat[1], 40, 48)
        np.testing.assert_allclose(native[clear], expected[clear], atol=2e-4)  # u reaches 100: float32 keeps 1e-5 of it


EXTREMES = {
    "wide": ([20.3, 17.8], [300.0, 0.0, 0.6]),
    "tall": ([20.3, 17.8], [0.6, 5.0, 300.0]),
    "everywhere": ([20.3, 17.8], [400.0, 10.0, 400.0]),
    "a row's width": ([16.0, 8.0], [5.0, 0.0, 0.21]),
    "rising": ([20.3, 17.8], [0.5, 9.0, 0.4]),
    "falling": ([20.3, 17.8], [9.0, -9.0, 0.4]),
    "mostly outside": ([-20.0, 45.0], [9.0, 0.5, 9.0]),
    "beyond the right edge": ([60.0, 10.0], [3.0, 0.0, 3.0]),
    "between pixels": ([20.5, 17.5], [0.1, 0.0, 0.1]),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("backend", ["avx512", "avx2", "portable"])
def test_extreme_gaussians_are_those_of_the_reference(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLAT2D_BACKEND", backend)
    try:
        _core.backend()
    except RuntimeError:
        pytest.skip(f"this processor has no {backend}")
    mean, shape = (np.array([values]) for values in EXTREMES[name])
    color = np.array([[0.5, -0.25, 1.0]])
    splats = [a.astype(np.float32).astype(np.float64) for a in (mean, shape, color)]
    weights = np.random.default_rng(2).normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    weights[~far_from_edge(*splats[:2], HEIGHT, WIDTH)] = 0.0  # such pixels may fall on either side of the cut-off
    native = _core.render_backward(*as_batch(*splats), weights[None], 1)
    expected = reference.render_backward(*splats, weights.astype(np.float64))
    for ours, theirs in zip(native, expected, strict=True):
        # Gradients of needles are small differences of large moments.
        np.testing.assert_allclose(ours[0], theirs, atol=1e-3 * max(np.abs(theirs).max(), 1e-3))


def test_a_gaussian_without_extent_draws_nothing() -> None:
    for shape in ([0.0, 0.0, 3.0], [3.0, 0.0, 0.0], [1e-20, 0.0, 3.0], [3.0, 0.0, 1e-20]):
        splat = as_batch(np.array([[8.0, 8.0]]), np.array([shape]), np.ones((1, 3)))
        values = _core.render_backward(*splat, np.ones((1, 16, 16, 3), np.float32), 1)
        assert not render(*splat, 16, 16).any()
        assert not any(v.any() for v in values)


def test_torch_render_and_its_gradients() -> None:
    means, cholesky, colors, _ = scene(7)
    tensors = [torch.from_numpy(a.astype(np.float32)).repeat(2, 1, 1) for a in (means, cholesky, colors)]
    for tensor in tensors:
        tensor.requires_grad_()
    pictures = splat2d_torch.render(tensors[0], tensors[1], tensors[2], HEIGHT, WIDTH)
    assert pictures.shape == (2, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(
        pictures.detach().numpy()[0], render(*as_batch(means, cholesky, colors), HEIGHT, WIDTH)[0]
    )
    weights = np.random.default_rng(1).normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    scaled = torch.stack([torch.from_numpy(weights), torch.from_numpy(weights * -2)])
    (pictures * scaled).sum().backward()  # type: ignore[no-untyped-call]
    expected = reference.render_backward(means, cholesky, colors, weights.astype(np.float64))
    for tensor, theirs, name in zip(tensors, expected, expected._fields, strict=True):
        assert tensor.grad is not None
        scale = np.abs(theirs).max()
        assert np.abs(tensor.grad[0].numpy() - theirs).max() < 5e-3 * scale, name
        np.testing.assert_allclose(tensor.grad[1].numpy(), tensor.grad[0].numpy() * -2, atol=1e-5 * scale)


def test_torch_render_refuses_other_types() -> None:
    good = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match=r"expected means float32 on cpu, got torch\.float64"):
        splat2d_torch.render(good.double(), torch.ones(1, 2, 3), torch.ones(1, 2, 3), 4, 4)


def test_torch_is_not_loaded_by_splat2d() -> None:
    code = "import sys, splat2d; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
