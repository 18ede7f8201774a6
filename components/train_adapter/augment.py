"""Flips: the same coin for a picture's splats, its pixels and what the teacher says of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.tokens import mirrored

if TYPE_CHECKING:
    from components.loader import SplatBatch


def coins(keys: list[str], *, seed: int, epoch: int) -> Tensor:
    """[B] bool: whether each picture is mirrored in this epoch; by seed, epoch and key alone, whatever the batch."""
    digests = (hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=1).digest() for key in keys)
    return torch.tensor([digest[0] & 1 == 1 for digest in digests])


def flip_images(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror the pictures [B, H, W, 3] where flip [B]."""
    return torch.where(flip[:, None, None, None], images.flip(2), images)


def flip_splats(splats: SplatBatch, flip: Tensor, width: int) -> SplatBatch:
    """Mirror splats where flip [B]: exact on the parameters, so that they render the mirrored picture."""
    means, cholesky = mirrored(splats.means, splats.cholesky, width, flip)
    return replace(splats, means=means, cholesky=cholesky)
