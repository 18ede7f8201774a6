"""Pictures: bytes to RGB arrays and back."""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.color import rgb, with_lower_bytes
from components.errors import PermanentError, UsageError

MAX_PIXELS = 89_478_485  # Pillow's own limit: a picture of 256 MB
# What is decoded; others that Pillow knows (EPS above all, which starts a program) stay shut.
Image.init()
FORMATS: list[str] = [
    name for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF") if name in Image.OPEN
]
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "avif")
_OUT = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_EXT = {pillow: ext for ext, pillow in _OUT.items()}
_ORIENTATION = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LONG = 16  # times: 1 x 30,000 pixels would grow to 224 x 6,720,000
_TILE_WIDTH, _TILE_LENGTH = 322, 323
# What Pillow's readers raise on damaged data.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_lock = threading.Lock()

Pixels = NDArray[np.uint8]


class ImageError(PermanentError):
    """A picture that cannot be used.

    reason: "truncated", "unreadable", "too_large", "too_small", "aspect_ratio", "empty" or "missing".
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused before anything is decoded.

    max_bytes: of the encoded picture; max_pixels: of the whole one, up to Pillow's own twice MAX_PIXELS; min_side: of
    the shorter side, in pixels; max_aspect_ratio: longer side by shorter. 0: no limit.
    """

    max_bytes: int = 0
    max_pixels: int = MAX_PIXELS
    min_side: int = 0
    max_aspect_ratio: float = 0.0

    def check_bytes(self, count: int) -> None:
        """Raise ImageError ("empty", "too_large") unless a picture of so many bytes may be read."""
        if count == 0:
            raise ImageError("empty", "0 bytes")
        if self.max_bytes and count > self.max_bytes:
            raise ImageError("too_large", f"{count} bytes; the limit is {self.max_bytes}")

    def check_size(self, width: int, height: int) -> None:
        """Raise ImageError ("too_large", "too_small", "aspect_ratio") unless a picture of that size is wanted."""
        if width * height > self.max_pixels:
            raise ImageError("too_large", f"{width} x {height} pixels; the limit is {self.max_pixels}")
        if min(width, height) < self.min_side:
            raise ImageError("too_small", f"{width} x {height} pixels; the shorter side must have {self.min_side}")
        if self.max_aspect_ratio and max(width, height) > self.max_aspect_ratio * min(width, height):
            raise ImageError("aspect_ratio", f"{width} x {height} pixels; at most {self.max_aspect_ratio:g} to 1")


ANY = Limits()


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 [H, W, 3]; format: `jpg`, `png`, `webp` or "" for others; exif: as the file has it, or nothing.

    plain: the file is a still 8-bit sRGB picture, upright, without alpha: any reader sees `pixels` in its bytes.
    """

    pixels: Pixels
    format: str
    plain: bool
    exif: bytes = b""


class _Share:
    """Pixels that all threads together may hold: one of the largest pictures, or many small ones."""

    def __init__(self, total: int) -> None:
        self._total, self._used, self._freed = total, 0, threading.Condition()

    @contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Wait until so many are free, and hold them for the length of the context."""
        count = min(count, self._total)
        with self._freed:
            self._freed.wait_for(lambda: self._used + count <= self._total)
            self._used += count
        try:
            yield
        finally:
            with self._freed:
                self._used -= count
                self._freed.notify_all()


