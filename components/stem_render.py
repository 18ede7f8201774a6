"""Rendering inside the stem: what the splats themselves can give, the ceiling that readers are reported against."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.errors import UsageError
from components.stem_config import Normalise, StemConfig
from components.stem_points import splat_to_points, square_points
from components.tokens import SplatTensors


class RenderStem(nn.Module):
    """Splats rendered at the teacher's own pixels, then a patch embedding that starts as the teacher's and trains.

    Before training this is the picture rendered and shown to the teacher. It is not clamped to [0, 1], as neither the
    control's pictures nor the targets are where colours are jittered.
    """

    def __init__(self, config: StemConfig) -> None:
        super().__init__()
        if config.num_latents != config.grid[0] * config.grid[1]:
            raise UsageError(
                f"stem 'render' makes the teacher's {config.grid[0] * config.grid[1]} patches, not "
                f"{config.num_latents} latents; set train_adapter.num_latents to 0"
            )
        if config.patch < 1:
            raise UsageError("stem 'render' needs the side of the teacher's patches in pixels (StemConfig.patch)")
        self.picture, self.top_k, self.cells = config.picture, config.top_k, config.grid
        self.points = (square_points(config.patch, 0.0, 1.0 / config.patch),)
        self.pixels = Normalise(config.pixels)
        self.embedding = nn.Linear(3 * config.patch**2, config.width)

    def forward(self, splats: SplatTensors) -> Tensor:
        """Splats (padded to [B, N, .] with mask [B, N]) -> [B, L, width]; the Gaussians' order does not matter."""
        pixels = splat_to_points(
            splats, splats.colors, picture=self.picture, cells=self.cells, points=self.points, top_k=self.top_k
        )
        with torch.autocast(pixels.device.type, enabled=False):
            embedded: Tensor = self.embedding(self.pixels(pixels).flatten(2))
        return embedded

    @torch.no_grad()
    def start(self, conv: nn.Conv2d) -> None:
        """Start at the teacher's patch embedding."""
        self.embedding.weight.copy_(conv.weight.permute(0, 2, 3, 1).flatten(1))  # [width, rows, columns, channels]
        if conv.bias is None:
            self.embedding.bias.zero_()
        else:
            self.embedding.bias.copy_(conv.bias)
