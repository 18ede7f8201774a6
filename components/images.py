"""Pictures: bytes to RGB arrays and back."""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

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
# What Pillow's readers raise on damaged data.
_DAMAGE = (
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
    """A picture that cannot be used; reason: "truncated", "unreadable", "too_large", "empty" or "missing"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 [H, W, 3]; format: `jpg`, `png`, `webp` or "" for others.

    plain: the file is a still 8-bit RGB picture, upright, without alpha: any reader sees `pixels` in its bytes.
    """

    pixels: Pixels
    format: str
    plain: bool


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of odd metadata; the outcome here is pixels or an ImageError, whatever the warning filters are."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _failure(error: BaseException) -> ImageError:
    text = " ".join(re.sub(r"<[^>]* at 0x[0-9a-f]+>", "", str(error)).split()) or type(error).__name__  # no addresses
    return ImageError("truncated" if "truncat" in text.lower() else "unreadable", text[:200])


def _over_white(image: Image.Image) -> Pixels:
    rgba = np.asarray(image.convert("RGBA"), np.uint32)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _rgb(image: Image.Image) -> Pixels:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.array(image, np.uint8)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ImageError("unreadable", "integer pixels outside 0..65535")
        grey = ((values + 128) // 257).astype(np.uint8)  # 65535 = 255 x 257, rounded to the nearest
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise ImageError("unreadable", "floating-point pixels have no known range")
    if "A" in image.mode or image.mode in {"La", "RGBa"} or "transparency" in image.info:
        return _over_white(image)
    return np.array(image.convert("RGB"), np.uint8)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode a picture as decode_rgb does, and say whether its bytes can be passed on as they are."""
    if not data:
        raise ImageError("empty", "0 bytes")
    try:
        with _quiet():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError("too_large", f"{width} x {height} pixels; the limit is {max_pixels}")
            orientation = image.getexif().get(_ORIENTATION, 1)
            still = getattr(image, "n_frames", 1) == 1
        with image:
            image.load()  # outside the lock: decoding is what takes the time
            deep = image.format == "PNG" and len(data) > 24 and data[24] == 16  # Pillow hands 16-bit RGB out as 8-bit
            plain = image.mode == "RGB" and "transparency" not in image.info and still and not deep and orientation == 1
            ext = _EXT.get(image.format or "", "")
            with _quiet():
                upright = ImageOps.exif_transpose(image) if orientation != 1 else image
                pixels = _rgb(upright)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("too_large", "not enough memory to decode it") from None
    except _DAMAGE as error:
        raise _failure(error) from error
    return Decoded(pixels, ext, plain and bool(ext))


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a picture to RGB, uint8 [H, W, 3].

    EXIF orientation is applied; greyscale, palette and CMYK are converted; 16-bit grey is divided by 257 and rounded;
    alpha is laid over white; of an animation the first frame is taken; colour profiles are left alone.
    Raises ImageError (reason, detail) if the bytes are no whole picture, or one of more than `max_pixels` pixels,
    which is found out before decoding.
    """
    return decode(data, max_pixels=max_pixels).pixels


def fit_square(image: Pixels, size: int) -> Pixels:
    """The picture's centre, [H, W, 3] -> [size, size, 3]: shortest side to `size` (bicubic, antialiased), centre crop.

    The same steps as open_clip's preprocessing for evaluation. Raises UsageError if size < 1.
    """
    if size < 1:
        raise UsageError(f"picture size {size}: it must be at least 1")
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