_share = _Share(MAX_PIXELS)


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow warns of odd metadata; the outcome here is pixels or an ImageError, whatever the warning filters are."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _reasons() -> Iterator[None]:
    """Whatever goes wrong with a picture becomes an ImageError."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except MemoryError:
        raise ImageError("too_large", "not enough memory to decode it") from None
    except DAMAGE as error:
        raise _failure(error) from error


def _failure(error: BaseException) -> ImageError:
    text = " ".join(re.sub(r"<[^>]* at 0x[0-9a-f]+>", "", str(error)).split()) or type(error).__name__  # no addresses
    return ImageError("truncated" if "truncat" in text.lower() else "unreadable", text[:200])


def _open(data: bytes, limits: Limits) -> Image.Image:
    """The picture, its header read and within the limits; nothing is decoded yet."""
    limits.check_bytes(len(data))
    with _reasons(), quiet():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        limits.check_size(*image.size)
        tags = getattr(image, "tag_v2", {})
        tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
        if tile > max(limits.max_pixels, 1 << 20):  # a tile is decoded whole, however little of it the picture has
            raise ImageError("too_large", f"tiles of {tile} pixels; the limit is {limits.max_pixels}")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF's; 1 (upright) where it is broken."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except DAMAGE:
        return 1
    return found if found in _TURN else 1


def _decode(image: Image.Image, data: bytes) -> Decoded:
    with _reasons(), image:
        # outside the lock, as decoding is what takes the time; but of TIFFs Pillow reads tags, and warns, meanwhile
        with quiet() if image.format == "TIFF" else nullcontext():
            image.load()
        deep = image.format == "PNG" and len(data) > 24 and data[24] == 16
        color = data[25] if deep else 0
        if color in {2, 6} and "transparency" not in image.info:
            with quiet():
                low = Image.open(io.BytesIO(data), formats=["PNG"])
            with low:
                image = with_lower_bytes(image, low)
        with quiet():
            ext = _EXT.get(image.format or "", "")
            still = bool(ext) and getattr(image, "n_frames", 1) == 1
            orientation = _orientation(image)  # of a TIFF it is 1 by now: Pillow has turned it
            exif = image.info.get("exif", b"")
        turned = image.transpose(_TURN[orientation]) if orientation != 1 else image
        pixels, plain = rgb(turned)
    plain = plain and still and not deep and orientation == 1
    return Decoded(pixels, ext, plain, exif if isinstance(exif, bytes) else b"")


@contextmanager
def decoding(data: bytes, limits: Limits) -> Iterator[Decoded]:
    """A picture decoded as by `decode`, to be worked on in the context.

    In all threads together no more than MAX_PIXELS are in the hands of such contexts; each takes some 20 bytes a pixel
    at the peak.
    """
    image = _open(data, limits)
    with _share.of(image.width * image.height):
        yield _decode(image, data)


def decode(data: bytes, limits: Limits = ANY) -> Decoded:
    """Decode a picture as decode_rgb does, and say whether its bytes can be passed on as they are."""
    with decoding(data, limits) as decoded:
        return decoded


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a picture to sRGB, uint8 [H, W, 3].

    EXIF orientation is applied; greyscale, palette and CMYK are converted; an ICC profile is followed (color.py); 16
    bits are divided by 257 and rounded (of RGB in a TIFF, or with one transparent colour, the upper byte is taken);
    alpha is laid over white; of an animation the first frame is taken.
    Raises ImageError (reason, detail) if the bytes are no whole picture, or one of more than `max_pixels` pixels,
    which is found out before decoding.
    """
    return decode(data, Limits(max_pixels=max_pixels)).pixels


def _middle(length: int, most: int) -> slice:
    """What is left of a side when its ends are cut off alike, down to `most` or one more."""
    cut = max(0, length - most) // 2
    return slice(cut, length - cut)


def fit_square(image: Pixels, size: int) -> Pixels:
    """The picture's centre, [H, W, 3] -> [size, size, 3]: shortest side to `size` (bicubic, antialiased), centre crop.

    The same steps as open_clip's preprocessing for evaluation. Of a picture more than LONG times as long as wide the
    ends, which go anyway, are cut off first: the same but for rounding. Raises UsageError if size < 1.
    """
    if size < 1:
        raise UsageError(f"picture size {size}: it must be at least 1")
    height, width = image.shape[:2]
    image = image[_middle(height, LONG * width), _middle(width, LONG * height)]
    height, width = image.shape[:2]
    if min(height, width) != size:
        short = min(height, width)
        height, width = (size, int(size * width / short)) if height == short else (int(size * height / short), size)
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.uint8)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def encode(image: Pixels, format: str, quality: int = 95) -> bytes:
    """Encode uint8 [H, W, 3] as `jpg`, `png` (lossless) or `webp` (lossless at quality 100). Raises UsageError."""
    if format not in _OUT:
        raise UsageError(f"picture format {format!r}; choose one of: {', '.join(_OUT)}")
    options: dict[str, int | bool] = {
        "jpg": {"quality": quality, "subsampling": 0 if quality >= 95 else 2},
        "png": {"compress_level": 4},
        "webp": {"quality": quality, "lossless": quality == 100},
    }[format]
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, _OUT[format], **options)
    return stream.getvalue()
