"""Splats: what they refuse, packing, padding, rendering, and what a file costs in PSNR on real fits."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import splat2d
from picture_sets import picture

from components.errors import PermanentError
from components.images import decode_rgb, fit_square
from components.splats import Splats, compression_ratio, pad

MEANS = np.array([[1.25, 2.125], [5.5, 3.25]], np.float32)
CHOLESKY = np.array([[1.5, 0.25, 1.0], [2.0, -0.5, 0.75]], np.float32)
COLORS = np.array([[0.5, 0.25, 0.125], [-0.25, 1.0, 0.5]], np.float32)
SOME = Splats(MEANS, CHOLESKY, COLORS, 9, 7)


def test_pack_and_unpack() -> None:
    data, num_clamped = SOME.pack()
    back = Splats.unpack(memoryview(data))
    assert (num_clamped, len(data), len(back), back.width, back.height) == (0, 56, 2, 9, 7)
    assert np.array_equal(back.cholesky, CHOLESKY), "these values are exact in fp16"
    assert np.array_equal(back.colors, COLORS)
    np.testing.assert_allclose(back.means, MEANS, atol=9 / 65535)
    assert back.pack() == (data, 0)
    empty = Splats(MEANS[:0], CHOLESKY[:0], COLORS[:0], 9, 7)
    assert len(Splats.unpack(empty.pack()[0])) == 0


def test_they_are_values_that_nobody_changes() -> None:
    mine = MEANS.copy()
    splats = Splats(mine, CHOLESKY.tolist(), COLORS.astype(np.float64), 9, 7)  # type: ignore[arg-type]
    assert splats.colors.dtype == splats.cholesky.dtype == np.float32
    for array in (splats.means, splats.cholesky, splats.colors):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
    assert mine.flags.writeable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": MEANS[:, :1]}, r"expected means \[2, 2\], got \[2, 1\]"),
        ({"cholesky": CHOLESKY[:1]}, r"expected cholesky \[2, 3\], got \[1, 3\]"),
        ({"colors": COLORS * np.nan}, r"colors\[0\] is \[nan.* finite"),
        ({"means": np.array([[1, 2], [5.5, np.inf]])}, r"means\[1\] is \[5.5, inf\]"),
        ({"cholesky": CHOLESKY * [1, 1, -1]}, r"cholesky\[0\] is .* l00 and l11 must be above 0"),
        ({"cholesky": CHOLESKY * [[1, 1, 1], [0, 1, 1]]}, r"cholesky\[1\] is .* above 0"),
        ({"width": 0}, "the picture is 0 x 7"),
    ],
)
def test_bad_values_are_named(change: dict[str, object], message: str) -> None:
    good = {"means": MEANS, "cholesky": CHOLESKY, "colors": COLORS, "width": 9, "height": 7}
    with pytest.raises(PermanentError, match=message):
        Splats(**good | change)  # type: ignore[arg-type]


def test_a_damaged_file_is_named() -> None:
    data, _ = SOME.pack()
    with pytest.raises(PermanentError, match=r"00003\.tar: 000017\.gs2d: gs2d: CRC-32 .* damaged"):
        Splats.unpack(data[:-1] + b"\0", "00003.tar: 000017.gs2d")


def test_render_is_the_sum_of_gaussians() -> None:
    y, x = np.mgrid[:7, :9]
    expected = np.zeros((7, 9, 3))
    for mean, (l00, l10, l11), color in zip(MEANS, CHOLESKY, COLORS, strict=True):
        sigma = np.array([[l00, 0], [l10, l11]], np.float64)
        d = np.stack([x - mean[0], y - mean[1]], -1)
        distance = np.einsum("...i,ij,...j", d, np.linalg.inv(sigma @ sigma.T), d)
        expected += np.where(distance <= splat2d.CUTOFF**2, np.exp(-distance / 2), 0)[..., None] * color
    render = SOME.render()
    assert render.shape == (7, 9, 3)
    np.testing.assert_allclose(render, expected, atol=2e-5)
    none = Splats(MEANS[:0], CHOLESKY[:0], COLORS[:0], 9, 7).render()
    assert none.shape == (7, 9, 3)
    assert none.dtype == np.float32
    assert not none.any()


def test_pad_fills_with_zeros_and_masks() -> None:
    one = Splats(MEANS[1:], CHOLESKY[1:], COLORS[1:], 9, 7)
    batch = pad([SOME, one], 3)
    assert batch.means.shape == (2, 3, 2)
    assert batch.cholesky.shape == batch.colors.shape == (2, 3, 3)
    assert batch.counts.tolist() == [2, 1]
    assert batch.mask.tolist() == [[True, True, False], [True, False, False]]
    for array, part in ((batch.means, MEANS), (batch.cholesky, CHOLESKY), (batch.colors, COLORS)):
        assert np.array_equal(array[0, :2], part)
        assert np.array_equal(array[1, :1], part[1:])
        assert not array[~batch.mask].any()
    renders = splat2d.render(batch.means, batch.cholesky, batch.colors, 7, 9, counts=batch.counts)
    assert np.array_equal(renders[0], SOME.render())
    assert np.array_equal(renders[1], one.render())
    with pytest.raises(PermanentError, match="splats 0 of the batch: 2 Gaussians; room is for 1"):
        pad([SOME, one], 1)
    assert pad([], 4).mask.shape == (0, 4)


def test_compression_ratio_is_the_papers() -> None:
    ratios = [round(compression_ratio(224, 224, n), 2) for n in (3136, 1600, 900, 400)]
    assert ratios == [3.00, 5.88, 10.45, 23.52]
    with pytest.raises(PermanentError, match="more than 0"):
        compression_ratio(224, 224, 0)


def _cost_db(images: np.ndarray, num_gaussians: int, recipe: str, num_iters: int) -> tuple[float, float]:
    """Mean PSNR of fits and what the round trip through the file takes from it."""
    height, width = images.shape[1:3]
    fit = splat2d.fit(images, num_gaussians, recipe=recipe, num_iters=num_iters)
    before = splat2d.psnr(splat2d.render(fit.means, fit.cholesky, fit.colors, height, width, counts=fit.counts), images)
    splats, clamped = [], 0
    for row, n in enumerate(fit.counts):
        parts = (fit.means[row, :n], fit.cholesky[row, :n], fit.colors[row, :n])
        data, num_clamped = Splats(*parts, width, height).pack()
        splats.append(Splats.unpack(data))
        clamped += num_clamped
    assert clamped == 0
    batch = pad(splats, num_gaussians)
    renders = splat2d.render(batch.means, batch.cholesky, batch.colors, height, width, counts=batch.counts)
    after = splat2d.psnr(renders, images)
    return float(before.mean()), float((before - after).mean())


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_file_costs_less_than_a_fiftieth_of_a_db(recipe: str) -> None:
    images = np.stack([picture(seed, 48, 64) for seed in range(4)])
    psnr, cost = _cost_db(images, 24, recipe, 150)
    assert 28 < psnr < 40
    assert abs(cost) < 0.02
    psnr, cost = _cost_db(images, 150, recipe, 150)
    assert abs(cost) < (0.02 if psnr < 40 else 0.05), "its rounding is seen where the fit leaves next to nothing"


def _pictures(tar: Path, count: int) -> list[np.ndarray]:
    with tarfile.open(tar) as members:
        found = (members.extractfile(m) for m in members if m.name.endswith((".jpg", ".png", ".webp")))
        return [decode_rgb(io.BytesIO(f.read()).getvalue()) for f, _ in zip(found, range(count), strict=False) if f]


@pytest.mark.parametrize(("num_gaussians", "num_iters", "least_db"), [(400, 100, 22), (3136, 100, 30)])
def test_on_photographs_too(shared_data: Path, num_gaussians: int, num_iters: int, least_db: float) -> None:
    photographs = _pictures(shared_data / "flickr8k-1k" / "00000.tar", 3)
    images = np.stack([fit_square(photograph, 224) for photograph in photographs])
    psnr, cost = _cost_db(images, num_gaussians, "default", num_iters)
    assert psnr > least_db
    assert abs(cost) < 0.02


def test_on_small_pictures_too(shared_data: Path) -> None:
    images = np.stack(_pictures(shared_data / "cifar10" / "test" / "0.tar", 32))
    psnr, cost = _cost_db(images, 64, "default", 200)
    assert psnr > 22
    assert abs(cost) < 0.02
