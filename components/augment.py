"""What augmentation does to pictures and to the splats that stand for them, a whole batch at once.

The two sides are one map. A picture of Gaussians, I(p) = sum_i c_i exp(-1/2 |L_i^-1 (p - mean_i)|^2), read at moved
positions p = A p' + b is again one: means A^-1 (mean - b), factors of A^-1 L L^T A^-T, colours as they were. So windows
and turns are exact on the parameters and nothing is rendered. Colours may be changed by any matrix, which passes
through the sum; an offset does not (no Gaussian is a constant), nor does what is not linear. So there is brightness and
saturation, but no contrast, gamma or clamping.

Letters: B pictures, N Gaussians, H x W pixels. A window is theta [B, 2, 3], float64: position in the picture that comes
out -> position in the one that goes in, both with the picture's edges at -1 and 1 (as `tokens.positions` and torch's
affine_grid without aligned corners have it). Every function is for any device, and elementwise in the pictures: what
becomes of one does not depend on those beside it, to the last bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from components.tokens import positions

if TYPE_CHECKING:
    from components.loader import SplatBatch

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: of RGB as it is stored
CUTOFF = 3.0  # splat2d.CUTOFF: a Gaussian ends at this Mahalanobis distance
WORD = (1 << 32) - 1


def crop_and_flip(
    images: Tensor, padding: int, generator: torch.Generator | None = None, *, of: int = 0, start: int = 0
) -> Tensor:
    """Shift each picture by up to `padding` pixels either way and mirror every other one.

    images [B, H, W, C], any type, on the CPU; what comes in from outside is 0 (black). Returns the same shape. Draws
    from `generator`, torch's global one if None. of, start: the pictures are a part, from `start` on, of a batch of
    `of` and are treated as they would be within it; 0: they are all of it.
    """
    count, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    part = slice(start, start + count)
    top = torch.randint(0, 2 * padding + 1, (of or count, 1), generator=generator)[part]
    left = torch.randint(0, 2 * padding + 1, (of or count, 1), generator=generator)[part]
    mirrored = torch.randint(0, 2, (of or count, 1), generator=generator)[part]
    columns = torch.arange(width)
    columns = left + torch.where(mirrored.bool(), width - 1 - columns, columns)
    rows = top + torch.arange(height)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def windows(area: Tensor, aspect: Tensor, angle: Tensor, place: Tensor) -> Tensor:
    """Windows that lie inside a square picture: theta [B, 2, 3].

    area [B]: share of the picture's that the window has; aspect [B]: its width over its height, from area to 1 / area;
    angle [B]: radians that it is turned by, clockwise as seen; place [B, 2]: where it lies in the room that is left,
    0 .. 1 in x and y. A turned window that would stick out is made smaller until it does not: what is outside is not
    known in pixels, and is something else in splats.
    """
    wide, high = (area * aspect).sqrt(), (area / aspect).sqrt()
    cos, sin = angle.cos(), angle.sin()
    reach = torch.stack([wide * cos.abs() + high * sin.abs(), wide * sin.abs() + high * cos.abs()], dim=-1)
    shrink = reach.amax(-1).clamp_min(1.0).reciprocal()
    wide, high, reach = wide * shrink, high * shrink, reach * shrink[:, None]
    centre = (2 * place - 1) * (1 - reach)
    rows = torch.stack([wide * cos, -high * sin, centre[:, 0], wide * sin, high * cos, centre[:, 1]], dim=-1)
    return rows.reshape(-1, 2, 3)


def windowed_splats(splats: SplatBatch, theta: Tensor, width: int, height: int) -> SplatBatch:
    """Splats whose pictures, width x height, are those of `splats` seen through the windows theta [B, 2, 3].

    Exact up to float32. Gaussians that no longer reach a pixel centre are masked, which changes nothing in the picture.
    """
    a00, a01, b0, a10, a11, b1 = theta.flatten(-2)[:, None].unbind(-1)
    det = a00 * a11 - a01 * a10
    m00, m01, m10, m11 = a11 / det, -a01 / det, -a10 / det, a00 / det
    x, y = (positions(splats.means.double(), width, height) - torch.stack([b0, b1], dim=-1)).unbind(-1)
    seen = torch.stack([m00 * x + m01 * y, m10 * x + m11 * y], dim=-1)
    means = (0.5 * ((seen + 1) * seen.new_tensor([width, height]) - 1)).to(splats.means.dtype)
    tall = height / width  # a change in pixels differs from that in half sides where these do
    change = torch.stack([m00, m01 / tall, m10 * tall, m11], dim=-1).to(splats.cholesky.dtype)
    cholesky = _changed(splats.cholesky, change)
    mask = splats.mask & reaching(means, cholesky, width, height)
    return _masked(splats, means, cholesky, mask)


def _changed(cholesky: Tensor, change: Tensor) -> Tensor:
    """[B, N, 3]: the lower triangular factor of M L L^T M^T for M, row by row in change [B, 1, 4], of det M > 0.

    K = M L, turned by a rotation from the right until it is lower triangular. l11 is the determinant over l00: no
    difference is taken, so that needles stay needles.
    """
    l00, l10, l11 = cholesky.unbind(-1)
    m00, m01, m10, m11 = change.unbind(-1)
    k00, k01, k10, k11 = m00 * l00 + m01 * l10, m01 * l11, m10 * l00 + m11 * l10, m11 * l11
    new00 = (k00 * k00 + k01 * k01).sqrt().clamp_min(torch.finfo(cholesky.dtype).tiny)  # 0 in padding
    new10 = (k10 * k00 + k11 * k01) / new00
    new11 = (m00 * m11 - m01 * m10) * l00 * l11 / new00
    return torch.stack([new00, new10, new11], dim=-1)


def reaching(means: Tensor, cholesky: Tensor, width: int, height: int) -> Tensor:
    """[B, N] bool: whether the box around a Gaussian's cut-off ellipse holds a pixel centre of the picture's."""
    l00, l10, l11 = cholesky.unbind(-1)
    reach = CUTOFF * torch.stack([l00.abs(), (l10 * l10 + l11 * l11).sqrt()], dim=-1)
    last = means.new_tensor([width - 1, height - 1])
    return ((means + reach >= 0) & (means - reach <= last)).all(-1)


def windowed_images(images: Tensor, theta: Tensor) -> Tensor:
    """Pictures [B, H, W, 3] of 0 .. 255 seen through windows: float32 of the same shape, between pixels bicubic.

    A window is no larger than the picture, so that pixels are never closer together than they were: there is nothing
    to smooth before. Values are kept in 0 .. 255, which cubics leave beside edges.
    """
    pictures = images.permute(0, 3, 1, 2).float()
    height, width = pictures.shape[-2:]
    a00, a01, b0, a10, a11, b1 = theta.flatten(-2)[:, None, None].unbind(-1)
    y = ((2 * torch.arange(height, device=theta.device) + 1) / height - 1)[:, None]
    x = (2 * torch.arange(width, device=theta.device) + 1) / width - 1
    grid = torch.stack([a00 * x + a01 * y + b0, a10 * x + a11 * y + b1], dim=-1)
    seen = F.grid_sample(pictures, grid.float(), mode="bicubic", padding_mode="border", align_corners=False)
    return seen.clamp(0.0, 255.0).permute(0, 2, 3, 1)


def color_matrices(brightness: Tensor, saturation: Tensor) -> Tensor:
    """[B, 3, 3] for columns of RGB: brightness [B] times all, saturation [B] times what is not grey of the same luma.

    Linear in the colour, so that a picture of Gaussians is changed by changing theirs.
    """
    grey = brightness.new_tensor(LUMA).expand(3, 3)
    plain = torch.eye(3, dtype=brightness.dtype, device=brightness.device)
    mixed = saturation[:, None, None] * plain + (1 - saturation)[:, None, None] * grey
    return brightness[:, None, None] * mixed


def recolored(colors: Tensor, matrices: Tensor) -> Tensor:
    """Colours [B, ..., 3], of Gaussians or of pixels, by the matrices [B, 3, 3]; nothing is clamped."""
    columns = matrices.to(colors.dtype).reshape(len(colors), *(1,) * (colors.ndim - 2), 3, 3).unbind(-1)
    red, green, blue = (colors[..., i : i + 1] * column for i, column in enumerate(columns))
    return red + green + blue


def thinned_splats(splats: SplatBatch, share: Tensor, salts: Tensor) -> SplatBatch:
    """Splats with share [B], below 1, of each picture's Gaussians masked (rounded down: one is always left).

    salts [B] int64, from 0 to 2^32 - 1, decide which; neither padding nor the pictures beside it have a say.
    """
    mask = splats.mask
    if not mask.shape[1]:
        return splats
    places = torch.arange(mask.shape[1], device=mask.device)
    order = (_hashed(_hashed(places) ^ salts[:, None]) << 24) + places  # no two alike
    order = torch.where(mask, order, torch.iinfo(order.dtype).max)
    dropped = (share * mask.sum(1)).long()
    least = order.sort(dim=1).values.gather(1, dropped[:, None])
    return _masked(splats, splats.means, splats.cholesky, mask & (order >= least))


def _hashed(words: Tensor) -> Tensor:
    """Words of 32 bits in int64 [...] -> others that look random: a bijection by shifts and odd factors."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        words = ((words ^ (words >> shift)) * factor) & WORD
    return words ^ (words >> 16)


def _masked(splats: SplatBatch, means: Tensor, cholesky: Tensor, mask: Tensor) -> SplatBatch:
    """Splats with other means and factors; what is masked is 0, as padding is."""
    kept = mask[..., None]
    means, cholesky, colors = (torch.where(kept, values, 0.0) for values in (means, cholesky, splats.colors))
    return replace(splats, means=means, cholesky=cholesky, colors=colors, mask=mask)
