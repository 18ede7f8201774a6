"""Features of Gaussians: what they say, and what must not change them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from components.tokens import NUM_FEATURES, FeatureStats, feature_stats, mirrored, positions, splat_features

COLOURS = slice(NUM_FEATURES - 3, NUM_FEATURES)
LOG_SCALES = slice(NUM_FEATURES - 7, NUM_FEATURES - 5)
ORIENTATION = slice(NUM_FEATURES - 5, NUM_FEATURES - 3)


def some_splats(batch: int, count: int, side: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    means = (torch.rand(batch, count, 2, generator=g) * 1.6 - 0.3) * side  # a good part lies outside
    cholesky = torch.randn(batch, count, 3, generator=g)
    cholesky[..., [0, 2]] = cholesky[..., [0, 2]].abs() + 0.3
    return means, cholesky * side / 16, torch.randn(batch, count, 3, generator=g)


def test_shape_and_finite_and_not_clamped() -> None:
    means, cholesky, colors = some_splats(3, 50, 32)
    features = splat_features(means, cholesky, colors, 32, 32)
    assert features.shape == (3, 50, NUM_FEATURES)
    assert features.isfinite().all()
    assert torch.equal(features[..., COLOURS], colors)
    assert features[..., :2].abs().max() > 1.2  # centres outside the picture stay outside


def test_edges_of_the_picture_are_at_one() -> None:
    corners = torch.tensor([[-0.5, -0.5], [31.5, 15.5], [15.5, 7.5]])
    assert torch.equal(positions(corners, 32, 16), torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]))


def test_features_do_not_depend_on_the_size_in_pixels() -> None:
    means, cholesky, colors = some_splats(2, 40, 32)
    larger = splat_features((means + 0.5) * 7 - 0.5, cholesky * 7, colors, 224, 224)
    assert torch.allclose(larger, splat_features(means, cholesky, colors, 32, 32), atol=2e-3)


def test_eigen_scales_and_orientation_agree_with_linear_algebra() -> None:
    means, cholesky, colors = some_splats(1, 60, 32, seed=3)
    factor = torch.zeros(60, 2, 2, dtype=torch.float64)
    factor[:, 0, 0], factor[:, 1, 0], factor[:, 1, 1] = cholesky[0].double().T
    values, vectors = torch.linalg.eigh(factor @ factor.mT)
    features = splat_features(means, cholesky, colors, 32, 32)[0].double()
    wanted = 0.5 * values.flip(-1).log() + math.log(2 / 32)
    assert torch.allclose(features[:, LOG_SCALES], wanted, atol=1e-4)
    angle = torch.atan2(vectors[:, 1, 1], vectors[:, 0, 1])  # of the longer axis
    anisotropy = (values[:, 1] - values[:, 0]) / values.sum(-1)
    turned = torch.stack([(2 * angle).cos(), (2 * angle).sin()], dim=-1) * anisotropy[:, None]
    assert torch.allclose(features[:, ORIENTATION], turned, atol=1e-4)


def test_degenerate_gaussians_stay_finite() -> None:
    zeros = torch.zeros(1, 2, 3)
    features = splat_features(torch.zeros(1, 2, 2), zeros, zeros, 32, 32)
    assert features.isfinite().all()


def test_stats_look_at_valid_gaussians_only() -> None:
    means, cholesky, colors = some_splats(4, 30, 32)
    mask = torch.rand(4, 30, generator=torch.Generator().manual_seed(1)) < 0.6
    batch = SimpleNamespace(means=means, cholesky=cholesky, colors=colors, mask=mask)
    stats = feature_stats([batch], 32, 32)
    spoiled = SimpleNamespace(
        means=torch.where(mask[..., None], means, 1e6), cholesky=cholesky, colors=colors, mask=mask
    )
    assert feature_stats([spoiled], 32, 32) == stats
    valid = splat_features(means, cholesky, colors, 32, 32)[mask]
    assert torch.allclose(torch.tensor(stats.mean), valid.mean(0), atol=1e-4)
    assert torch.allclose(torch.tensor(stats.std), valid.std(0, correction=0), atol=1e-4)
    halves = [
        SimpleNamespace(means=means[i], cholesky=cholesky[i], colors=colors[i], mask=mask[i])
        for i in (slice(0, 2), slice(2, 4))
    ]
    together = feature_stats(halves, 32, 32)
    assert together.mean == pytest.approx(stats.mean, abs=1e-9)
    assert isinstance(stats, FeatureStats)


def test_no_gaussians_no_stats() -> None:
    means, cholesky, colors = some_splats(1, 3, 32)
    empty = SimpleNamespace(means=means, cholesky=cholesky, colors=colors, mask=torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="no Gaussians"):
        feature_stats([empty], 32, 32)


def render(means: torch.Tensor, cholesky: torch.Tensor, colors: torch.Tensor, side: int) -> torch.Tensor:
    """The additive picture by its definition, in float64: [side, side, 3]."""
    factor = torch.zeros(len(means), 2, 2, dtype=torch.float64)
    factor[:, 0, 0], factor[:, 1, 0], factor[:, 1, 1] = cholesky.double().T
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    d = torch.stack([x, y], dim=-1).double()[..., None, :] - means.double()
    precision = torch.linalg.inv(factor @ factor.mT)
    weight = torch.exp(-0.5 * torch.einsum("hwni,nij,hwnj->hwn", d, precision, d))
    return weight @ colors.double()


def test_mirrored_splats_render_the_mirrored_picture() -> None:
    means, cholesky, colors = some_splats(2, 20, 24)
    flip = torch.tensor([True, False])
    new_means, new_cholesky = mirrored(means, cholesky, 24, flip)
    assert torch.equal(new_means[1], means[1])
    assert torch.equal(new_cholesky[1], cholesky[1])
    before = render(means[0], cholesky[0], colors[0], 24)
    after = render(new_means[0], new_cholesky[0], colors[0], 24)
    assert torch.allclose(after, before.flip(1), atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-2)
    again = mirrored(new_means, new_cholesky, 24, flip)
    assert torch.allclose(again[0], means, atol=1e-5)
    assert torch.equal(again[1], cholesky)
