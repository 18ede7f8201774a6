"""Every stem: order, padding, counts, gradients; splatting against its own definition in float64."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from components import stem_points
from components.config import STEMS as STEM_NAMES
from components.errors import PermanentError, UsageError
from components.openclip import import_open_clip
from components.stem_config import StemConfig
from components.stem_hilbert import hilbert_index
from components.stem_points import Points, splat_to_points, square_points
from components.stems import STEMS, build_stem, start_stem
from components.tokens import NUM_FEATURES, FeatureStats

PICTURE = (32, 24)
KINDS = list(STEMS)


def config(stem: str, num_latents: int = 12, **changes: object) -> StemConfig:
    unit = {n: FeatureStats(mean=(0.1,) * n, std=(2.0,) * n) for n in (NUM_FEATURES, 40)}
    values = {
        "stem": stem, "stem_width": 32, "layers": 1, "heads": 4, "num_latents": num_latents, "grid": (3, 4),
        "width": 40, "picture": PICTURE, "features": unit[NUM_FEATURES], "tokens": unit[40], "patch": 8,
    }  # fmt: skip
    return StemConfig(**{**values, **changes})


def splats(batch: int = 3, count: int = 30, seed: int = 5) -> SimpleNamespace:
    """Centres in and around the picture, shapes of half a pixel to several, colours of either sign."""
    g = torch.Generator().manual_seed(seed)
    cholesky = 2.0 * torch.randn(batch, count, 3, generator=g)
    cholesky[..., [0, 2]] = cholesky[..., [0, 2]].abs() + 0.5
    return SimpleNamespace(
        means=torch.rand(batch, count, 2, generator=g) * torch.tensor([40.0, 30.0]) - 4,
        cholesky=cholesky,
        colors=torch.rand(batch, count, 3, generator=g) - 0.2,
        mask=torch.ones(batch, count, dtype=torch.bool),
    )


def made(stem: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build_stem(config(stem, **changes)).eval()


def padded(given: SimpleNamespace, more: int, value: float) -> SimpleNamespace:
    def fill(t: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(t, (0, 0, 0, more), value=value)

    mask = torch.nn.functional.pad(given.mask, (0, more))
    return SimpleNamespace(means=fill(given.means), cholesky=fill(given.cholesky), colors=fill(given.colors), mask=mask)


def picked(given: SimpleNamespace, index: object, dim: int) -> SimpleNamespace:
    return SimpleNamespace(**{name: value[(slice(None),) * dim + (index,)] for name, value in vars(given).items()})


def test_registry_is_what_params_allow() -> None:
    assert tuple(STEMS) == STEM_NAMES


@pytest.mark.parametrize("stem", KINDS)
def test_order_of_gaussians_does_not_matter(stem: str) -> None:
    module, given = made(stem), splats()
    shuffled = picked(given, torch.randperm(30, generator=torch.Generator().manual_seed(1)), 1)
    assert torch.allclose(module(given), module(shuffled), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 3.0, float("nan")])
@pytest.mark.parametrize("top_k", [128, 8])
@pytest.mark.parametrize("stem", KINDS)
def test_padding_changes_nothing(stem: str, top_k: int, value: float) -> None:
    module, given = made(stem, top_k=top_k), splats()
    assert torch.allclose(module(given), module(padded(given, 7, value)), atol=1e-4)


@pytest.mark.parametrize("stem", KINDS)
def test_pictures_of_different_counts_share_a_batch(stem: str) -> None:
    """Each picture of a mixed batch, an empty one among them, has the tokens that it has alone."""
    module, given = made(stem), splats()
    counts = [30, 11, 0]
    given.mask = torch.arange(30)[None] < torch.tensor(counts)[:, None]
    together = module(given)
    assert together.isfinite().all()
    for row, count in enumerate(counts):
        alone = picked(picked(given, slice(row, row + 1), 0), slice(count), 1)
        assert torch.allclose(together[row : row + 1], module(alone), atol=1e-4), count


@pytest.mark.parametrize("stem", KINDS)
def test_gradients_reach_every_weight_and_none_comes_from_padding(stem: str) -> None:
    module, given = made(stem), splats(count=10)
    given.mask[:, 6:] = False
    given.colors.requires_grad_()
    module(given).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.startswith("resampler."):  # attention's biases of the keys have none
            assert parameter.grad.abs().max() > 0, name
    assert given.colors.grad[:, :6].abs().sum() > 0
    assert torch.equal(given.colors.grad[:, 6:], torch.zeros(3, 4, 3))


@pytest.mark.parametrize("num_latents", [6, 8])
@pytest.mark.parametrize("stem", [stem for stem in KINDS if stem != "render"])
def test_any_number_of_latents(stem: str, num_latents: int) -> None:
    module = made(stem, num_latents=num_latents)
    assert module(splats()).shape == (3, num_latents, 40)
    assert module.positional_embedding.shape == (num_latents, 40)
    assert made(stem).positional_embedding is None


def test_98_and_196_latents_at_224_px() -> None:
    for stem in ("splat", "paper"):
        for count in (98, 196):
            module = made(stem, num_latents=count, grid=(14, 14), picture=(224, 224))
            assert module(splats(batch=1)).shape == (1, count, 40)


def test_render_makes_patches_only() -> None:
    with pytest.raises(UsageError, match="num_latents"):
        made("render", num_latents=8)
    with pytest.raises(UsageError, match="patch"):
        made("render", patch=0)


def by_definition(
    given: SimpleNamespace, values: torch.Tensor, at: torch.Tensor, blur: tuple[float, float]
) -> torch.Tensor:
    """Values [B, N, C] summed at pixels `at` [P, 2] with weights of the module's formula, one by one, in float64."""
    lower = torch.zeros(*given.means.shape[:2], 2, 2, dtype=torch.float64)
    lower[..., 0, 0], lower[..., 1, 0], lower[..., 1, 1] = given.cholesky.double().unbind(-1)
    sharp = lower @ lower.mT
    wide = sharp + torch.diag(torch.tensor(blur, dtype=torch.float64) ** 2)
    d = at.double()[None, None] - given.means.double()[:, :, None]
    exponent = -0.5 * ((d @ wide.inverse()) * d).sum(-1)
    weights = (sharp.det() / wide.det()).sqrt()[..., None] * exponent.exp() * given.mask[..., None]
    return torch.einsum("bnp,bnc->bpc", weights, values.double())


