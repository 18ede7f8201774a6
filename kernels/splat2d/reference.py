"""The float64 NumPy oracle: slow and plain, what the native code is tested against.

Formulas: GaussianVision, arXiv 2509.22615; the cut-off is splat2d's (module docstring). One picture at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


class Gradients(NamedTuple):
    """Derivatives of a scalar with respect to the splats."""

    means: Float
    """[N, 2]"""
    cholesky: Float
    """[N, 3]"""
    colors: Float
    """[N, 3]"""


def _whitened(mean: Float, cholesky: Float, height: int, width: int) -> tuple[Float, Float]:
    """W = L^-1 (pixel - mean), each [H, W]."""
    x = np.arange(width, dtype=np.float64)[None, :] - mean[0]
    y = np.arange(height, dtype=np.float64)[:, None] - mean[1]
    l00, l10, l11 = cholesky
    first = np.broadcast_to(x / l00, (height, width))
    return first, (y - l10 * first) / l11


def values(means: Float, cholesky: Float, height: int, width: int, cutoff: float = 3.0) -> Float:
    """The Gaussians without their colours [N, H, W]; zero beyond the cut-off."""
    out = np.zeros((len(means), height, width))
    for i, (mean, factor) in enumerate(zip(means, cholesky, strict=True)):
        w0, w1 = _whitened(mean, factor, height, width)
        distance = w0 * w0 + w1 * w1
        out[i] = np.where(distance <= cutoff * cutoff, np.exp(-0.5 * distance), 0.0)
    return out


def render(means: Float, cholesky: Float, colors: Float, height: int, width: int, *, cutoff: float = 3.0) -> Float:
    """The picture [H, W, 3] of means [N, 2], cholesky [N, 3], colors [N, 3]."""
    return np.asarray(np.einsum("nhw,nc->hwc", values(means, cholesky, height, width, cutoff), colors))


def render_backward(
    means: Float, cholesky: Float, colors: Float, v_picture: Float, *, cutoff: float = 3.0
) -> Gradients:
    """Gradients from v_picture [H, W, 3] = d scalar / d picture; the cut-off's edge is held still."""
    height, width, _ = v_picture.shape
    kernel = values(means, cholesky, height, width, cutoff)
    out = Gradients(np.zeros_like(means), np.zeros_like(cholesky), np.einsum("nhw,hwc->nc", kernel, v_picture))
    for i, (l00, l10, l11) in enumerate(cholesky):
        w0, w1 = _whitened(means[i], cholesky[i], height, width)
        q = kernel[i] * (v_picture @ colors[i])
        # d E = -E (w0 dw0 + w1 dw1), with w0 = dx / l00 and w1 = (dy - l10 w0) / l11.
        out.means[i] = (q * (w0 / l00 - w1 * l10 / (l00 * l11))).sum(), (q * w1).sum() / l11
        along = (q * w0 * w1).sum() / l11
        out.cholesky[i] = (q * w0 * w0).sum() / l00 - along * l10 / l00, along, (q * w1 * w1).sum() / l11
    return out


def loss(
    means: Float,
    cholesky: Float,
    colors: Float,
    image: npt.NDArray[np.uint8],
    *,
    lambda_color: float = 0.0,
    cutoff: float = 3.0,
) -> float:
    """||render - image||^2 / (H W) + lambda |colors|_1, the picture in [0, 1]."""
    height, width, _ = image.shape
    error = render(means, cholesky, colors, height, width, cutoff=cutoff) - image / 255.0
    return float(np.square(error).sum() / (height * width) + lambda_color * np.abs(colors).sum())


def loss_gradients(
    means: Float,
    cholesky: Float,
    colors: Float,
    image: npt.NDArray[np.uint8],
    *,
    lambda_color: float = 0.0,
    cutoff: float = 3.0,
) -> Gradients:
    """Derivatives of `loss`."""
    height, width, _ = image.shape
    error = render(means, cholesky, colors, height, width, cutoff=cutoff) - image / 255.0
    v = render_backward(means, cholesky, colors, error * (2.0 / (height * width)), cutoff=cutoff)
    return Gradients(v.means, v.cholesky, v.colors + lambda_color * np.sign(colors))
