"""Grid pooling: Gaussians pooled by the cell that their centre lies in (GaussianVision, arXiv 2509.22615, ablation)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.resampler import grid_shape
from components.stem_config import StemConfig
from components.stem_gaussians import GaussianStem, embedding, own_positions
from components.tokens import SplatTensors


class PooledStem(GaussianStem):
    """Each Gaussian belongs to one of L groups; a group's mean, its sum and its number of Gaussians are projected.

    Who belongs where is the kinds' own (`groups`). The per-Gaussian part is that of the other stems.
    """

    def __init__(self, config: StemConfig) -> None:
        inner, width = config.stem_width, config.width
        super().__init__(config, embedding(inner), 1)
        self.num_latents = config.num_latents
        self.cells = grid_shape(config.num_latents, config.grid)
        self.out = nn.Linear(2 * inner + 1, width)
        self.places = nn.Parameter(torch.zeros(config.num_latents, width))
        self.positional_embedding = own_positions(config)

    def groups(self, splats: SplatTensors) -> Tensor:
        """[B, N] int64: each Gaussian's group in 0 .. L - 1; anything where there is none."""
        raise NotImplementedError

    def forward(self, splats: SplatTensors) -> Tensor:
        """Splats (padded to [B, N, .] with mask [B, N]) -> [B, L, width]; the Gaussians' order does not matter."""
        gaussians = self.gaussians(splats).float()
        present = splats.mask.unsqueeze(-1).to(gaussians)
        carried = torch.cat([gaussians, torch.ones_like(gaussians[..., :1])], dim=-1) * present
        index = self.groups(splats).unsqueeze(-1).expand_as(carried)
        summed = carried.new_zeros(len(carried), self.num_latents, carried.shape[-1]).scatter_add(1, index, carried)
        total, count = summed[..., :-1], summed[..., -1:]
        usual = splats.mask.sum(1, keepdim=True).clamp_min(1).unsqueeze(-1) / self.num_latents  # Gaussians a group
        pooled = torch.cat([total / count.clamp_min(1), total / usual, count / usual], dim=-1)
        return self.placed(self.out(pooled) + self.places)


class GridStem(PooledStem):
    """A group is a cell of the grid of patches; centres outside of the picture go to the nearest cell."""

    def groups(self, splats: SplatTensors) -> Tensor:
        """The cell of each centre, row by row."""
        rows, columns = self.cells
        where = torch.where(splats.mask.unsqueeze(-1), splats.means.float() + 0.5, 0.0)
        column = (where[..., 0] * (columns / self.picture[0])).floor().clamp(0, columns - 1)
        row = (where[..., 1] * (rows / self.picture[1])).floor().clamp(0, rows - 1)
        return (row * columns + column).long()
