"""Augmentation in splat space: the splats it makes render the picture it makes, and nothing else decides the draws.

Three renderings are held against each other: `splat2d.render` of the changed splats, the sum of the unchanged ones in
float64 at the positions where each pixel comes from, and the pixel path.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import splat2d
import torch
from PIL import Image
from torch import Tensor

from components import augment
from components.augment import (
    CUTOFF,
    color_matrices,
    recolored,
    thinned_splats,
    windowed_images,
    windowed_splats,
    windows,
)
from components.loader import SplatBatch
from components.train_adapter.augment import Augmentation, Draws, augment_images, augment_splats, coins, draw

SIDE = 32
EVERYTHING = Augmentation(flips=True, crop_min=0.3, rotate_degrees=20, color_jitter=0.4, drop_gaussians=0.5)


def some_splats(batch: int, count: int, *, seed: int = 0, least: float = 0.7) -> SplatBatch:
    """Random Gaussians, many outside the picture; the last quarter of the second picture's rows is padding."""
    rng = np.random.default_rng(seed)
    angle, scale = rng.uniform(0, np.pi, (batch, count)), np.exp(rng.uniform(0, 1.8, (batch, count, 2))) * least
    axes = np.stack([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 3, 0, 1)
    factors = np.linalg.cholesky((axes * scale[..., None, :] ** 2) @ axes.swapaxes(-1, -2))
    cholesky = torch.tensor(np.stack([factors[..., 0, 0], factors[..., 1, 0], factors[..., 1, 1]], -1))
    mask = torch.ones(batch, count, dtype=torch.bool)
    if batch > 1:
        mask[1, count - count // 4 :] = False
    values = torch.tensor(rng.uniform(-0.2, 1.2, (batch, count, 2)) * SIDE), cholesky
    colors = torch.tensor(rng.uniform(-0.2, 0.6, (batch, count, 3)))
    return SplatBatch(*(torch.where(mask[..., None], v, 0.0).float() for v in (*values, colors)), mask)


def rendered(splats: SplatBatch) -> Tensor:
    """[B, H, W, 3] by the renderer."""
    picture = splat2d.render(splats.means.numpy(), splats.cholesky.numpy(), splats.colors.numpy(), SIDE, SIDE)
    return torch.from_numpy(picture)


def seen(splats: SplatBatch, where: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of Gaussians at positions [B, P, 2] in pixels, in float64: [B, P, 3], and how much a position may be off.

    What a Gaussian has at its end, where float32 may put a position on either side.
    """
    l00, l10, l11 = splats.cholesky.double()[:, None].unbind(-1)
    x, y = (where[:, :, None] - splats.means.double()[:, None]).unbind(-1)
    first = x / l00
    distance = first.square() + ((y - l10 * first) / l11).square()
    weight = torch.where(splats.mask[:, None] & (distance <= CUTOFF**2), (-0.5 * distance).exp(), 0.0)
    near = splats.mask[:, None] & ((distance - CUTOFF**2).abs() < 1e-3)
    most = splats.colors.double().abs().amax(-1)[:, None] * math.exp(-0.5 * CUTOFF**2)
    return weight @ splats.colors.double(), torch.where(near, most, 0.0).sum(-1)


def source(draws: Draws) -> Tensor:
    """[B, SIDE * SIDE, 2]: where the pixels of the picture that comes out lie in the one that goes in, in pixels.

    Its own words: affine_grid for the window, then the mirror.
    """
    count = len(draws.flip)
    theta = draws.theta
    if theta is None:
        theta = torch.eye(2, 3, dtype=torch.float64).expand(count, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, [count, 3, SIDE, SIDE], align_corners=False).flatten(1, 2)
    x, y = ((grid + 1) * SIDE - 1).unbind(-1)
    return torch.stack([torch.where(draws.flip[:, None], 2 * SIDE - 2 - x, x), y], dim=-1) / 2


KINDS = {
    "nothing": Augmentation(),
    "flip": Augmentation(flips=True),
    "crop": Augmentation(crop_min=0.25),
    "rotate": Augmentation(rotate_degrees=40),
    "jitter": Augmentation(color_jitter=0.6),
    "drop": Augmentation(drop_gaussians=0.7),
    "everything": EVERYTHING,
}


@pytest.mark.parametrize("kind", KINDS)
def test_splats_render_the_picture_at_the_positions_it_comes_from(kind: str) -> None:
    splats = some_splats(12, 40)
    draws = draw([f"picture {i}" for i in range(12)], KINDS[kind], seed=1, epoch=2)
    after = augment_splats(splats, draws, SIDE)
    if draws.share is not None:
        splats = replace(splats, mask=thinned_splats(splats, draws.share, draws.salts).mask)
    wanted, doubt = seen(splats, source(draws))
    if draws.colors is not None:
        wanted = wanted @ draws.colors.mT
    error = (rendered(after).flatten(1, 2) - wanted).abs().amax(-1)
    assert float(wanted.abs().max()) > 0.9
    bound = 1e-4 + 2 * doubt
    assert (error <= bound).all()
    assert (doubt > 0).float().mean() < 0.05, "nearly every pixel is held to 1e-4"
    assert (after.mask.sum() < splats.mask.sum()) == (draws.theta is not None)
    assert not torch.cat([after.means, after.cholesky, after.colors], -1)[~after.mask].any()


def test_splats_and_pixels_see_the_same() -> None:
    """A smooth picture (sigmas of 3 px and more): what is left is the interpolation between pixels and the cut-off."""
    splats = some_splats(12, 30, least=3.0)
    splats = replace(splats, colors=(splats.colors.clamp_min(0) * 0.3))
    draws = draw([f"picture {i}" for i in range(12)], replace(EVERYTHING, drop_gaussians=0.0), seed=0, epoch=0)
    pictures = rendered(splats) * 100
    error = (augment_images(pictures, draws) - rendered(augment_splats(splats, draws, SIDE)) * 100).abs()
    contrast = float(pictures.std())
    assert float(error.mean()) < 0.006 * contrast
    assert float(error.max()) < 0.07 * contrast


def test_splats_and_pixels_see_the_same_of_a_photograph(shared_data: Path) -> None:
    """Its fit, cropped, turned and recoloured, is as near to its pixels as the fit was, but for 1 dB."""
    photograph = Image.open(shared_data / "kodak" / "04.png").convert("RGB").crop((0, 128, 512, 640))
    pixels = torch.from_numpy(np.array(photograph.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))[None]
    fit = splat2d.fit(pixels.numpy(), 24, num_iters=100, threads=1)
    arrays = (torch.from_numpy(np.asarray(a)) for a in (fit.means, fit.cholesky, fit.colors))
    one = SplatBatch(*arrays, torch.ones(1, 24, dtype=torch.bool))
    augmentation = Augmentation(flips=True, crop_min=0.5, rotate_degrees=15, color_jitter=0.3)
    draws = draw([str(i) for i in range(16)], augmentation, seed=0, epoch=0)
    after = rendered(augment_splats(one.select(torch.zeros(16, dtype=torch.long)), draws, SIDE))
    pictures = augment_images(pixels.expand(16, -1, -1, -1), draws)
    before = float(psnr(rendered(one), pixels).mean())
    assert before > 25
    assert float(psnr(after, pictures).mean()) > before - 1
    assert float(psnr(after, pictures.roll(1, 0)).mean()) < before - 6, "another picture's draws are told apart"


def psnr(render: Tensor, pixels: Tensor) -> Tensor:
    return -10 * (render - pixels / 255).square().mean((1, 2, 3)).log10()


def test_flips_alone_are_bit_for_bit_what_they_were() -> None:
    splats, keys = some_splats(20, 9), [f"{i:05d}" for i in range(20)]
    draws = draw(keys, Augmentation(flips=True), seed=3, epoch=1)
    assert [int(flip) for flip in draws.flip] == [0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert torch.equal(draws.flip, coins(keys, seed=3, epoch=1))
    after = augment_splats(splats, draws, SIDE)
    for i, flip in enumerate(draws.flip.tolist()):
        x = splats.means[i, :, 0]
        assert torch.equal(after.means[i, :, 0], SIDE - 1 - x if flip else x)
        assert torch.equal(after.cholesky[i, :, 1], splats.cholesky[i, :, 1] * (-1 if flip else 1))
    assert torch.equal(after.colors, splats.colors)
    assert torch.equal(after.mask, splats.mask)
    pixels = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)
    mirrored = augment_images(pixels, draws)
    assert mirrored.dtype == torch.uint8
    assert torch.equal(mirrored, torch.stack([p.flip(1) if f else p for p, f in zip(pixels, draws.flip, strict=True)]))
    assert torch.equal(draws.flip, draw(keys, EVERYTHING, seed=3, epoch=1).flip), "whatever else is drawn"


def same(one: SplatBatch, other: SplatBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def test_a_picture_is_augmented_alike_in_any_batch() -> None:
    splats, keys = some_splats(37, 23), [f"k/{i}" for i in range(37)]
    pixels = torch.randint(0, 256, (37, SIDE, SIDE, 3), dtype=torch.uint8)
    draws = draw(keys, EVERYTHING, seed=1, epoch=0)
    whole, pictures = augment_splats(splats, draws, SIDE), augment_images(pixels, draws)
    for chosen in ([5], [36, 1], [1, 7, 8], list(range(30, 3, -1))):
        index = torch.tensor(chosen)
        part = draw([keys[i] for i in chosen], EVERYTHING, seed=1, epoch=0)
        assert same(augment_splats(splats.select(index), part, SIDE), whole.select(index))
        assert torch.equal(augment_images(pixels[index], part), pictures[index])
    wider = SplatBatch(*(torch.cat([v, torch.zeros_like(v[:, :5])], 1) for v in vars(splats).values()))
    padded = augment_splats(wider, draws, SIDE)
    assert same(SplatBatch(*(v[:, :23] for v in vars(padded).values())), whole), "nor does padding matter"
    assert not padded.mask[:, 23:].any()


def test_draws_belong_to_seed_epoch_and_key() -> None:
    keys = [f"{i:05d}" for i in range(400)]
    first = draw(keys, EVERYTHING, seed=0, epoch=0)
    again, *others = (draw(keys, EVERYTHING, seed=seed, epoch=epoch).theta for seed, epoch in ((0, 0), (0, 1), (1, 0)))
    assert torch.equal(again, first.theta)
    assert all(not torch.isclose(other, first.theta).all(-1).all(-1).any() for other in others)
    assert len({tuple(row) for row in first.theta.flatten(1).tolist()}) == 400
    inside = first.theta[..., :2].abs().sum(-1) + first.theta[..., 2].abs()
    assert float(inside.max()) <= 1 + 1e-12, "no window sticks out"
    area = torch.linalg.det(draw(keys, Augmentation(crop_min=0.3), seed=0, epoch=0).theta[..., :2])
    assert 0.3 <= float(area.min()) < 0.33
    assert 0.97 < float(area.max()) <= 1
    assert 0.62 < float(area.mean()) < 0.68
    turned = draw(keys, Augmentation(rotate_degrees=20), seed=0, epoch=0).theta[..., :2]
    square = turned.mT @ turned
    assert torch.allclose(square, square[:, :1, :1] * torch.eye(2), atol=1e-12), "turned and not sheared"
    angle = torch.atan2(turned[:, 1, 0], turned[:, 0, 0]).rad2deg()
    assert 19 < float(angle.abs().max()) <= 20
    assert abs(float(angle.mean())) < 2
    luma = torch.tensor(augment.LUMA, dtype=torch.float64)
    brightness = first.colors.sum(-1) @ luma
    assert 0.6 <= float(brightness.min()) < 0.62
    assert 1.38 < float(brightness.max()) <= 1.4
    assert 0.22 < float(first.share.mean()) < 0.28
    assert 0.48 < float(first.share.max()) < 0.5
    values = torch.stack([first.theta[:, 0, 2], angle, brightness, first.share, first.salts.double()])
    assert float((values.corrcoef() - torch.eye(5)).abs().max()) < 0.2, "the draws are independent"


def test_jitter_keeps_grey_grey_and_luma_its_share() -> None:
    matrices = color_matrices(torch.tensor([1.0, 1.0, 0.5, 1.2]), torch.tensor([1.0, 0.0, 1.0, 1.4]))
    colors = torch.tensor([[[0.3, 0.3, 0.3], [0.9, -0.1, 0.4]]]).expand(4, 2, 3)
    after = recolored(colors, matrices)
    assert torch.allclose(after[0], colors[0])
    assert torch.allclose(after[1], (colors[0] @ torch.tensor(augment.LUMA))[:, None].expand(2, 3))
    assert torch.allclose(after[2], colors[2] / 2)
    assert torch.allclose(after[3, 0], 1.2 * colors[3, 0])
    assert torch.allclose(after[3] @ torch.tensor(augment.LUMA), 1.2 * colors[3] @ torch.tensor(augment.LUMA))


def test_gradients_pass_through_windows_and_jitter() -> None:
    """Of a rendered picture by the splats that went in, against differences."""
    splats = some_splats(2, 6, seed=4)
    draws = draw(["a", "b"], replace(EVERYTHING, drop_gaussians=0.0), seed=0, epoch=0)
    double = SplatBatch(*(v.double() for v in (splats.means, splats.cholesky, splats.colors)), splats.mask)
    inputs = tuple(v[:, :2].clone().requires_grad_() for v in (double.means, double.cholesky, double.colors))

    def after(means: Tensor, cholesky: Tensor, colors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = augment_splats(SplatBatch(means, cholesky, colors, splats.mask[:, :2]), draws, SIDE)
        return made.means, made.cholesky, made.colors

    assert torch.autograd.gradcheck(after, inputs)
    (v_colors,) = torch.autograd.grad(after(*inputs)[2].sum(), inputs[2])
    kept = augment_splats(splats, draws, SIDE).mask[:, :2]
    wanted = draws.colors.sum(1)[:, None].expand(2, 2, 3)
    assert torch.allclose(v_colors[kept], wanted[kept])


def test_a_share_of_the_gaussians_goes_and_another_share_each_time() -> None:
    splats = some_splats(2, 40)
    share = torch.tensor([0.25, 0.25])
    counts = torch.zeros(2, 40)
    for salt in range(300):
        after = thinned_splats(splats, share, torch.tensor([salt, salt + (1 << 31)]))
        assert after.mask.sum(1).tolist() == [30, 23], "10 of 40 and 7 of 30 go"
        assert not (after.mask & ~splats.mask).any()
        counts += after.mask
    assert float((counts[0] / 300 - 0.75).abs().max()) < 0.12, "each as often as the others"
    for one, most in ((1, 0.9), (3, 0.9)):
        few = thinned_splats(some_splats(1, one), torch.tensor([most]), torch.tensor([7]))
        assert int(few.mask.sum()) == 1, "one is always left"
    none = SplatBatch(torch.zeros(2, 0, 2), torch.zeros(2, 0, 3), torch.zeros(2, 0, 3), torch.zeros(2, 0) > 0)
    assert thinned_splats(none, share, torch.tensor([0, 1])).mask.shape == (2, 0)


def test_needles_and_windows_that_are_not_square() -> None:
    """A thousandth as thick as long and turned; the picture twice as high as wide."""
    theta = windows(*torch.tensor([[0.4], [1.2], [0.3]], dtype=torch.float64), torch.tensor([[0.2, 0.9]]))
    cholesky = torch.tensor([[[4.0, 4.0, 0.004], [0.003, -2.0, 3.0]]])
    splats = SplatBatch(
        torch.tensor([[[12.0, 20.0], [9.0, 30.0]]]), cholesky, torch.ones(1, 2, 3), torch.ones(1, 2) > 0
    )
    after = windowed_splats(splats, theta, 24, 48)
    assert after.mask.all()
    sides = torch.tensor([12.0, 24.0], dtype=torch.float64)
    change = sides[:, None] * torch.linalg.inv(theta[0, :, :2]) / sides
    for i, values in enumerate(cholesky[0].double()):
        before = torch.stack([values[0], values.new_zeros(()), values[1], values[2]]).reshape(2, 2)
        wanted = torch.linalg.cholesky(change @ before @ before.mT @ change.mT)
        got = after.cholesky[0, i].double()
        assert torch.allclose(got, torch.stack([wanted[0, 0], wanted[1, 0], wanted[1, 1]]), rtol=2e-4)
    middle = (2 * splats.means.double() + 1) / (2 * sides) - 1
    back = (2 * after.means.double() + 1) / (2 * sides) - 1
    assert torch.allclose(back @ theta[0, :, :2].mT + theta[0, :, 2], middle, atol=1e-6)


def test_the_whole_as_a_window_changes_nothing() -> None:
    theta = windows(*torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64), torch.tensor([[0.3, 0.8]]))
    splats = some_splats(1, 20)
    after = windowed_splats(splats, theta, SIDE, SIDE)
    assert torch.allclose(rendered(after), rendered(splats), atol=1e-5)
    pixels = torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8)
    assert torch.allclose(windowed_images(pixels, theta), pixels.float(), atol=1e-3)


def test_the_cut_off_is_the_renderers() -> None:
    assert CUTOFF == splat2d.CUTOFF
