"""What a teacher's image embedding sees of a patch, as a metric that splats can be fitted under.

To first order a small change d of one patch moves the embedding by J d. The mean of |J d|^2 over patches and pictures
is d' P d with P the mean of J' J: `splat2d.fit(metric=)` takes a factor of it. Its largest eigenvalues hold nearly all
of it, so that a few rows do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def patch_metric(
    clip: Any,
    images: Tensor,
    std: Sequence[float],
    *,
    num_rows: int = 32,
    num_probes: int = 8,
    seed: int = 0,
    batch_size: int = 128,
) -> NDArray[np.float32]:
    """Rows [num_rows, 3 P^2] for `splat2d.fit(metric=)`; times the square root of a weight mu.

    clip: an open_clip ViT with patches of P x P pixels; images [B, 3, H, W]: some hundred training pictures, normalised
    with `std`, at the size that splats are fitted to. The embedding is the L2-normalised one; P is estimated from
    `num_probes` random directions of it a picture. P is scaled to a mean eigenvalue of 1, before all but its num_rows
    largest are left out: mu = 1 then weighs like the squared error of white residuals. The model is left as it was.
    Raises ValueError for num_rows outside 1..3 P^2, and where the embedding does not depend on the pictures.
    """
    patch = int(clip.visual.conv1.kernel_size[0])
    size = 3 * patch**2
    if not 1 <= num_rows <= size:
        raise ValueError(f"expected num_rows in 1..{size} for patches of {patch} x {patch} pixels, got {num_rows}")
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor(std, device=images.device).view(3, 1, 1)
    total = torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, len(images), batch_size):
        pixels = images[start : start + batch_size].detach().clone().requires_grad_(True)
        with torch.enable_grad():
            features = F.normalize(clip.encode_image(pixels).float(), dim=-1)
        for probe in range(num_probes):
            signs = torch.randint(0, 2, features.shape, generator=generator).to(features) * 2 - 1
            (seen,) = torch.autograd.grad(features, pixels, signs, retain_graph=probe + 1 < num_probes)
            patches = F.unfold(seen / scale, patch, stride=patch)  # [B, 3 P^2, L], channels first
            rows = patches.transpose(1, 2).reshape(-1, 3, patch**2).transpose(1, 2).flatten(1).double().cpu()
            total += rows.T @ rows
    trace = float(total.trace())
    if not 0 < trace < float("inf"):
        raise ValueError("the embedding's gradient by the pictures is zero or not finite; is this a trained teacher?")
    values, vectors = torch.linalg.eigh(total * (size / trace))
    factor = values[-num_rows:].clamp_min(0).sqrt()[:, None] * vectors[:, -num_rows:].T
    return np.ascontiguousarray(factor.flip(0).numpy(), dtype=np.float32)
