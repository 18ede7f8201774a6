"""Fit pictures with 2D Gaussians, render them, store them.

Image model (GaussianVision, arXiv 2509.22615): picture(p) = sum_i c_i exp(-1/2 d^T Sigma_i^-1 d), d = p - mean_i, added
up without order or opacity. A Gaussian ends at a Mahalanobis distance of 3: beyond it the contribution is exactly zero,
in fitting, rendering and gradients alike.

Letters: B pictures, N Gaussians, H rows, W columns. means [B, N, 2] in pixels (x right, y down, pixel centres at
integers); cholesky [B, N, 3] = (l00, l10, l11) in pixels, Sigma = L L^T; colors [B, N, 3] in picture units (1 = white).
"""

from splat2d._core import Decoded, DecodedBatch, decode, decode_batch, encode
from splat2d.backends import backend, has_cuda
from splat2d.fitting import fit
from splat2d.recipe import RECIPES, Recipe
from splat2d.rendering import psnr, render
from splat2d.result import FitResult

__version__ = "0.1.0"
__all__ = [
    "RECIPES",
    "Decoded",
    "DecodedBatch",
    "FitResult",
    "Recipe",
    "backend",
    "decode",
    "decode_batch",
    "encode",
    "fit",
    "has_cuda",
    "psnr",
    "render",
]

CUTOFF = 3.0
"""Mahalanobis distance at which a Gaussian ends."""
