"""One picture: as the source has it in, as a shard holds it out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.config import DownloadParams
from components.exif import exif_json
from components.images import ImageError, Limits, Pixels, decoding, encode
from components.sizing import fit, target


@dataclass(frozen=True)
class Sized:
    """data: encoded as `ext`; sizes: width, height, original_width, original_height in pixels, upright; exif: JSON."""

    ext: str
    data: bytes
    sizes: dict[str, int]
    exif: str | None = None


def limits(params: DownloadParams) -> Limits:
    """What is refused before it is decoded."""
    return Limits(
        max_bytes=params.max_bytes,
        max_pixels=params.max_pixels,
        min_side=params.min_side,
        max_aspect_ratio=params.max_aspect_ratio,
    )


def sized(image: bytes | Pixels, params: DownloadParams) -> Sized:
    """A picture at the size that the parameters ask for. Pixels are such that a source drew: they have it already.

    A plain file of that size is passed on untouched. Raises ImageError.
    """
    if isinstance(image, np.ndarray):
        return Sized(params.image_format, encode(image, params.image_format, params.quality), _sizes(image, image))
    with decoding(image, limits(params)) as decoded:
        exif = exif_json(decoded.exif) if decoded.exif else None
        height, width = decoded.pixels.shape[:2]
        wanted = target(height, width, params.image_size, params.resize_mode)
        if decoded.plain and (height, width) == wanted:
            return Sized(decoded.format, image, _sizes(decoded.pixels, decoded.pixels), exif)  # no second loss
        if wanted[0] * wanted[1] > params.max_pixels:
            raise ImageError("too_large", f"{wanted[1]} x {wanted[0]} pixels when resized; see download.max_pixels")
        pixels = fit(decoded.pixels, params.image_size, params.resize_mode)
        try:
            data = encode(pixels, params.image_format, params.quality)
        except (OSError, ValueError) as error:  # a side of more than 65,500 as JPEG, 16,383 as WebP
            detail = f"{wanted[1]} x {wanted[0]} pixels cannot be written as {params.image_format}: {error}"
            raise ImageError("too_large", detail) from error
        return Sized(params.image_format, data, _sizes(pixels, decoded.pixels), exif)


def _sizes(pixels: Pixels, original: Pixels) -> dict[str, int]:
    (height, width), (original_height, original_width) = pixels.shape[:2], original.shape[:2]
    return {"width": width, "height": height, "original_width": original_width, "original_height": original_height}
