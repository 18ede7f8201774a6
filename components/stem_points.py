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
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from components.tokens import SplatTensors

REACH = 0.5  # of a cell: the blur under which a Gaussian's weight in a cell is judged
NONE = -1e4  # a logarithm of no weight at all: finite, so that nothing becomes NaN
NARROWEST = 1e-6  # of a cell: far below any fit's, so that nothing is divided by zero
MAX_WEIGHTS = 1 << 24  # at a time: 64 MiB; beyond, pictures are taken in turn and weights made again for the gradient
JUDGING = 4  # numbers a Gaussian and cell while those that weigh most are looked for


@dataclass(frozen=True)
class Points:
    """Sample points of a cell: offsets [K, 2] from its centre as (x, y), in cells, and the blur there, in cells."""

    offsets: Tensor
    blur: float


@dataclass(frozen=True)
class _Shapes:
    """Gaussians in cells: means [..., 2]; Cholesky factors l00, l10, l11 [...]; present [...] bool.

    Everything is computed from the factors, never from the covariance they make: the determinant of a needle's
    covariance, s00 s11 - s01^2, is what is left of two numbers that may agree in all of their digits.
    """

    means: Tensor
    l00: Tensor
    l10: Tensor
    l11: Tensor
    present: Tensor

    def at(self, index: Tensor) -> _Shapes:
        """The Gaussians at index [B, L, k] of [B, N]."""
        batch = torch.arange(len(index), device=index.device)[:, None, None]
        parts = (self.means, self.l00, self.l10, self.l11, self.present)
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
    l00 = torch.where(present, splats.cholesky[..., 0].float() * scale[0], 1.0).clamp_min(NARROWEST)
    l10 = torch.where(present, splats.cholesky[..., 1].float() * scale[1], 0.0)
    l11 = torch.where(present, splats.cholesky[..., 2].float() * scale[1], 1.0).clamp_min(NARROWEST)
    return _Shapes(means, l00, l10, l11, present)


def _blurred(shapes: _Shapes, blur: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(m00, m10, m11), the Cholesky factor of S + t^2 I, and the logarithm of the blurred Gaussians' greatest value.

    |S + t^2 I| = |S| + t^2 trace S + t^4, all of them positive, and |S| = (l00 l11)^2: nothing cancels.
    """
    l00, l10, l11 = shapes.l00, shapes.l10, shapes.l11
    if blur == 0.0:
        return l00, l10, l11, torch.where(shapes.present, 0.0, NONE)
    t = blur**2
    determinant = (l00 * l11) ** 2 + t * (l00 * l00 + l10 * l10 + l11 * l11) + t * t
    m00 = (l00 * l00 + t).sqrt()
    height = l00.log() + l11.log() - 0.5 * determinant.log()
    return m00, l00 * l10 / m00, determinant.sqrt() / m00, torch.where(shapes.present, height, NONE)


def _centres(cells: tuple[int, int], like: Tensor) -> Tensor:
    """[L, 2] centres of the cells, in cells, row by row."""
    rows, columns = cells
    y = torch.arange(rows, device=like.device, dtype=like.dtype) + 0.5
    x = torch.arange(columns, device=like.device, dtype=like.dtype) + 0.5
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=-1)


def _whitened(shapes: _Shapes, to_x: Tensor, to_y: Tensor, blur: float) -> tuple[Tensor, ...]:
    """(u, v, p, q, r, height), each [B, L, N] or [B, 1, N]: what the weight around each cell's centre is made of.

    At an offset (x, y) from the centre the exponent is height - (U^2 + V^2) / 2 with U = u + p x, V = v + q x + r y,
    the offset from the Gaussian through the inverse of its factor. to_x, to_y [B, L, N]: from the Gaussians' centres
    to the cells'.
    """
    m00, m10, m11, height = (term if term.dim() == 3 else term.unsqueeze(1) for term in _blurred(shapes, blur))
    u = to_x / m00
    v = to_y.addcmul(m10, u, value=-1.0).div_(m11)
    return u, v, 1.0 / m00, -m10 / m00 / m11, 1.0 / m11, height


def _weights(shapes: _Shapes, to_x: Tensor, to_y: Tensor, points: Points) -> Tensor:
    """[B, L, K, N] weights at every point of every cell."""
    parts = _whitened(shapes, to_x, to_y, points.blur)
    if points.blur == 0.0:  # nothing widens a needle: the squares of a polynomial would cancel
        u, v, p, q, r, height = (part.unsqueeze(-2) for part in parts)
        x, y = (axis.unsqueeze(-1) for axis in points.offsets.to(to_x).unbind(-1))
        across, along = u.addcmul(p, x), v.addcmul(q, x).addcmul_(r, y)
        return across.square_().addcmul_(along, along).mul_(-0.5).add_(height).exp_()
    u, v, p, q, r, height = parts
    rest = height - 0.5 * (u * u + v * v)
    # Around the cell's own centre the terms stay small where the weight is not, and V by the blur: one product of
    # matrices with x^2, x y, y^2, x, y, 1.
    square = (term.expand_as(rest) for term in (-0.5 * (p * p + q * q), -q * r, -0.5 * r * r))
    return (_terms(points, rest) @ torch.stack([*square, -(p * u + q * v), -r * v, rest], dim=2)).exp_()


def _nearest(shapes: _Shapes, centres: Tensor, count: int) -> Tensor:
    """[B, L, count] the Gaussians that weigh most in each cell."""
    to_x, to_y = (centres[:, axis, None] - shapes.means[:, None, :, axis] for axis in (0, 1))
    u, v, *_, height = _whitened(shapes, to_x, to_y, REACH)
    del to_x, to_y
    return u.square_().addcmul_(v, v).mul_(-0.5).add_(height).topk(count, dim=-1, sorted=False).indices


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
        to_x, to_y = (centres[:, axis, None] - means[..., axis] for axis in (0, 1))
        weights = torch.cat([_weights(near, to_x, to_y, p) for p in points], dim=2)
    if index is None:  # [B, L K, N] x [B, N, C]
        return (weights.flatten(1, 2) @ values).reshape(*weights.shape[:3], -1)
    first = count * torch.arange(len(values), device=index.device)[:, None, None]
    # Not values[..., index]: the gradient of that is summed in whatever order threads come.
    return weights @ F.embedding(index + first, values.flatten(0, 1))


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

        count = values.shape[1]
        held = sum(len(p.offsets) * (1 if p.blur else 2) for p in points)  # without a blur, two numbers a weight
        at_points = held * max(1, min(count, top_k))
        each = cells[0] * cells[1] * max(at_points, JUDGING * count if count > top_k else 0)
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
