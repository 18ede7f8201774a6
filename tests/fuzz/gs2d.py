"""Splat files: the native reader, one file and many, against the oracle in NumPy and back."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import splat2d
from splat2d import reference_codec

from components.splats import Splats, unpack_padded
from fuzz.checks import WHERE, hold, read

GOOD = splat2d.encode(np.ones((2, 2)), np.ones((2, 3)), np.ones((2, 3)), 8, 8)[0]
MAX_LEN = 24 + 16 * 40
HEADER = 24


def _refused(call: Callable[..., object], *args: object, begins: str) -> object:
    try:
        return call(*args)
    except ValueError as error:
        hold(str(error).startswith(begins), f"not worded as {begins!r}: {error}")
        return None


def run(data: bytes) -> None:
    """Both readers take or refuse a file alike; what they take has the same values and gives the same bytes again."""
    native = _refused(splat2d.decode, data, begins="gs2d: ")
    oracle = _refused(reference_codec.decode, data, begins="")
    hold((native is None) == (oracle is None), "the native reader and the oracle disagree on whether it is a file")
    rows = max(0, len(data) - HEADER) // 16
    batch = _refused(splat2d.decode_batch, [GOOD, memoryview(data)], max(rows, 2), begins="file 1: gs2d: ")
    hold((native is None) == (batch is None), "decode and decode_batch disagree on whether it is a file")
    splats = read(Splats.unpack, data, WHERE)
    hold((native is None) == (splats is None), "Splats.unpack and decode disagree")
    padded = read(lambda: unpack_padded([data, GOOD], max(rows, 2), f"{WHERE} {{}}".format))
    hold((native is None) == (padded is None), "unpack_padded and decode disagree")
    if native is None:
        if rows:
            read(lambda: unpack_padded([data], 0, f"{WHERE} {{}}".format))
        return
    for one in (oracle, splats):
        for name in ("means", "cholesky", "colors", "width", "height"):
            hold(np.array_equal(getattr(native, name), getattr(one, name)), f"other {name} than {type(one).__name__}'s")
    count = len(native.means)
    for name in ("means", "cholesky", "colors"):
        hold(np.array_equal(getattr(batch, name)[1, :count], getattr(native, name)), f"decode_batch has other {name}")
        hold(not getattr(batch, name)[1, count:].any(), f"decode_batch leaves {name} in the padding")
    hold(splat2d.encode(*native) == (data, 0), "writing what was read gives other bytes")
    hold(reference_codec.encode(*native) == (data, 0), "the oracle writes other bytes than it read")


def repaired(data: bytes) -> bytes:
    """The same with a count that fits the length, and the right CRC: what lies behind the header is reached."""
    if len(data) < HEADER:
        return GOOD
    whole = bytearray(data[: HEADER + (len(data) - HEADER) // 16 * 16])
    whole[:8] = GOOD[:8]
    struct.pack_into("<I", whole, 16, (len(whole) - HEADER) // 16)
    struct.pack_into("<I", whole, 20, zlib.crc32(whole[HEADER:], zlib.crc32(whole[:20])))
    return bytes(whole)