def test_splatting_is_its_definition() -> None:
    given = splats()
    given.mask[1, 20:] = False
    values = torch.randn(3, 30, 5, generator=torch.Generator().manual_seed(2))
    sets = [square_points(4, 0.125, 0.25), square_points(3, 0.3, 0.75)]
    seen = splat_to_points(given, values, picture=PICTURE, cells=(3, 4), points=sets, top_k=128)
    assert seen.shape == (3, 12, 25, 5)
    centre = torch.tensor([2 * 8 + 3.5, 1 * 8 + 3.5])  # of cell 6: row 1, column 2; cells are 8 px
    for start, points in ((0, sets[0]), (16, sets[1])):
        wanted = by_definition(given, values, centre + 8 * points.offsets, (8 * points.blur, 8 * points.blur))
        assert torch.allclose(seen[:, 6, start : start + len(points.offsets)].double(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "cells", "longest", "thinnest"),
    [(224, 14, 102.8, 0.2), (1024, 16, 462.8, 0.2), (2048, 16, 923.6, 0.2), (224, 14, 3000.0, 0.3)],
)
def test_needles_are_exact_and_finite(side: int, cells: int, longest: float, thinnest: float) -> None:
    """Gaussians as long and thin as a fit's limits allow, or another tool's: weights, and the values' gradient."""
    g = torch.Generator().manual_seed(3)
    cholesky = torch.tensor([longest, longest, thinnest]).repeat(1, 8, 1)
    cholesky[..., 1] *= torch.linspace(-1, 1, 8)
    given = SimpleNamespace(
        means=side * torch.rand(1, 8, 2, generator=g), cholesky=cholesky, colors=None, mask=torch.ones(1, 8).bool()
    )
    values = torch.rand(1, 8, 3, generator=g, requires_grad=True)
    cell = side / cells
    line = cell * (torch.arange(cells) + 0.5) - 0.5
    centres = torch.stack([line.repeat(cells), line.repeat_interleave(cells)], dim=-1)
    for points in (square_points(8, 0.0, 0.125), square_points(4, 0.125, 0.25), square_points(3, 0.3125, 0.75)):
        at = (centres[:, None] + cell * points.offsets).reshape(-1, 2)
        wanted = by_definition(given, values.detach(), at, (cell * points.blur, cell * points.blur))
        assert wanted.max() > 1e-3  # the points do meet the needles
        seen = splat_to_points(
            given, values, picture=(side, side), cells=(cells, cells), points=[points], top_k=128
        ).reshape(wanted.shape)
        assert (seen.detach().double() - wanted).abs().max() < 5e-4 * wanted.max(), points.blur
        (gradient,) = torch.autograd.grad(seen.sum(), values)
        assert gradient.isfinite().all()


