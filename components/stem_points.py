"""Splatting to points: what Gaussians carry, summed at sample points of every cell of a grid.

A cell is a patch of the teacher's, or a latent's share of the picture. All lengths here are in cells, so that nothing
depends on the size in pixels: cell (row, column) covers [column, column + 1] x [row, row + 1].
The weight of Gaussian i at point p is its value there after an isotropic blur of standard deviation t, which is exact:

    w_i(p) = sqrt(|S| / |S + t^2 I|) exp(-(p - mu)^T (S + t^2 I)^-1 (p - mu) / 2)

the convolution of two Gaussians. There is no softmax and nothing is divided: sums over Gaussians stay additive, as the
picture is, and padding weighs nothing. Where there are many Gaussians a cell takes those that weigh most in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from components.tokens import SplatTensors

REACH = 0.5  # of a cell: the blur under which a Gaussian's weight in a cell is judged
NONE = -1e4  # a logarithm of no weight at all: finite, so that nothing becomes NaN
MAX_WEIGHTS = 1 << 24  # at a time: 64 MiB; beyond, pictures are taken in turn and weights made again for the gradient


@dataclass(frozen=True)
class Points:
    """Sample points of a cell: offsets [K, 2] from its centre as (x, y), in cells, and the blur there, in cells."""

    offsets: Tensor
    blur: float


@dataclass(frozen=True)
class _Shapes:
    """Gaussians in cells: means [..., 2]; covariance s00, s01, s11 [...]; present [...] bool."""

    means: Tensor
    s00: Tensor
    s01: Tensor
    s11: Tensor
    present: Tensor

    def at(self, index: Tensor) -> _Shapes:
        """The Gaussians at index [B, L, k] of [B, N]."""
        batch = torch.arange(len(index), device=index.device)[:, None, None]
        parts = (self.means, self.s00, self.s01, self.s11, self.present)
        return _Shapes(*(part[batch, index] for part in parts))


def square_points(side: int, blur: float, spacing: float) -> Points:
    """A square of side x side points around a cell's centre, `spacing` apart, row by row."""
    line = spacing * (torch.arange(side) - 0.5 * (side - 1))
    return Points(torch.stack([line.repeat(side), line.repeat_interleave(side)], dim=-1), blur)


def _shapes(splats: SplatTensors, picture: tuple[int, int], cells: tuple[int, int]) -> _Shapes:
    rows, columns = cells
    scale = splats.means.new_tensor([columns / picture[0], rows / picture[1]], dtype=torch.float32)
    present = splats.mask
    means = torch.where(present.unsqueeze(-1), (splats.means.float() + 0.5) * scale, 0.0)
    l00 = torch.where(present, splats.cholesky[..., 0].float() * scale[0], 1.0)
    l10 = torch.where(present, splats.cholesky[..., 1].float() * scale[1], 0.0)
    l11 = torch.where(present, splats.cholesky[..., 2].float() * scale[1], 1.0)
    return _Shapes(means, l00 * l00, l00 * l10, l10 * l10 + l11 * l11, present)


def _blurred(shapes: _Shapes, blur: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a, b, c) of the blurred Gaussians' inverse covariance and the logarithm of their value at the centre."""
    s00, s11, s01 = shapes.s00 + blur**2, shapes.s11 + blur**2, shapes.s01
    tiny = torch.finfo(s00.dtype).tiny
    sharp = (shapes.s00 * shapes.s11 - s01 * s01).clamp_min(tiny)
    determinant = (s00 * s11 - s01 * s01).clamp_min(tiny)
    height = torch.where(shapes.present, 0.5 * (sharp.log() - determinant.log()), NONE)
    return s11 / determinant, -s01 / determinant, s00 / determinant, height


def _centres(cells: tuple[int, int], like: Tensor) -> Tensor:
    """[L, 2] centres of the cells, in cells, row by row."""
    rows, columns = cells
    y = torch.arange(rows, device=like.device, dtype=like.dtype) + 0.5
    x = torch.arange(columns, device=like.device, dtype=like.dtype) + 0.5
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=-1)


