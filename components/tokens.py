"""Splats -> features [B, N, F]: the only place where features of Gaussians are defined.

The set follows the paper's stem (GaussianVision, arXiv 2509.22615): log of the scales, Fourier features of position
and covariance, normalisation; colours and a smooth orientation beside them. Everything is measured in units of half
the picture's sides, so that features do not depend on the size in pixels. Nothing is clamped: a fifth of a fit's
centres lie outside the picture and some colours are negative, and both mean something.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

POSITION_FREQUENCIES = 5
COVARIANCE_FREQUENCIES = 2
NUM_FEATURES = 2 * (1 + 2 * POSITION_FREQUENCIES) + 3 * (1 + 2 * COVARIANCE_FREQUENCIES) + 2 + 2 + 3
MIN_SCALE = 1e-6  # of half a side: far below a fit's smallest Gaussian; keeps the logarithm finite
MIN_STD = 1e-4


class SplatTensors(Protocol):
    """A padded batch of splats: what a loader's SplatBatch holds."""

    @property
    def means(self) -> Tensor:
        """[B, N, 2] centres in pixels, x right, y down, pixel centres at integers."""

    @property
    def cholesky(self) -> Tensor:
        """[B, N, 3] = (l00, l10, l11), Sigma = L L^T, in pixels."""

    @property
    def colors(self) -> Tensor:
        """[B, N, 3]."""

    @property
    def mask(self) -> Tensor:
        """[B, N] bool: True where there is a Gaussian, False where there is padding."""


@dataclass(frozen=True)
class FeatureStats:
    """One mean and one standard deviation a feature, over all Gaussians of the training data."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def fourier(values: Tensor, frequencies: int) -> Tensor:
    """[..., C] -> [..., C * 2 * frequencies]: sin and cos of pi * 2^k * value for k = 0 .. frequencies - 1."""
    octaves = math.pi * 2.0 ** torch.arange(frequencies, dtype=values.dtype, device=values.device)
    angles = (values.unsqueeze(-1) * octaves).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def positions(means: Tensor, width: int, height: int) -> Tensor:
    """[..., 2] pixels -> [..., 2] with the picture's edges at -1 and 1."""
    sides = means.new_tensor([width, height])
    return (2.0 * means + 1.0) / sides - 1.0


def splat_features(means: Tensor, cholesky: Tensor, colors: Tensor, width: int, height: int) -> Tensor:
    """Features of every Gaussian, not yet normalised: [B, N, NUM_FEATURES].

    means [B, N, 2], cholesky [B, N, 3], colors [B, N, 3] in pixels of a picture of width x height. In order: position
    (2) and its Fourier features (20); sigma_x, sigma_y, rho (3) and their Fourier features (12); log eigen-scales,
    larger first (2); orientation as anisotropy times cos and sin of twice the angle (2); colour (3).
    """
    sides = means.new_tensor([2.0 / width, 2.0 / height])
    l00, l10, l11 = cholesky[..., 0] * sides[0], cholesky[..., 1] * sides[1], cholesky[..., 2] * sides[1]
    s00, s01, s11 = l00 * l00, l00 * l10, l10 * l10 + l11 * l11
    half_trace, half_difference = 0.5 * (s00 + s11), 0.5 * (s00 - s11)
    floor = MIN_SCALE**2
    larger = half_trace + (half_difference**2 + s01**2 + floor**2).sqrt()
    smaller = (l00 * l11) ** 2 / larger.clamp_min(floor)  # determinant over the other root: no cancellation
    log_scales = 0.5 * torch.stack([larger, smaller], dim=-1).clamp_min(floor).log()
    orientation = torch.stack([half_difference, s01], dim=-1) / half_trace.clamp_min(floor).unsqueeze(-1)
    sigma_y = s11.clamp_min(floor).sqrt()
    covariance = torch.stack([l00, sigma_y, l10 / sigma_y], dim=-1)  # rho = s01 / (sigma_x sigma_y) = l10 / sigma_y
    where = positions(means, width, height)
    parts = [where, fourier(where, POSITION_FREQUENCIES), covariance, fourier(covariance, COVARIANCE_FREQUENCIES)]
    return torch.cat([*parts, log_scales, orientation, colors], dim=-1)


def feature_stats(batches: Iterable[SplatTensors], width: int, height: int) -> FeatureStats:
    """Mean and standard deviation of each feature over all valid Gaussians of `batches`, summed in float64.

    Raises ValueError when there is no Gaussian at all.
    """
    count = 0
    total = torch.zeros(NUM_FEATURES, dtype=torch.float64)
    squares = torch.zeros(NUM_FEATURES, dtype=torch.float64)
    for batch in batches:
        features = splat_features(batch.means, batch.cholesky, batch.colors, width, height)[batch.mask]
        features = features.to(device="cpu", dtype=torch.float64)
        count += len(features)
        total += features.sum(0)
        squares += features.square().sum(0)
    if count == 0:
        raise ValueError("no Gaussians to take feature statistics from")
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(MIN_STD)
    return FeatureStats(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def mirrored(means: Tensor, cholesky: Tensor, width: int, flip: Tensor) -> tuple[Tensor, Tensor]:
    """Means and Cholesky factors of the pictures mirrored left to right where flip [B] is True; exact.

    x becomes W - 1 - x. The mirrored covariance has -S01, so l00 and l11 stay and l10 changes its sign; colours stay.
    """
    chosen = flip[:, None]
    x = torch.where(chosen, (width - 1) - means[..., 0], means[..., 0])
    l10 = torch.where(chosen, -cholesky[..., 1], cholesky[..., 1])
    return torch.stack([x, means[..., 1]], dim=-1), torch.stack([cholesky[..., 0], l10, cholesky[..., 2]], dim=-1)
