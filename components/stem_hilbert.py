"""Hilbert-curve patches: Gaussians in a curve's order, cut into groups (GaussianVision, arXiv 2509.22615, ablation)."""

from __future__ import annotations

import torch
from torch import Tensor

from components.stem_grid import PooledStem
from components.tokens import SplatTensors

ORDER = 10  # the curve visits 2^10 x 2^10 places


def hilbert_index(x: Tensor, y: Tensor, order: int) -> Tensor:
    """Place on the Hilbert curve that fills 2^order x 2^order: x, y int64 [...] in 0 .. 2^order - 1 -> int64 [...].

    The standard iteration from the highest bit down: the quadrant gives two bits, then the coordinates are turned into
    the quadrant's own frame (https://en.wikipedia.org/wiki/Hilbert_curve, xy2d).
    """
    index = torch.zeros_like(x)
    for bit in reversed(range(order)):
        side = 1 << bit
        right, lower = (x & side) > 0, (y & side) > 0
        index = index + side * side * ((3 * right.long()) ^ lower.long())
        last = 2 * side - 1
        mirror = ~lower & right
        x, y = torch.where(mirror, last - x, x) & last, torch.where(mirror, last - y, y) & last
        x, y = torch.where(lower, x, y), torch.where(lower, y, x)
    return index


class HilbertStem(PooledStem):
    """A group is a stretch of the curve through the picture; a picture's Gaussians are shared out evenly."""

    @torch.no_grad()
    def groups(self, splats: SplatTensors) -> Tensor:
        """Rank along the curve times L over the picture's own number of Gaussians, rounded down.

        Gaussians at one place of the curve, as all are that lie beyond one corner, follow each other by their centres,
        shapes and colours: the order in which they are given never matters.
        """
        sides = splats.means.new_tensor(self.picture, dtype=torch.float32)
        where = torch.where(splats.mask.unsqueeze(-1), (splats.means.float() + 0.5) / sides, 0.0)
        place = (where * (1 << ORDER)).long().clamp(0, (1 << ORDER) - 1)
        index = hilbert_index(place[..., 0], place[..., 1], ORDER)
        index = torch.where(splats.mask, index, 1 << (2 * ORDER))  # padding comes last
        order = torch.arange(index.shape[1], device=index.device).expand_as(index)
        ties = (*splats.colors.unbind(-1), *splats.cholesky.unbind(-1), *splats.means.unbind(-1))
        for key in (*ties, index):  # stable sorts, the least important key first
            order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
        rank = order.argsort(dim=1)
        count = splats.mask.sum(1, keepdim=True).clamp_min(1)
        return (rank * self.num_latents // count).clamp_max(self.num_latents - 1)