def _quadratic(shapes: _Shapes, to_centre: Tensor, blur: float) -> Tensor:
    """The exponent around each cell's centre as a polynomial in the offset (x, y): [B, L, 6, N].

    Its terms: x^2, x y, y^2, x, y, 1. to_centre [B, L, N, 2]: from the Gaussians' centres to the cells'. Around the
    cell's own centre the terms stay small where the weight is not: no cancellation in large pictures.
    """
    a, b, c, height = (term if term.dim() == 3 else term.unsqueeze(1) for term in _blurred(shapes, blur))
    x, y = to_centre.unbind(-1)
    at_x, at_y = a * x + b * y, b * x + c * y
    rest = height - 0.5 * (x * at_x + y * at_y)
    a, b, c = (term.expand_as(rest) for term in (-0.5 * a, -b, -0.5 * c))
    return torch.stack([a, b, c, -at_x, -at_y, rest], dim=2)


def _nearest(shapes: _Shapes, centres: Tensor, count: int) -> Tensor:
    """[B, L, count] the Gaussians that weigh most in each cell."""
    to_centre = centres[:, None] - shapes.means[:, None]
    return _quadratic(shapes, to_centre, REACH)[:, :, 5].topk(count, dim=-1, sorted=False).indices


def _terms(points: Points, like: Tensor) -> Tensor:
    x, y = points.offsets.to(like).unbind(-1)
    return torch.stack([x * x, x * y, y * y, x, y, torch.ones_like(x)], dim=-1)


def _some(splats: SplatTensors, values: Tensor, *, picture: tuple[int, int], cells: tuple[int, int],
          points: Sequence[Points], top_k: int) -> Tensor:  # fmt: skip
    count = values.shape[1]
    with torch.no_grad():
        shapes = _shapes(splats, picture, cells)
        centres = _centres(cells, shapes.means)
        index = _nearest(shapes, centres, top_k) if count > top_k else None
        near = shapes if index is None else shapes.at(index)
        means = near.means[:, None] if index is None else near.means
        to_centre = centres[:, None] - means
        weights = torch.cat([(_terms(p, centres) @ _quadratic(near, to_centre, p.blur)).exp_() for p in points], dim=2)
    if index is None:  # [B, L K, N] x [B, N, C]
        return (weights.flatten(1, 2) @ values).reshape(*weights.shape[:3], -1)
    gathered: Tensor = values[torch.arange(len(values), device=index.device)[:, None, None], index]
    return weights @ gathered


def splat_to_points(
    splats: SplatTensors,
    values: Tensor,
    *,
    picture: tuple[int, int],
    cells: tuple[int, int],
    points: Sequence[Points],
    top_k: int,
) -> Tensor:
    """Sum over Gaussians of weight times value at every point of every cell: [B, L, K, C], in float32.

    splats: in pixels of pictures of picture = (width, height). values [B, N, C]: what each Gaussian carries; it alone
    has a gradient. cells: (rows, columns). points: sets of points, one after another, K in all. top_k: a cell takes the
    top_k Gaussians that weigh most in it, all of them where there are no more. Memory is bounded: large batches are
    taken in parts, whose weights are made again for the gradient.
    """
    with torch.autocast(values.device.type, enabled=False):
        values = torch.where(splats.mask.unsqueeze(-1), values.float(), 0.0)
        given = _Splats(splats.means, splats.cholesky, splats.mask)

        def some(start: int, end: int, part: Tensor) -> Tensor:
            return _some(given.part(start, end), part, picture=picture, cells=cells, points=points, top_k=top_k)

        each = cells[0] * cells[1] * sum(len(p.offsets) for p in points) * max(1, min(values.shape[1], top_k))
        size = max(1, MAX_WEIGHTS // each)
        if size >= len(values):
            return some(0, len(values), values)
        spans = [(start, min(start + size, len(values))) for start in range(0, len(values), size)]
        return torch.cat([checkpoint(some, a, b, values[a:b], use_reentrant=False) for a, b in spans])


@dataclass(frozen=True)
class _Splats:
    """What splatting needs of a batch of splats, as tensors that can be taken in parts."""

    means: Tensor
    cholesky: Tensor
    mask: Tensor

    @property
    def colors(self) -> Tensor:
        raise AttributeError("colours are among the values that are splatted")

    def part(self, start: int, end: int) -> _Splats:
        """Pictures start .. end - 1."""
        return _Splats(self.means[start:end], self.cholesky[start:end], self.mask[start:end])
