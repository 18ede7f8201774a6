"""Learned latents over per-Gaussian features: a Perceiver resampler, [B, N, W] -> [B, L, W].

The paper's resampler (GaussianVision, arXiv 2509.22615): cross-attention from learned latents to the Gaussians, then
an MLP, pre-norm, repeated. Each latent has a place in the picture, and each head prefers Gaussians near that place by
a Gaussian window whose centre and width are learned: worth .3 to 1.4 points on CIFAR-10 against no such preference.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.tokens import fourier

WINDOW_NARROW, WINDOW_WIDE = 0.5, 4.0  # first widths of the heads' windows, in spacings of the latents
NOTHING = -2.0  # first logit of looking at no Gaussian at all


def grid_centres(num_latents: int, grid: tuple[int, int] | None = None) -> Tensor:
    """Places of the latents, [L, 2] as (x, y) with the picture's edges at -1 and 1, row by row from the top left.

    grid: (rows, columns), the teacher's patches; without one, the most nearly square grid of exactly num_latents
    places.
    """
    if grid is None or grid[0] * grid[1] != num_latents:
        rows = next(n for n in range(math.isqrt(num_latents), 0, -1) if num_latents % n == 0)
        grid = (rows, num_latents // rows)
    rows, columns = grid
    y = (torch.arange(rows) * 2.0 + 1.0) / rows - 1.0
    x = (torch.arange(columns) * 2.0 + 1.0) / columns - 1.0
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=-1)


class CrossAttention(nn.Module):
    """Latents [B, L, W] attend to Gaussians [B, N, W]; permutation-invariant over Gaussians.

    A head's logits are query . key / sqrt(C) - |mu - p|^2 / (2 s^2), p the latent's centre and s the head's window,
    both learned. The second term needs no [L, N] matrix: it is (p . mu - |mu|^2 / 2 - |p|^2 / 2) / s^2, a few more
    channels of query and key. One more key stands for no Gaussian at all, with a learned logit and the value zero: a
    picture whose Gaussians were all pruned (a black one) has an answer, and a head may say how much there is to see.
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
        ratio = torch.arange(heads) / max(heads - 1, 1)
        self.log_windows = nn.Parameter((spacing * WINDOW_NARROW * (WINDOW_WIDE / WINDOW_NARROW) ** ratio).log())

    def _heads(self, values: Tensor) -> Tensor:
        batch, count, _ = values.shape
        return values.reshape(batch, count, self.heads, -1).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, where: Tensor, mask: Tensor) -> Tensor:
        one = torch.ones_like(self.centres[:, :1])
        places = torch.cat([self.centres, one, -0.5 * self.centres.square().sum(-1, keepdim=True)], dim=-1)
        window = (-2.0 * self.log_windows).exp()[:, None, None] * places  # [heads, L, 4]
        nothing = self.nothing[:, None, None].expand(-1, len(places), 1)
        query = torch.cat([query, torch.cat([window, nothing], dim=-1).expand(len(query), -1, -1, -1)], dim=-1)

        lifted = [where, -0.5 * where.square().sum(-1, keepdim=True), torch.ones_like(where[..., :1])]
        places_seen = F.pad(torch.cat(lifted, dim=-1), (0, 1))[:, None].expand(-1, self.heads, -1, -1)
        key = F.pad(torch.cat([key, places_seen], dim=-1), (0, 0, 0, 1))  # the last key stands for nothing: zeros ...
        key = key + F.pad(key.new_ones(1, 1), (key.shape[-1] - 1, 0, key.shape[-2] - 1, 0))  # ... and a one
        visible = F.pad(mask, (0, 1), value=True)[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, F.pad(value, (0, 0, 0, 1)), attn_mask=visible, scale=1.0)

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
