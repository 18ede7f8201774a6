"""What a .gs2d version 1 file is, in NumPy: the oracle that the native codec agrees with bit for bit.

Written from docs/splat-format.md, not from the C++; slow and plain on purpose.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

HEADER = struct.Struct("<4sHHIII")  # magic, version, encoding id, width, height, count; the CRC-32 follows
MAX_SIDE = 16384
MAX_COUNT = 2**24
HALF_MAX = np.float16(65504)
HALF_MIN_NORMAL = np.float16(2.0**-14)
PLANES = ("x", "y", "l00", "l10", "l11", "r", "g", "b")

Floats = npt.NDArray[np.float32]


class Decoded(NamedTuple):
    """means [n, 2], cholesky [n, 3] = (l00, l10, l11), colors [n, 3], all float32; the picture's size in pixels."""

    means: Floats
    cholesky: Floats
    colors: Floats
    width: int
    height: int


def _fixed(values: Floats, side: int) -> tuple[npt.NDArray[np.uint16], int]:
    inside = np.clip(values.astype(np.float64), -side / 2, 3 * side / 2)
    steps = np.rint((inside + side / 2) * 65535.0 / (2.0 * side))
    return steps.astype("<u2"), int(np.count_nonzero(inside != values))


def _half(values: Floats, *, positive: bool) -> tuple[npt.NDArray[np.float16], int]:
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(np.float16)
    low = HALF_MIN_NORMAL if positive else -HALF_MAX
    stored = np.clip(rounded, low, HALF_MAX)
    return stored.astype("<f2"), int(np.count_nonzero(stored != rounded))


def encode(
    means: npt.ArrayLike, cholesky: npt.ArrayLike, colors: npt.ArrayLike, width: int, height: int
) -> tuple[bytes, int]:
    """Bytes of a file and the number of values stored clamped; ValueError where the format cannot hold the input."""
    parts = [np.asarray(part, dtype=np.float32) for part in (means, cholesky, colors)]
    count = parts[0].shape[0] if parts[0].ndim else 0
    if [part.shape for part in parts] != [(count, 2), (count, 3), (count, 3)]:
        raise ValueError(f"expected [n, 2], [n, 3], [n, 3], got {[part.shape for part in parts]}")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and count <= MAX_COUNT):
        raise ValueError(f"size {width} x {height} or count {count} is out of range")
    values = np.concatenate(parts, axis=1)
    if np.isnan(values).any():
        raise ValueError("a value is NaN")
    if not (values[:, [2, 4]] > 0).all():
        raise ValueError("l00 and l11 must be above 0")
    payload, num_clamped = b"", 0
    for index, name in enumerate(PLANES):
        column = values[:, index]
        if name in ("x", "y"):
            plane: npt.NDArray[np.generic]
            plane, clamped = _fixed(column, width if name == "x" else height)
        else:
            plane, clamped = _half(column, positive=name in ("l00", "l11"))
        payload, num_clamped = payload + plane.tobytes(), num_clamped + clamped
    header = HEADER.pack(b"GS2D", 1, 1, width, height, count)
    return header + struct.pack("<I", zlib.crc32(header + payload)) + payload, num_clamped


def decode(data: bytes) -> Decoded:
    """The splats of a file; ValueError on anything that is not exactly one file of version 1, encoding 1."""
    if len(data) < HEADER.size + 4:
        raise ValueError(f"truncated: {len(data)} bytes")
    magic, version, encoding, width, height, count = HEADER.unpack_from(data)
    if magic != b"GS2D" or version != 1 or encoding != 1:
        raise ValueError(f"magic {magic!r}, version {version}, encoding {encoding}: not b'GS2D', 1, 1")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and count <= MAX_COUNT):
        raise ValueError(f"size {width} x {height} or count {count} is out of range")
    (crc,) = struct.unpack_from("<I", data, HEADER.size)
    payload = data[HEADER.size + 4 :]
    if len(payload) != 16 * count:
        raise ValueError(f"{len(data)} bytes do not hold {count} Gaussians")
    if crc != zlib.crc32(data[: HEADER.size] + payload):
        raise ValueError("CRC-32 does not match")
    fixed = np.frombuffer(payload, "<u2", count=2 * count).reshape(2, count).astype(np.float64)
    halves = np.frombuffer(payload, "<f2", offset=4 * count).reshape(6, count).astype(np.float32)
    diagonal = halves[[0, 2]]
    if not np.isfinite(halves).all() or not (diagonal >= np.float32(HALF_MIN_NORMAL)).all():
        raise ValueError("a value is not finite, or l00 or l11 is not a positive normal number")
    sides = np.array([[width], [height]], dtype=np.float64)
    means = (fixed * (2.0 * sides) / 65535.0 - sides / 2).astype(np.float32)
    return Decoded(
        np.ascontiguousarray(means.T),
        np.ascontiguousarray(halves[:3].T),
        np.ascontiguousarray(halves[3:].T),
        width,
        height,
    )
