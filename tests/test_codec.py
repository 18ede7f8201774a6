"""The .gs2d codec: golden files, the NumPy oracle and round trips (what it refuses: test_codec_refusals.py)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import splat2d
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from splat2d import reference_codec as oracle

GOLDEN = Path(__file__).parent / "golden"
INF = float("inf")
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def _rows(*rows: tuple[float, ...]) -> Parts:
    values = np.array(rows, np.float32).reshape(-1, 8)
    return values[:, :2], values[:, 2:5], values[:, 5:]


def formula(count: int, width: int, height: int) -> Parts:
    """Gaussians from integer arithmetic alone: the same on every machine."""
    i = np.arange(count, dtype=np.int64)
    means = np.stack([i * 37 % (8 * width) / 8 - 1.5, i * 101 % (8 * height) / 8 - 1.5], 1)
    cholesky = np.stack([1 + i * 7 % 31 / 16, i * 13 % 33 / 16 - 1, 0.5 + i * 5 % 29 / 32], 1)
    colors = np.stack([i * k % 255 / 255 - 0.25 for k in (11, 23, 47)], 1)
    return means.astype(np.float32), cholesky.astype(np.float32), colors.astype(np.float32)


COUNT_1 = _rows((20.25, -3.5, 2.5, -0.75, 1.1, 0.8, 0.25, -0.1))
EXTREMES = _rows(
    (-8.0, 24.0, 65504.0, -65504.0, 65519.0, 6e-8, -6e-8, 0.0),  # the ends of every range, nothing clamped
    (-16.5, 24.5, 65520.0, -INF, 1e-7, INF, -70000.0, 2e-8),  # seven values clamped
    (INF, -INF, 2.0**-14, 0.333251953125, 6.1e-5, 1.00048828125, -1.00146484375, -0.0),  # three clamped; ties to even
)
# name: input, width, height, values clamped
FILES: dict[str, tuple[Parts, int, int, int]] = {
    "count0_1x1": (_rows(), 1, 1, 0),
    "count1_64x48": (COUNT_1, 64, 48, 0),
    "count3_32x32": (formula(3, 32, 32), 32, 32, 0),
    "count3_extremes_16x16": (EXTREMES, 16, 16, 10),
    "count64_32x32": (formula(64, 32, 32), 32, 32, 0),
    "count400_224x160": (formula(400, 224, 160), 224, 160, 0),
}
SHA256 = {
    "count0_1x1": "2b5af028fb669750f7d64caa51bcbb6fa49969afd455f81ec1418788464144b7",
    "count1_64x48": "bec3f2a9fae08eba332d542390d184edd8df21679c30b8b9daf5803e9f39c15d",
    "count3_32x32": "23af5b8339be8755108f62aca6b17e5b4391529dfa5ee019158193f7a60520f2",
    "count3_extremes_16x16": "6462ee8fdb7fc7befb676343e51c355e39a328af43905ec15cb150a9f94121e7",
    "count64_32x32": "66c81d313e80adabc0bff32118dc1527be87452d87e5be679eca56c7e5d5bdcb",
    "count400_224x160": "ca49e2372249daf2552e449fce2c9dfd3c8107e1439442d24f4a99ac3b67592b",
}
# What the golden files hold, number by number.
DECODED: dict[str, list[list[float]]] = {
    "count0_1x1": [],
    "count1_64x48": [
        [20.250797271728516, -3.5006637573242188, 2.5, -0.75, 1.099609375, 0.7998046875, 0.25, -0.0999755859375],
    ],
    "count3_extremes_16x16": [
        [-8.0, 24.0, 65504.0, -65504.0, 65504.0, 5.960464477539063e-08, -5.960464477539063e-08, 0.0],
        [-8.0, 24.0, 65504.0, -65504.0, 6.103515625e-05, 65504.0, -65504.0, 0.0],
        [24.0, -8.0, 6.103515625e-05, 0.333251953125, 6.103515625e-05, 1.0, -1.001953125, -0.0],
    ],
}


def _bits(array: np.ndarray) -> bytes:
    """Bytes of float32 values: tells -0.0 from 0.0."""
    assert array.dtype == np.float32
    return np.ascontiguousarray(array).tobytes()


def same(one: splat2d.Decoded, other: splat2d.Decoded | oracle.Decoded) -> None:
    assert [_bits(part) for part in one[:3]] == [_bits(part) for part in other[:3]]
    assert one[3:] == other[3:]


@pytest.mark.parametrize("name", FILES)
def test_golden_files_are_written_and_read_as_ever(name: str) -> None:
    parts, width, height, num_clamped = FILES[name]
    stored = (GOLDEN / f"{name}.gs2d").read_bytes()
    assert hashlib.sha256(stored).hexdigest() == SHA256[name]
    assert splat2d.encode(*parts, width, height) == (stored, num_clamped)
    assert oracle.encode(*parts, width, height) == (stored, num_clamped)
    decoded = splat2d.decode(stored)
    same(decoded, oracle.decode(stored))
    assert (decoded.width, decoded.height, len(decoded.means)) == (width, height, len(parts[0]))
    if name in DECODED:
        expected = np.array(DECODED[name], np.float32).reshape(-1, 8)
        assert _bits(np.concatenate(decoded[:3], axis=1)) == _bits(expected)
    else:  # by formula, within half a step of each plane
        means, cholesky, colors = parts
        sides = np.array([width, height])
        assert (np.abs(decoded.means - means) <= sides / 65535 * 1.001).all()
        np.testing.assert_allclose(decoded.cholesky, cholesky, rtol=2**-11, atol=2**-25)
        np.testing.assert_allclose(decoded.colors, colors, rtol=2**-11, atol=2**-25)


def test_every_golden_file_is_pinned() -> None:
    assert {path.stem for path in GOLDEN.glob("*.gs2d")} == set(FILES)


def test_the_worked_example_of_the_documentation() -> None:
    text = (Path(__file__).parent.parent / "docs" / "splat-format.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("    47 53 32 44", "    80 68"))]
    assert bytes.fromhex("".join(lines).replace(" ", "")) == (GOLDEN / "count1_64x48.gs2d").read_bytes()


WORDS = st.floats(width=32, allow_nan=False)
POSITIVE = st.floats(min_value=0.0, exclude_min=True, width=32)


@st.composite
def _splats(draw: st.DrawFn) -> tuple[Parts, int, int]:
    n = draw(st.integers(0, 12))
    means = draw(hnp.arrays(np.float32, (n, 2), elements=WORDS | st.floats(-40, 400, width=32)))
    cholesky = draw(hnp.arrays(np.float32, (n, 3), elements=POSITIVE | st.floats(2**-6, 64, width=32)))
    cholesky[:, 1] = draw(hnp.arrays(np.float32, (n,), elements=WORDS))
    colors = draw(hnp.arrays(np.float32, (n, 3), elements=WORDS | st.floats(-2, 2, width=32)))
    sides = st.integers(1, 300) | st.integers(1, oracle.MAX_SIDE)
    return (means, cholesky, colors), draw(sides), draw(sides)


@settings(max_examples=150, deadline=None)
@given(_splats())
def test_round_trip_and_agreement_with_the_oracle(case: tuple[Parts, int, int]) -> None:
    parts, width, height = case
    data, num_clamped = splat2d.encode(*parts, width, height)
    assert (data, num_clamped) == oracle.encode(*parts, width, height)
    decoded = splat2d.decode(data)
    same(decoded, oracle.decode(data))
    assert splat2d.encode(*decoded) == (data, 0), "writing what was read must give the same bytes"
    sides = np.array([width, height])
    inside = np.clip(parts[0], -0.5 * sides, 1.5 * sides)
    assert (np.abs(decoded.means - inside) <= sides / 65535 * 1.01).all()
    np.testing.assert_allclose(decoded.colors, np.clip(parts[2], -65504, 65504), rtol=2**-11, atol=2**-25)
    assert (decoded.cholesky[:, [0, 2]] >= 2**-14).all()


def test_every_half_is_kept_and_halves_round_to_even() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    between = np.nextafter((halves[:-1] + halves[1:]) / 2, np.float32(0))  # just beside the middle of two neighbours
    middles = (halves[:-1] + halves[1:]) / 2
    for values in (halves, middles, between, halves * np.float32(1.0003)):
        n = len(values)
        colors = np.stack([values, values[::-1], -values], 1)
        args = (np.zeros((n, 2), np.float32), np.ones((n, 3), np.float32), colors, 8, 8)
        assert splat2d.encode(*args) == oracle.encode(*args)
    colors = np.stack([halves] * 3, 1)
    ones = np.ones((len(halves), 3), np.float32)
    assert _bits(splat2d.decode(splat2d.encode(ones[:, :2], ones, colors, 8, 8)[0]).colors) == _bits(colors)


def test_every_position_code_is_kept() -> None:
    """Positions at all 65,536 steps of a 224 x 1000 picture come back to their own step."""
    codes = np.arange(65536, dtype=np.float64)
    means = np.stack([codes * 448 / 65535 - 112, codes * 2000 / 65535 - 500], 1).astype(np.float32)
    ones = np.ones((65536, 3), np.float32)
    data, num_clamped = splat2d.encode(means, ones, ones, 224, 1000)
    assert num_clamped == 0
    planes = np.frombuffer(data, "<u2", count=2 * 65536, offset=24).reshape(2, -1)
    assert (planes == codes).all()


GOOD = formula(4, 8, 8)


def test_readers_take_any_buffer_and_writers_any_number_type() -> None:
    data, _ = splat2d.encode(*(part.tolist() for part in GOOD), 8, 8)
    assert data == splat2d.encode(*(part.astype(np.float64) for part in GOOD), 8, 8)[0]
    for view in (bytearray(data), memoryview(b"12" + data)[2:], np.frombuffer(data, np.uint8)):
        same(splat2d.decode(view), splat2d.decode(data))
    with pytest.raises(ValueError, match="buffer of bytes"):
        splat2d.decode(memoryview(data + data)[::2])
