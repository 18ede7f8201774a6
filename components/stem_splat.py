"""Feature splatting: each Gaussian's learned features, summed at sample points of every patch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from components.resampler import grid_shape
from components.stem_config import StemConfig
from components.stem_gaussians import GaussianStem, embedding, own_positions
from components.stem_points import splat_to_points, square_points
from components.tokens import SplatTensors

COARSE_SPACING, COARSE_BLUR = 0.75, 0.3125  # of a patch: 3 x 3 points that also see the neighbours
RIDGE = 1e-3  # of the features' mean square


class SplatStem(GaussianStem):
    """Additive reader: per-Gaussian features are splatted like colours, then read by a linear map and a small MLP.

    A Gaussian's normalised features go through a small gated MLP to `channels` values, three of which are its colour
    itself. They are summed at points x points sample points of every patch, a spacing apart and blurred by half of it,
    and at 3 x 3 wider ones, with exact weights (components/stem_points.py): there are no queries, no keys and no
    softmax. What stands at a patch's points is read by one linear map, to which a residual MLP and a bias for each
    patch's place are added.
    """

    def __init__(self, config: StemConfig) -> None:
        inner, width = config.stem_width, config.width
        super().__init__(config, embedding(inner), 1)
        self.top_k = config.top_k
        self.cells = grid_shape(config.num_latents, config.grid)
        fine = square_points(config.points, 0.5 / config.points, 1.0 / config.points)
        self.points = (fine, square_points(3, COARSE_BLUR, COARSE_SPACING))
        count = sum(len(points.offsets) for points in self.points)
        self.values = nn.Linear(inner, config.channels - 3)
        self.readout = nn.Linear(count * config.channels, width)
        self.last = nn.Linear(width, width)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.places = nn.Parameter(torch.zeros(config.num_latents, width))
        self.positional_embedding = own_positions(config)

    def splatted(self, splats: SplatTensors) -> Tensor:
        """What stands at the points of every patch: [B, L, K * channels]."""
        values = torch.cat([splats.colors, self.values(self.gaussians(splats)).to(splats.colors)], dim=-1)
        return splat_to_points(
            splats, values, picture=self.picture, cells=self.cells, points=self.points, top_k=self.top_k
        ).flatten(2)

    def forward(self, splats: SplatTensors) -> Tensor:
        """Splats (padded to [B, N, .] with mask [B, N]) -> [B, L, width]; the Gaussians' order does not matter."""
        splatted = self.splatted(splats)
        # The map starts by undoing a blur, with weights that cancel each other: float32, whatever the rest runs in.
        with torch.autocast(splatted.device.type, enabled=False):
            read = self.readout(splatted) + self.places
        return self.placed(read + self.last(self.mix(read)))

    @torch.no_grad()
    def start(self, pairs: Iterable[tuple[SplatTensors, Tensor]]) -> None:
        """Start the linear map at the ridge regression of the teacher's patch embeddings [B, L, width] on the points.

        The learned channels are random functions of the Gaussians then, the others their colours. The MLP starts at
        nothing.
        """
        size = self.readout.in_features + 1
        gram, product = (
            torch.zeros(size, size, dtype=torch.float64),
            torch.zeros(size, self.readout.out_features).double(),
        )
        count = 0
        for splats, patches in pairs:
            seen = self.splatted(splats).flatten(0, 1).double().cpu()
            seen = torch.cat([seen, torch.ones(len(seen), 1, dtype=seen.dtype)], dim=1)
            gram += seen.T @ seen
            product += seen.T @ self.tokens(patches.float()).flatten(0, 1).double().cpu()
            count += len(seen)
        if count == 0:
            raise ValueError("no pictures to start a stem from")
        gram.diagonal()[:-1].add_(RIDGE * gram.diagonal()[:-1].mean())
        solved = torch.linalg.solve(gram, product)
        self.readout.weight.copy_(solved[:-1].T)
        self.readout.bias.copy_(solved[-1])
        for parameter in self.last.parameters():
            parameter.zero_()
