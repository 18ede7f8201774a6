"""Sizes of pictures by img2dataset's names: which side is brought to image_size, and what becomes of the rest."""

from __future__ import annotations

import numpy as np
from PIL import Image

from components.images import Pixels, fit_square


def _scaled(height: int, width: int, size: int, side: int) -> tuple[int, int]:
    """Height and width when `side` becomes `size`, rounded; no side vanishes."""
    return max(1, round(height * size / side)), max(1, round(width * size / side))


def target(height: int, width: int, size: int, mode: str) -> tuple[int, int]:
    """Height and width of what `fit` makes of a picture. mode: one of config.RESIZE_MODES."""
    if mode == "no":
        return height, width
    if mode == "keep_ratio":
        return _scaled(height, width, size, min(height, width))
    if mode == "keep_ratio_largest":
        return _scaled(height, width, size, max(height, width))
    return size, size


def fit(image: Pixels, size: int, mode: str) -> Pixels:
    """A picture [H, W, 3] at its target size (bicubic, antialiased; img2dataset takes area or Lanczos).

    center_crop: as fit_square. border: all of it, as large as fits, in the middle of a white square.
    """
    if mode == "center_crop":
        return fit_square(image, size)
    height, width = image.shape[:2]
    height, width = target(height, width, size, "keep_ratio_largest" if mode == "border" else mode)
    if (height, width) != image.shape[:2]:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.uint8)
    if mode == "border":
        square = np.full((size, size, 3), 255, np.uint8)
        top, left = (size - height) // 2, (size - width) // 2
        square[top : top + height, left : left + width] = image
        return square
    return image