def test_without_blur_splatting_renders() -> None:
    given = splats()
    pixels = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")[::-1], dim=-1)
    wanted = by_definition(given, given.colors, pixels.reshape(-1, 2), (0.0, 0.0)).reshape(3, 3, 8, 4, 8, 3)
    seen = splat_to_points(
        given, given.colors, picture=PICTURE, cells=(3, 4), points=[square_points(8, 0.0, 0.125)], top_k=128
    )
    assert torch.allclose(seen.reshape(3, 3, 4, 8, 8, 3).double(), wanted.permute(0, 1, 3, 2, 4, 5), atol=1e-5)


def test_a_cell_takes_the_gaussians_that_weigh_most_in_it() -> None:
    given = splats(count=60)
    values = torch.ones(3, 60, 1)
    kwargs = {"picture": PICTURE, "cells": (3, 4), "points": [square_points(3, 0.2, 0.3)]}
    whole = splat_to_points(given, values, top_k=60, **kwargs)
    lost = [float((whole - splat_to_points(given, values, top_k=k, **kwargs)).mean()) for k in (5, 15, 40)]
    assert 0 < lost[2] < lost[1] < lost[0]
    assert lost[1] < 0.1 * float(whole.mean())
    assert lost[2] < 1e-3 * float(whole.mean())


@pytest.mark.parametrize("top_k", [128, 8])
def test_batches_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch, top_k: int) -> None:
    results = []
    for limit in (stem_points.MAX_WEIGHTS, 1):
        monkeypatch.setattr(stem_points, "MAX_WEIGHTS", limit)
        module = made("splat", top_k=top_k)
        tokens = module(splats())
        tokens.square().mean().backward()
        results.append([tokens.detach(), *(p.grad for p in module.parameters())])
    for whole, parts in zip(*results, strict=True):
        assert torch.allclose(whole, parts, atol=1e-5)


