"""ICC profiles (version 2) made by hand: what a test needs to know the colours that must come out."""

from __future__ import annotations

import struct

import numpy as np

# Columns: X, Y, Z (D50) of full red, green and blue.
SRGB = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
WIDE = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))  # Display P3
CURVE = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in np.linspace(0, 1, 1024)]
WHITE = (0.9642, 1.0, 0.8249)


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78), **tags}
    tags[b"cprt"] = b"text" + bytes(4) + b"none\0"
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = place + len(body)
    head = struct.pack(">I4sI", size, b"lcms", 0x02400000) + kind + space + connection
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(*WHITE)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def curve(values: list[float]) -> bytes:
    return b"curv" + bytes(4) + struct.pack(f">I{len(values)}H", len(values), *(round(v * 65535) for v in values))


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + fixed(*values)


def rgb_profile(primaries: tuple[tuple[float, float, float], ...], tone: bytes = b"") -> bytes:
    tone = tone or curve(CURVE)
    tags = {name + b"XYZ": xyz(*color) for name, color in zip((b"r", b"g", b"b"), primaries, strict=True)}
    return profile(b"RGB ", {b"wtpt": xyz(*WHITE), **tags, b"rTRC": tone, b"gTRC": tone, b"bTRC": tone})


def grey_profile(power: float) -> bytes:
    return profile(b"GRAY", {b"wtpt": xyz(*WHITE), b"kTRC": gamma(power)})


def cmyk_profile() -> bytes:
    """A press on which cyan prints green: whoever ignores the profile sees another colour."""
    paper, green, black = (255, 128, 128), (128, 28, 178), (0, 128, 128)  # Lab in 8 bits
    grid = [black if k else green if c else paper for c in (0, 1) for _ in range(4) for k in (0, 1)]
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += ramp * 4 + b"".join(map(bytes, grid)) + ramp * 3
    return profile(b"CMYK", {b"wtpt": xyz(*WHITE), b"A2B0": table}, connection=b"Lab ", kind=b"prtr")


def linear(encoded: np.ndarray) -> np.ndarray:
    encoded = np.asarray(encoded, float)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def to_srgb(colors: np.ndarray, primaries: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """What RGB colours (uint8 [..., 3]) of these primaries and sRGB's curve are in sRGB, by the textbook."""
    light = linear(colors / 255) @ np.array(primaries) @ np.linalg.inv(np.array(SRGB))
    light = light.clip(0, 1)
    encoded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255)
