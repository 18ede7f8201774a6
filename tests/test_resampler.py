"""The Perceiver resampler and the stem on top of it: order, padding and places."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from components.config import STEMS as STEM_NAMES
from components.errors import PermanentError, UsageError
from components.resampler import CrossAttention, Resampler, grid_centres, grid_shape
from components.stem_paper import PaperStem
from components.stems import STEMS, StemConfig, build_stem
from components.tokens import NUM_FEATURES, FeatureStats


def config(num_latents: int = 16, **changes: object) -> StemConfig:
    unit = {n: FeatureStats(mean=(0.0,) * n, std=(1.0,) * n) for n in (NUM_FEATURES, 40)}
    values = {
        "stem": "paper", "stem_width": 32, "layers": 2, "heads": 4, "num_latents": num_latents, "grid": (4, 4),
        "width": 40, "picture": (32, 32), "features": unit[NUM_FEATURES], "tokens": unit[40],
    }  # fmt: skip
    return StemConfig(**{**values, **changes})


def splats(batch: int = 2, count: int = 30) -> SimpleNamespace:
    g = torch.Generator().manual_seed(5)
    cholesky = torch.randn(batch, count, 3, generator=g)
    cholesky[..., [0, 2]] = cholesky[..., [0, 2]].abs() + 0.4
    return SimpleNamespace(
        means=torch.rand(batch, count, 2, generator=g) * 40 - 4,
        cholesky=cholesky,
        colors=torch.rand(batch, count, 3, generator=g),
        mask=torch.ones(batch, count, dtype=torch.bool),
    )


def test_order_of_gaussians_does_not_matter() -> None:
    torch.manual_seed(0)
    stem, given = PaperStem(config()), splats()
    order = torch.randperm(30)
    shuffled = SimpleNamespace(**{name: value[:, order] for name, value in vars(given).items()})
    assert torch.allclose(stem(given), stem(shuffled), atol=1e-5)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    stem, given = PaperStem(config()), splats()
    padded = SimpleNamespace(
        means=torch.nn.functional.pad(given.means, (0, 0, 0, 7), value=3.0),
        cholesky=torch.nn.functional.pad(given.cholesky, (0, 0, 0, 7)),
        colors=torch.nn.functional.pad(given.colors, (0, 0, 0, 7), value=9.0),
        mask=torch.nn.functional.pad(given.mask, (0, 7)),
    )
    assert torch.allclose(stem(given), stem(padded), atol=1e-5)
    padded.means[:, 30:] = float("nan")  # whatever stands in padding, even this
    assert torch.allclose(stem(given), stem(padded), atol=1e-5)


def test_a_picture_without_gaussians_has_an_answer_and_gradients() -> None:
    torch.manual_seed(0)
    stem, given = PaperStem(config()), splats()
    given.mask[0] = False
    latents = stem(given)
    assert latents.isfinite().all()
    latents.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stem.parameters())


def test_every_gaussian_matters() -> None:
    torch.manual_seed(0)
    stem, given = PaperStem(config()), splats()
    before = stem(given)
    given.colors[0, 7] += 1.0
    after = stem(given)
    assert (after - before)[0].abs().max() > 1e-4
    assert torch.equal(after[1], before[1])


def test_heads_look_near_their_latents() -> None:
    """With all contents equal, a narrow head's latent takes the value of the Gaussian at its own place."""
    torch.manual_seed(0)
    centres = grid_centres(16, (4, 4))
    attention = CrossAttention(16, 2, centres)
    with torch.no_grad():
        attention.query.weight.zero_()
        attention.query.bias.zero_()
        attention.log_windows.fill_(-3.0)
        attention.offsets.zero_()
        attention.out.weight.copy_(torch.eye(16))
        attention.out.bias.zero_()
    gaussians = torch.randn(1, 16, 16)
    mask = torch.ones(1, 16, dtype=torch.bool)
    seen = attention(torch.zeros(1, 16, 16), gaussians, centres[None], mask)
    values = attention.key_value(attention.norm_gaussians(gaussians)).chunk(2, dim=-1)[1]
    assert torch.allclose(seen, values * torch.sigmoid(-attention.nothing[0]), atol=1e-4)


def test_window_is_the_gaussian_it_says() -> None:
    torch.manual_seed(0)
    centres = grid_centres(9, (3, 3))
    attention = CrossAttention(8, 2, centres)
    gaussians, where = torch.randn(1, 5, 8), torch.rand(1, 5, 2) * 2 - 1
    latents, mask = torch.randn(1, 9, 8), torch.tensor([[True, True, False, True, True]])
    query = attention.query(attention.norm_latents(latents)).view(1, 9, 2, 4).transpose(1, 2)
    key, value = (
        part.reshape(1, 5, 2, 4).transpose(1, 2)
        for part in attention.key_value(attention.norm_gaussians(gaussians)).chunk(2, dim=-1)
    )
    centre = centres + attention.offsets[:, None]
    distance = (where[0] - centre[:, :, None]).square().sum(-1)
    logits = query @ key.mT / 2 - 0.5 * distance / (2 * attention.log_windows)[:, None, None].exp()
    logits = torch.cat([logits.masked_fill(~mask, -torch.inf), torch.full((1, 2, 9, 1), -2.0)], dim=-1)
    pooled = (logits.softmax(-1)[..., :5] @ value).transpose(1, 2).reshape(1, 9, 8)
    assert torch.allclose(attention(latents, gaussians, where, mask), attention.out(pooled), atol=1e-5)


@pytest.mark.parametrize(("num_latents", "shape"), [(98, (7, 14)), (12, (3, 4)), (10, (2, 5))])
def test_places_of_any_number_of_latents(num_latents: int, shape: tuple[int, int]) -> None:
    centres = grid_centres(num_latents)
    assert centres.shape == (num_latents, 2)
    assert len(centres[:, 1].unique()) == shape[0]
    assert len(centres[:, 0].unique()) == shape[1]
    assert centres.abs().max() < 1


def test_fewer_latents_bring_their_own_positions() -> None:
    assert build_stem(config(16)).positional_embedding is None
    stem = build_stem(config(8))
    assert stem.positional_embedding.shape == (8, 40)
    assert stem(splats()).shape == (2, 8, 40)


def test_registry_is_what_params_allow() -> None:
    assert tuple(STEMS) == STEM_NAMES
    with pytest.raises(PermanentError, match="paper"):
        build_stem(replace(config(), stem="other"))


def test_config_survives_json() -> None:
    made = config()
    assert StemConfig.from_json(made.as_json(), "here") == made
    values = made.as_json()
    del values["grid"]
    with pytest.raises(PermanentError, match=r"here.*grid"):
        StemConfig.from_json(values, "here")


def test_width_must_divide_by_heads() -> None:
    with pytest.raises(ValueError, match="multiple"):
        Resampler(30, layers=1, heads=4, centres=grid_centres(4))


def test_a_number_of_latents_without_a_grid_is_refused() -> None:
    assert grid_shape(8) == (2, 4)
    assert grid_shape(98, (14, 14)) == (7, 14)
    assert grid_shape(7, (1, 7)) == (1, 7)  # the teacher's own
    with pytest.raises(UsageError, match=r"num_latents is 97: .* 1 x 97; take 96 or 98"):
        grid_shape(97, (14, 14))
    with pytest.raises(UsageError, match="take 4 or 6"):
        build_stem(config(5))
