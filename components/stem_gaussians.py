"""What stems that read Gaussians share: normalised features of each, a small network on them, places of one's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.errors import PermanentError
from components.resampler import GatedMlp
from components.stem_config import Normalise, StemConfig
from components.tokens import NUM_FEATURES, SplatTensors, splat_features


class Features(nn.Module):
    """Normalised features of each Gaussian, [B, N, NUM_FEATURES]; zero where there is none."""

    def __init__(self, config: StemConfig) -> None:
        super().__init__()
        if len(config.features.mean) != NUM_FEATURES:
            raise PermanentError(
                f"the stem was trained on {len(config.features.mean)} features a Gaussian, this version makes "
                f"{NUM_FEATURES}; train the adapter again"
            )
        self.picture = config.picture
        self.normalise = Normalise(config.features)

    def forward(self, splats: SplatTensors) -> Tensor:
        """Splats, padded, -> [B, N, NUM_FEATURES]."""
        features = self.normalise(splat_features(splats.means, splats.cholesky, splats.colors, *self.picture))
        return torch.where(splats.mask.unsqueeze(-1), features, 0.0)


class GaussianStem(nn.Module):
    """Features of each Gaussian through `embed`, then a residual gated MLP `ratio` times as wide.

    The kinds make of that what stands in for patch embeddings, and end with `placed`. They set positional_embedding
    themselves, last, as the order in which weights are drawn is part of a seed's meaning.
    """

    positional_embedding: nn.Parameter | None

    def __init__(self, config: StemConfig, embed: nn.Sequential, ratio: int) -> None:
        super().__init__()
        self.picture = config.picture
        self.embed, self.refine = embed, GatedMlp(config.stem_width, ratio)
        self.features, self.tokens = Features(config), Normalise(config.tokens)

    def gaussians(self, splats: SplatTensors) -> Tensor:
        """Splats, padded, -> [B, N, stem_width]."""
        embedded = self.embed(self.features(splats))
        refined: Tensor = embedded + self.refine(embedded)
        return refined

    def placed(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, width], with mean 0 and deviation 1, at the teacher's scale and at their places."""
        tokens = self.tokens.back(tokens)
        return tokens if self.positional_embedding is None else tokens + self.positional_embedding


def embedding(width: int) -> nn.Sequential:
    """Features [.., NUM_FEATURES] -> [.., width]: one layer, normalised, with a GELU."""
    return nn.Sequential(nn.Linear(NUM_FEATURES, width), nn.LayerNorm(width), nn.GELU())


def own_positions(config: StemConfig) -> nn.Parameter | None:
    """A stem's own positional embedding [L, width], where there are not as many latents as the teacher has patches.

    The teacher's positional embedding then has no place for them.
    """
    if config.num_latents == config.grid[0] * config.grid[1]:
        return None
    return nn.Parameter(0.02 * torch.randn(config.num_latents, config.width))
