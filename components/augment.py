"""Random crops and flips of uint8 pictures, a whole batch at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
