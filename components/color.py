"""Colours: pictures of any kind and ICC profile as 8-bit sRGB over white."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

MAX_PROFILE = 4 << 20  # bytes; printers' own have up to 3 MB
NEARLY = 1  # levels of 255 by which a profile may differ from sRGB and still be it: makers round differently
_BAND = 1 << 20  # pixels that are converted at a time
_UNUSABLE = (OSError, TypeError, ValueError, ImageCms.PyCMSError)


@dataclass(frozen=True)
class _Profile:
    """transform: to sRGB; None where there is nothing to do. srgb: because it is sRGB; else because it is unusable."""

    transform: ImageCms.ImageCmsTransform | None
    srgb: bool = False


def _probe(mode: str) -> Image.Image:
    """Colours all over the cube, or all greys, as a picture."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(18, -1, 3))


@lru_cache(maxsize=16)
def _profile(data: bytes, mode: str) -> _Profile:
    """What a profile means for pictures of a mode; one for another kind of colours, or a broken one, means nothing.

    The intent is perceptual. Whether it is sRGB is found out by what it does, not by the name it gives itself.
    """
    try:
        if len(data) > MAX_PROFILE:
            return _Profile(None)
        given = ImageCms.ImageCmsProfile(io.BytesIO(data))
        transform = ImageCms.buildTransform(
            given, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL
        )
        if mode != "CMYK":
            probe = _probe(mode)
            before = np.asarray(probe.convert("RGB"), np.int16)
            after = np.asarray(transform.apply(probe), np.int16)
            if np.abs(before - after).max() <= NEARLY:
                return _Profile(None, srgb=True)
    except _UNUSABLE:
        return _Profile(None)
    return _Profile(transform)


def _has_alpha(image: Image.Image) -> bool:
    """Whether a picture may be transparent somewhere: by a channel, or by a colour that stands for nothing."""
    return "A" in image.mode or image.mode in {"La", "RGBa"} or "transparency" in image.info


def _to_srgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture (8 bits a channel) in sRGB, and whether it said so itself: it has no profile, or that of sRGB.

    A profile that cannot be used (broken, of another kind of colours than the picture's, above 4 MiB) is ignored.
    Alpha is kept. PNG's own words on colour (gAMA, cHRM) are not read.
    """
    data = image.info.get("icc_profile")
    if not data:
        return image, True
    if not isinstance(data, bytes):
        return image, False
    grey = image.mode in {"1", "L", "LA", "La"}
    mode = "L" if grey else "CMYK" if image.mode == "CMYK" else "RGB"
    profile = _profile(data, mode)
    if profile.transform is None:
        return image, profile.srgb
    alpha = None
    if _has_alpha(image):
        image = image.convert("LA" if grey else "RGBA")
        alpha = image.getchannel("A")
    converted = profile.transform.apply(image.convert(mode))
    if alpha is not None:
        converted.putalpha(alpha)
    return converted, False


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Boxes of whole rows that make up a picture: what a conversion needs in between stays small."""
    rows = max(1, _BAND // max(1, image.width))
    return [(0, top, image.width, min(image.height, top + rows)) for top in range(0, image.height, rows)]


def _by_bands(
    image: Image.Image, convert: Callable[[Image.Image], NDArray[np.uint8]], *channels: int
) -> NDArray[np.uint8]:
    """`convert` of the whole picture, a band at a time."""
    result = np.empty((image.height, image.width, *channels), np.uint8)
    boxes = _bands(image)
    for box in boxes:
        result[box[1] : box[3]] = convert(image.crop(box) if len(boxes) > 1 else image)
    return result


def _over_white(image: Image.Image) -> NDArray[np.uint8]:
    rgba = np.asarray(image.convert("RGBA"), np.uint32)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _opaque(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Integer greys [H, W]: 65535 = 255 x 257, rounded to the nearest."""
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise ValueError("integer pixels outside 0..65535")
    return ((values + 128) // 257).astype(np.uint8)


def with_lower_bytes(high: Image.Image, again: ImageFile.ImageFile) -> Image.Image:
    """A 16-bit RGB or RGBA PNG rounded to 8 bits: Pillow hands out the upper byte of each value alone.

    high: the picture, loaded; again: the same file, opened and not loaded yet, whose lower bytes are read.
    """
    # read as if the bytes of a value came the other way round
    again.tile = [tile._replace(args=f"{high.mode};16L") for tile in again.tile]
    again.load()
    for box in _bands(high):
        upper, lower = (np.asarray(image.crop(box), np.uint32) for image in (high, again))
        high.paste(Image.fromarray(((upper * 256 + lower + 128) // 257).astype(np.uint8)), box)
    return high


def rgb(image: Image.Image) -> tuple[NDArray[np.uint8], bool]:
    """Pixels [H, W, 3] in sRGB over white, and whether the picture itself holds just them: 8-bit RGB without alpha.

    Raises ValueError for pixels without a known range.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        profile = image.info.get("icc_profile")
        image = Image.fromarray(_by_bands(image, _eight_bits))
        image.info["icc_profile"] = profile
    image, srgb = _to_srgb(image)
    if _has_alpha(image):
        return _by_bands(image, _over_white, 3), False
    return _by_bands(image, _opaque, 3), srgb and image.mode == "RGB"
