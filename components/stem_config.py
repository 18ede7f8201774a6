"""What a stem is built from: all it takes to build the same one again; adapter.json holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import PermanentError
from components.tokens import FeatureStats

AS_THEY_ARE = FeatureStats(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class StemConfig:
    """What a stem is built from.

    stem: its name in components.stems.STEMS. stem_width: channels a Gaussian (and a latent of the resampler's). layers,
    heads: of the resampler. num_latents. grid: (rows, columns) of the teacher's patches; width: the teacher's. picture:
    (width, height) in pixels of the pictures that the splats were fitted to. features: statistics of the Gaussians'
    features over the first 10,000 pictures of one epoch of training, augmented as it is; tokens: the same of the
    teacher's patch embeddings, a channel each: what the output is scaled to. points, channels: of feature splatting,
    fine sample points a side of a patch and channels at each. top_k: Gaussians that a patch takes at most, those
    nearest. pixels: mean and standard deviation of RGB in [0, 1] that the teacher's pictures are normalised with.
    patch: side of the teacher's patches in its own pixels, 0: unknown.
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
    points: int = 4
    channels: int = 12
    top_k: int = 256
    pixels: FeatureStats = AS_THEY_ARE
    patch: int = 0

    def as_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> StemConfig:
        """Raises PermanentError naming `where` when a field is missing or wrong.

        Fields that only newer stems have may be missing: adapters of the older ones stay readable.
        """
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
                points=int(values.get("points", cls.points)),
                channels=int(values.get("channels", cls.channels)),
                top_k=int(values.get("top_k", cls.top_k)),
                pixels=_stats(values["pixels"]) if "pixels" in values else cls.pixels,
                patch=int(values.get("patch", cls.patch)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PermanentError(f"{where}: not a stem's description ({error!r}); train the adapter again") from None


def _stats(values: Mapping[str, Any]) -> FeatureStats:
    return FeatureStats(mean=tuple(map(float, values["mean"])), std=tuple(map(float, values["std"])))


class Normalise(nn.Module):
    """Values [..., C] -> (values - mean) / std, the statistics being of a stem's description, not of its weights."""

    def __init__(self, stats: FeatureStats) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(stats.mean), persistent=False)
        self.register_buffer("std", torch.tensor(stats.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, values: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return (values - self.mean) / self.std

    def back(self, values: Tensor) -> Tensor:
        """The other way round: [..., C] with mean 0 and deviation 1 -> [..., C]."""
        return self.mean + self.std * values
