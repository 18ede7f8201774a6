"""Learned latents over per-Gaussian features: a Perceiver resampler, [B, N, W] -> [B, L, W].

The paper's resampler (GaussianVision, arXiv 2509.22615): cross-attention from learned latents to the Gaussians, then
an MLP, pre-norm, repeated. Each latent has a place in the picture, and each head prefers Gaussians near that place by
a Gaussian window whose centre and width are learned.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from components.errors import UsageError
from components.tokens import fourier

# How windows start, in spacings of the latents: half of the heads look closely at points on a ring around the latent's
# centre, the others at the centre itself, ever wider. Eight such heads left .23 of the variance of a teacher's patch
# embeddings unexplained where four around one centre left .32 (CIFAR-10, 64 Gaussians, 300 steps).
RING, NARROW = 0.3, 0.35
WIDE_FIRST, WIDE_LAST = 0.5, 2.0
FUSED_FIRST = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
WIDEST = 4  # columns a row that a grid of latents may have
NOTHING = -2.0  # first logit of looking at no Gaussian at all


def grid_shape(num_latents: int, grid: tuple[int, int] | None = None) -> tuple[int, int]:
    """(rows, columns) of num_latents places: `grid` where it has as many, else the most nearly square.

    Raises UsageError where that has more than WIDEST times as many columns as rows, as for a prime number.
    """
    if grid is not None and grid[0] * grid[1] == num_latents:
        return grid
    rows, columns = _most_square(num_latents)
    if _aspect(num_latents) > WIDEST:
        fewer = next(n for n in range(num_latents - 1, 0, -1) if _aspect(n) <= WIDEST)
        more = next(n for n in itertools.count(num_latents + 1) if _aspect(n) <= WIDEST)
        raise UsageError(
            f"train_adapter.num_latents is {num_latents}: places for the latents would be {rows} x {columns}; "
            f"take {fewer} or {more}, whose grids are more nearly square"
        )
    return rows, columns


def _most_square(count: int) -> tuple[int, int]:
    rows = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    return rows, count // rows


def _aspect(count: int) -> float:
    rows, columns = _most_square(count)
    return columns / rows


def grid_centres(num_latents: int, grid: tuple[int, int] | None = None) -> Tensor:
    """Places of the latents, [L, 2] as (x, y) with the picture's edges at -1 and 1, row by row from the top left.

    grid: (rows, columns), the teacher's patches; without one, the most nearly square grid of exactly num_latents
    places.
    """
    rows, columns = grid_shape(num_latents, grid)
    y = (torch.arange(rows) * 2.0 + 1.0) / rows - 1.0
    x = (torch.arange(columns) * 2.0 + 1.0) / columns - 1.0
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=-1)


def _first_windows(heads: int) -> tuple[Tensor, Tensor]:
    """Offsets [heads, 2] and widths [heads] that windows start with, in spacings of the latents."""
    close = heads // 2
    angles = 2.0 * math.pi * (torch.arange(close) + 0.5) / max(close, 1)
    ring = RING * torch.stack([angles.cos(), angles.sin()], dim=-1)
    ratio = torch.arange(heads - close) / max(heads - close - 1, 1)
    wide = WIDE_FIRST * (WIDE_LAST / WIDE_FIRST) ** ratio
    return torch.cat([ring, torch.zeros(heads - close, 2)]), torch.cat([torch.full((close,), NARROW), wide])


def _square(points: Tensor) -> Tensor:
    return points.square().sum(-1, keepdim=True)


class CrossAttention(nn.Module):
    """Latents [B, L, W] attend to Gaussians [B, N, W]; permutation-invariant over Gaussians.

    A head's logits are query . key / sqrt(C) - |mu - p|^2 / (2 s^2), p the latent's centre plus the head's offset and
    s the head's window, all learned. The second term needs no [L, N] matrix: it is (p . mu - |mu|^2 / 2 - |p|^2 / 2)
    / s^2, a few more channels of query and key. One more key stands for no Gaussian at all, with a learned logit and
    the value zero: a picture whose Gaussians were all pruned (a black one) has an answer, and a head may say how much
    there is to see.
    """

    def __init__(self, width: int, heads: int, centres: Tensor) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.norm_latents, self.norm_gaussians = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.centres = nn.Parameter(centres.clone())
        self.nothing = nn.Parameter(torch.full((heads,), NOTHING))
        spacing = 2.0 / math.sqrt(len(centres))
        offsets, windows = _first_windows(heads)
        self.offsets, self.log_windows = nn.Parameter(spacing * offsets), nn.Parameter((spacing * windows).log())

    def _heads(self, values: Tensor) -> Tensor:
        batch, count, width = values.shape
        return values.reshape(batch, count, self.heads, width // self.heads).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, where: Tensor, mask: Tensor) -> Tensor:
        centres = self.centres + self.offsets[:, None]
        places = torch.cat([centres, torch.ones_like(centres[..., :1]), -0.5 * _square(centres)], dim=-1)
        window = (-2.0 * self.log_windows).exp()[:, None, None] * places  # [heads, L, 4]
        nothing = self.nothing[:, None, None].expand(-1, places.shape[1], 1)
        query = torch.cat([query, torch.cat([window, nothing], dim=-1).expand(len(query), -1, -1, -1)], dim=-1)

        lifted = [where, -0.5 * _square(where), torch.ones_like(where[..., :1])]
        places_seen = F.pad(torch.cat(lifted, dim=-1), (0, 1))[:, None].expand(-1, self.heads, -1, -1)
        key = F.pad(torch.cat([key, places_seen], dim=-1), (0, 0, 0, 1))  # the last key stands for nothing: zeros ...
        key = key + F.pad(key.new_ones(1, 1), (key.shape[-1] - 1, 0, key.shape[-2] - 1, 0))  # ... and a one
        visible = F.pad(mask, (0, 1), value=True)[:, None, None, :]
        # Fused kernels (half the time at 64 latents) want one width for queries, keys and values; GPUs a multiple of 4.
        channels, filled = value.shape[-1], -query.shape[-1] % 4 if query.is_cuda else 0
        query, key = F.pad(query, (0, filled)), F.pad(key, (0, filled))
        value = F.pad(value, (0, query.shape[-1] - channels, 0, 1))
        with sdpa_kernel(FUSED_FIRST, set_priority=True):
            pooled = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=1.0)
        return pooled[..., :channels]

    def forward(self, latents: Tensor, gaussians: Tensor, where: Tensor, mask: Tensor) -> Tensor:
        """Latents [B, L, W], gaussians [B, N, W], where [B, N, 2] (edges at -1 and 1), mask [B, N] -> [B, L, W]."""
        width = latents.shape[-1]
        query = self._heads(self.query(self.norm_latents(latents))) * (width // self.heads) ** -0.5
        keys, values = self.key_value(self.norm_gaussians(gaussians)).chunk(2, dim=-1)
        # Far from the centre the window's terms are large and cancel: float32, whatever the rest runs in.
        with torch.autocast(latents.device.type, enabled=False):
            seen = self._attend(query.float(), self._heads(keys).float(), self._heads(values).float(), where, mask)
        attended: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return attended


class GatedMlp(nn.Module):
    """LayerNorm, then width -> ratio * width -> width, gated: what a Gaussian adds is its colour times a shape.

    The gate multiplies the two, which a plain MLP has to learn: .32 unexplained where that left .38.
    """

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * ratio * width)
        self.out = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        gate, value = self.inner(self.norm(x)).chunk(2, dim=-1)
        mixed: Tensor = self.out(F.gelu(gate) * value)
        return mixed


def mlp(width: int, ratio: int) -> nn.Sequential:
    """LayerNorm, then width -> ratio * width -> width with a GELU between."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
    )


class Resampler(nn.Module):
    """`layers` times cross-attention and MLP, pre-norm, over learned latents that start as codes of their places."""

    def __init__(self, width: int, *, layers: int, heads: int, centres: Tensor) -> None:
        super().__init__()
        codes = fourier(centres, 3)[:, :width]
        noise = torch.randn(len(centres), width)
        self.latents = nn.Parameter(0.1 * F.pad(codes, (0, width - codes.shape[1])) + 0.02 * noise)
        self.attentions = nn.ModuleList(CrossAttention(width, heads, centres) for _ in range(layers))
        self.mlps = nn.ModuleList(mlp(width, 4) for _ in range(layers))

    def forward(self, gaussians: Tensor, where: Tensor, mask: Tensor) -> Tensor:
        """Gaussians [B, N, W], where [B, N, 2] (edges at -1 and 1), mask [B, N] bool -> latents [B, L, W]."""
        latents = self.latents.expand(len(gaussians), -1, -1)
        for attention, feed in zip(self.attentions, self.mlps, strict=True):
            latents = latents + attention(latents, gaussians, where, mask)
            latents = latents + feed(latents)
        return latents