def test_gradients_are_the_same_in_any_number_of_threads() -> None:
    """Many cells take the same Gaussian of one picture: their gradients are summed in one order."""
    before = torch.get_num_threads()
    given = splats(1, 400)
    into, seen = torch.randn(1, 196, 4, 12, generator=torch.Generator().manual_seed(3)), set()
    try:
        for threads in (1, 2, 4, 4, 4, 4):
            torch.set_num_threads(threads)
            values = torch.ones(1, 400, 12, requires_grad=True)
            points = [square_points(2, 0.25, 0.5)]
            at = splat_to_points(given, values, picture=PICTURE, cells=(14, 14), points=points, top_k=256)
            (at * into).sum().backward()
            assert values.grad is not None
            seen.add(values.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


def test_parts_count_what_looking_for_the_nearest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many Gaussians of which few are taken: the parts are cut by the many."""
    sizes = []
    original = stem_points._nearest

    def noted(shapes: stem_points._Shapes, centres: torch.Tensor, count: int) -> torch.Tensor:
        sizes.append(len(shapes.means) * len(centres) * shapes.means.shape[1])
        return original(shapes, centres, count)

    monkeypatch.setattr(stem_points, "_nearest", noted)
    monkeypatch.setattr(stem_points, "MAX_WEIGHTS", 40_000)
    given = splats(batch=9, count=400)
    splat_to_points(given, given.colors, picture=PICTURE, cells=(3, 4), points=[square_points(2, 0.2, 0.3)], top_k=4)
    assert len(sizes) == 5  # two pictures at a time, one at the end
    assert max(sizes) <= 40_000 / 4


def test_render_starts_as_the_teacher_on_the_rendered_picture() -> None:
    module, given = made("render", pixels=FeatureStats((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))), splats()
    conv = nn.Conv2d(3, 40, 8, 8, bias=False)
    start_stem(module, conv, [])
    pixels = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")[::-1], dim=-1)
    picture = by_definition(given, given.colors, pixels.reshape(-1, 2), (0.0, 0.0)).reshape(3, 24, 32, 3).float()
    assert picture.min() < 0 < 1 < picture.max()  # and is shown as it is
    shown = (picture - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.25, 0.3])
    assert torch.allclose(module(given), conv(shown.permute(0, 3, 1, 2)).flatten(2).mT, atol=1e-4)


def test_splat_starts_near_the_teachers_patch_embedding() -> None:
    """Ridge regression alone, no step, explains most of a linear map of the rendered picture's patches."""
    conv, render, module = nn.Conv2d(3, 40, 8, 8), made("render"), made("splat")
    nn.init.normal_(conv.weight, std=0.02)
    conv.weight.data = torch.nn.functional.avg_pool2d(conv.weight.data, 3, 1, 1)  # smooth, as trained ones are
    start_stem(render, conv, [])

    def rest(seed: int) -> float:
        given = splats(batch=64, seed=seed)
        wanted = render(given).detach()
        return float((module(given).detach() - wanted).square().mean() / (wanted - wanted.mean((0, 1))).square().mean())

    before = rest(9)
    start_stem(module, conv, [(splats(batch=64, seed=s), render(splats(batch=64, seed=s)).detach()) for s in (1, 2, 3)])
    assert rest(9) < 0.3 < before


def test_a_start_needs_pictures() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        start_stem(made("splat"), nn.Conv2d(3, 40, 8, 8), [])


def test_hilbert_curve_visits_every_place_once_by_steps_of_one() -> None:
    x, y = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    index = hilbert_index(x, y, 4).flatten()
    order = index.argsort()
    assert torch.equal(index[order], torch.arange(256))
    steps = (x.flatten()[order].diff().abs() + y.flatten()[order].diff().abs()).tolist()
    assert set(steps) == {1}


def test_hilbert_order_does_not_depend_on_the_order_given() -> None:
    """Gaussians at one place, or beyond one corner of the picture, also where only the colours differ."""
    module, given = made("hilbert"), splats()
    given.means[0] = 11.0  # all at one place
    given.means[1] = -5.0 - given.means[1].abs()  # all in one cell of the curve, once clamped
    given.means[2], given.cholesky[2] = 3.0, given.cholesky[2, :1]
    given.mask[1, 25:] = False
    want = module(given)
    for seed in range(3):
        shuffled = picked(given, torch.randperm(30, generator=torch.Generator().manual_seed(seed)), 1)
        assert torch.allclose(want, module(shuffled), atol=1e-4)
    groups = module.groups(given)
    assert torch.equal(groups[0].bincount(minlength=12).unique(), torch.tensor([2, 3]))  # 30 over 12, evenly


def test_small_teachers_train_at_most_a_tenth() -> None:
    """Stem, block 0's attention input projection, final norm and projection, of the teacher at CIFAR-10's size."""
    shape = {"image_size": 32, "layers": 8, "width": 128, "head_width": 32, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 64, "width": 64, "heads": 2, "layers": 2}
    clip = import_open_clip().CLIP(embed_dim=64, vision_cfg=shape, text_cfg=text)
    unit = FeatureStats((0.0,) * 128, (1.0,) * 128)
    for stem in ("splat", "render"):
        module = build_stem(config(stem, 16, grid=(4, 4), stem_width=96, width=128, picture=(32, 32), tokens=unit))
        own = sum(p.numel() for p in module.parameters())
        block = clip.visual.transformer.resblocks[0].attn
        freed = own + block.in_proj_weight.numel() + block.in_proj_bias.numel() + clip.visual.proj.numel() + 2 * 128
        total = own + sum(
            p.numel() for name, p in clip.named_parameters() if not name.endswith("token_embedding.weight")
        )
        assert freed <= 0.1 * total, (stem, own, freed / total)


def test_descriptions_of_older_adapters_are_read() -> None:
    values = config("paper").as_json()
    old = {key: value for key, value in values.items() if key not in ("points", "channels", "top_k", "pixels", "patch")}
    assert StemConfig.from_json(old, "here") == replace(config("paper"), patch=0)
    assert StemConfig.from_json(values, "here") == config("paper")
    with pytest.raises(PermanentError, match=r"here.*grid"):
        StemConfig.from_json({key: value for key, value in values.items() if key != "grid"}, "here")


def test_statistics_of_other_features_are_refused() -> None:
    with pytest.raises(PermanentError, match="features a Gaussian"):
        build_stem(config("splat", features=FeatureStats((0.0,) * 3, (1.0,) * 3)))


def test_points_lie_around_the_centre() -> None:
    points = square_points(2, 0.25, 0.5)
    assert points == Points(points.offsets, 0.25)
    assert points.offsets.tolist() == [[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]]
