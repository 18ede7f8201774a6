"""Pictures under limits, EXIF and ICC profiles."""

from __future__ import annotations

import json
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from components.color import _profile
from components.config import DownloadParams
from components.download.picture import limits, sized
from components.exif import MAX_TEXT, exif_json
from components.images import ImageError, decode, decode_rgb
from fuzz.checks import hold
from fuzz.targets import by_first_byte

MAX_LEN = 16384
PARAMS = DownloadParams(
    image_size=8, max_bytes=MAX_LEN, max_pixels=1 << 16, max_aspect_ratio=64.0, resize_mode="border"
)
REASONS = {"truncated", "unreadable", "too_large", "too_small", "aspect_ratio", "empty", "missing"}
PNG = b"\x89PNG\r\n\x1a\n"


def picture(data: bytes) -> None:
    """What is no picture within the limits is refused by one of the reasons; others come out at the wanted size."""
    try:
        found = sized(data, PARAMS)
        whole = decode(data, limits(PARAMS))
    except ImageError as error:
        hold(error.reason in REASONS and bool(error.detail), f"reason {error.reason!r}, detail {error.detail!r}")
        return
    height, width = whole.pixels.shape[:2]
    hold(height * width <= PARAMS.max_pixels and whole.pixels.dtype == np.uint8, f"{width} x {height} pixels")
    hold(max(height, width) <= 64 * min(height, width), f"{width} x {height} pixels")
    small = decode_rgb(found.data)
    hold(small.shape == (8, 8, 3), f"resized to {small.shape}")
    exif(whole.exif)


def exif(data: bytes) -> None:
    """Texts of a bounded length, whatever the bytes."""
    found = json.loads(exif_json(data))
    hold(all(isinstance(value, str) and len(value) <= MAX_TEXT for value in found.values()), f"{found!r}")


def profile(data: bytes) -> None:
    """A profile is followed or ignored, for pictures of any kind."""
    _profile.cache_clear()
    for mode in ("RGB", "L", "CMYK"):
        found = _profile(data, mode)
        if found.transform is not None:
            found.transform.apply(Image.new(mode, (2, 2)))


def run(data: bytes) -> None:
    """By its first byte a picture, EXIF or a profile."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # whatever the filters are, Pillow's warnings change nothing
        by_first_byte(data, {b"I": picture, b"E": exif, b"C": profile})


def repaired(data: bytes) -> bytes:
    """The same with the right CRC in each chunk of a PNG."""
    if data[:9] != b"I" + PNG:
        return data
    whole, at = bytearray(data), 9
    while at + 12 <= len(whole):
        (size,) = struct.unpack_from(">I", whole, at)
        if at + 12 + size > len(whole):
            break
        struct.pack_into(">I", whole, at + 8 + size, zlib.crc32(whole[at + 4 : at + 8 + size]))
        at += 12 + size
    return bytes(whole)
