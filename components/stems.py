"""Stems: splats -> what stands in for a teacher's patch embeddings, [B, L, teacher's width].

A stem is a module with `forward(splats) -> [B, L, width]`, built by one entry of STEMS from a StemConfig. The config is
all it takes to build the same stem again; it is what adapter.json holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import PermanentError
from components.resampler import GatedMlp, Resampler, grid_centres
from components.tokens import NUM_FEATURES, FeatureStats, SplatTensors, positions, splat_features


@dataclass(frozen=True, kw_only=True)
class StemConfig:
    """What a stem is built from.

    stem: its name in STEMS. stem_width: channels a Gaussian and a latent; layers, heads: of the resampler; num_latents;
    grid: (rows, columns) of the teacher's patches; width: the teacher's. picture: (width, height) in pixels of the
    pictures that the splats were fitted to. features: statistics of the Gaussians' features over the training data;
    tokens: the same of the teacher's patch embeddings, a channel each: what the output is scaled to.
    """

    stem: str
    stem_width: int
    layers: int
    heads: int
    num_latents: int
    grid: tuple[int, int]
    width: int
    picture: tuple[int, int]
    features: FeatureStats
    tokens: FeatureStats

    def as_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> StemConfig:
        """Raises PermanentError naming `where` when a field is missing or wrong."""
        try:
            rows, columns = (int(n) for n in values["grid"])
            across, down = (int(n) for n in values["picture"])
            return cls(
                stem=str(values["stem"]),
                stem_width=int(values["stem_width"]),
                layers=int(values["layers"]),
                heads=int(values["heads"]),
                num_latents=int(values["num_latents"]),
                grid=(rows, columns),
                width=int(values["width"]),
                picture=(across, down),
                features=_stats(values["features"]),
                tokens=_stats(values["tokens"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PermanentError(f"{where}: not a stem's description ({error!r}); train the adapter again") from None


def _stats(values: Mapping[str, Any]) -> FeatureStats:
    return FeatureStats(mean=tuple(map(float, values["mean"])), std=tuple(map(float, values["std"])))


class PaperStem(nn.Module):
    """The paper's stem: normalised features of each Gaussian, projected, then a Perceiver resampler.

    A small gated MLP a Gaussian stands between projection and resampler: it left .32 of the variance of a teacher's
    patch embeddings unexplained where a plain one left .39 (CIFAR-10, 64 Gaussians, 300 steps). Gaussians keep
    stem_width channels; only the pooled latents are widened to the teacher's width. Where there are not as many
    latents as patches, the teacher's positional embedding has no place for them, and the stem carries one of its own.
    """

    def __init__(self, config: StemConfig) -> None:
        super().__init__()
        self.picture = config.picture
        inner, width = config.stem_width, config.width
        first, second = nn.Linear(NUM_FEATURES, inner), nn.Linear(inner, inner)
        self.embed = nn.Sequential(first, nn.LayerNorm(inner), nn.GELU(), second)
        self.refine = GatedMlp(inner, 2)
        centres = grid_centres(config.num_latents, config.grid)
        self.resampler = Resampler(inner, layers=config.layers, heads=config.heads, centres=centres)
        self.out = nn.Sequential(nn.LayerNorm(inner), nn.Linear(inner, width))
        patches = config.grid[0] * config.grid[1]
        own = config.num_latents != patches
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(config.num_latents, width)) if own else None
        for name, stats in (("feature", config.features), ("token", config.tokens)):
            self.register_buffer(f"{name}_mean", torch.tensor(stats.mean), persistent=False)
            self.register_buffer(f"{name}_std", torch.tensor(stats.std), persistent=False)
        self.feature_mean: Tensor
        self.feature_std: Tensor
        self.token_mean: Tensor
        self.token_std: Tensor

    def forward(self, splats: SplatTensors) -> Tensor:
        """Splats (padded to [B, N, .] with mask [B, N]) -> [B, L, width]; the Gaussians' order does not matter."""
        present = splats.mask.unsqueeze(-1)
        features = splat_features(splats.means, splats.cholesky, splats.colors, *self.picture)
        features = torch.where(present, (features - self.feature_mean) / self.feature_std, 0.0)
        gaussians = self.embed(features)
        gaussians = gaussians + self.refine(gaussians)
        where = torch.where(present, positions(splats.means, *self.picture), 0.0)
        tokens: Tensor = self.token_mean + self.token_std * self.out(self.resampler(gaussians, where, splats.mask))
        return tokens if self.positional_embedding is None else tokens + self.positional_embedding


STEMS: dict[str, Callable[[StemConfig], nn.Module]] = {"paper": PaperStem}


def build_stem(config: StemConfig) -> nn.Module:
    """The stem that `config` describes, freshly initialised; PermanentError for an unknown name."""
    if config.stem not in STEMS:
        raise PermanentError(f"unknown stem {config.stem!r}; this version knows: {', '.join(STEMS)}")
    return STEMS[config.stem](config)
