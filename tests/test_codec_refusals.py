"""What readers and writers of .gs2d must refuse, and that nothing damaged gets through."""

from __future__ import annotations

import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import splat2d
from hypothesis import given, settings
from hypothesis import strategies as st
from splat2d import reference_codec as oracle
from test_codec import GOLDEN, Parts, formula, same


@pytest.mark.parametrize("decode", [splat2d.decode, oracle.decode])
def test_every_prefix_and_every_flipped_byte_is_refused(decode: Callable[[bytes], object]) -> None:
    data = (GOLDEN / "count3_32x32.gs2d").read_bytes()
    decode(data)
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"truncated|do not hold"):
            decode(data[:length])
    for position in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            bad = bytearray(data)
            bad[position] ^= change
            with pytest.raises(ValueError):  # noqa: PT011  (which check refuses depends on the byte)
                decode(bytes(bad))


def _file(
    payload: bytes = b"",
    *,
    magic: bytes = b"GS2D",
    version: int = 1,
    encoding: int = 1,
    width: int = 8,
    height: int = 8,
    count: int | None = None,
) -> bytes:
    """A file whose CRC is right, whatever else is wrong with it."""
    header = struct.pack(
        "<4sHHIII", magic, version, encoding, width, height, len(payload) // 16 if count is None else count
    )
    return header + struct.pack("<I", zlib.crc32(header + payload)) + payload


def _payload(**planes: int) -> bytes:
    values = dict.fromkeys(oracle.PLANES, 0x3C00) | planes
    return struct.pack("<8H", *values.values())


REFUSED: list[tuple[str, bytes, str]] = [
    ("empty", b"", "truncated: 0 bytes"),
    ("magic", _file(magic=b"GS3D"), "bytes 0-3 are not the magic 'GS2D'"),
    ("version 0", _file(version=0), "version 0 at byte 4"),
    ("version 2", _file(version=2), "version 2 at byte 4; this reader knows version 1"),
    ("encoding", _file(encoding=2), "encoding id 2 at byte 6"),
    ("no width", _file(width=0), "width x height is 0 x 8"),
    ("height", _file(height=16385), "width x height is 8 x 16385"),
    ("count", _file(count=2**24 + 1), "count is 16777217"),
    ("too short", _file(_payload(), count=2), "truncated: 40 bytes; 2 Gaussians take 56"),
    ("trailing", _file() + b"\0", "too long: 25 bytes; 0 Gaussians take 24"),
    ("crc", _file(_payload())[:-1] + b"\x01", "CRC-32 at byte 20 is [0-9a-f]{8}, .* damaged"),
    ("zero l00", _file(_payload(l00=0)), r"l00 of Gaussian 0 \(byte 28\) is the half 0x0000.*positive normal"),
    ("subnormal l11", _file(_payload(l11=0x03FF)), r"l11 of Gaussian 0 \(byte 32\).*positive normal"),
    ("negative l00", _file(_payload(l00=0xBC00)), "l00 .*positive normal"),
    ("infinite l00", _file(_payload(l00=0x7C00)), "l00 .*positive normal"),
    ("infinite l10", _file(_payload(l10=0xFC00)), r"l10 of Gaussian 0 \(byte 30\).*not finite"),
    ("NaN blue", _file(_payload(b=0x7E00)), r"b of Gaussian 0 \(byte 38\).*not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_malformed_files_are_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splat2d.decode(data)
    with pytest.raises(ValueError):  # noqa: PT011  (the oracle words it in its own way)
        oracle.decode(data)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 65535), min_size=8, max_size=8), max_size=4))
def test_any_payload_with_a_right_crc_is_read_alike_or_refused(words: list[list[int]]) -> None:
    """No pattern of bits gets through as NaN, infinity or a flat Gaussian."""
    payload = np.array(words, "<u2").reshape(-1, 8).T.tobytes()
    try:
        expected = oracle.decode(_file(payload))
    except ValueError:
        with pytest.raises(ValueError, match="of Gaussian"):
            splat2d.decode(_file(payload))
        return
    decoded = splat2d.decode(_file(payload))
    same(decoded, expected)
    assert all(np.isfinite(part).all() for part in decoded[:3])
    assert (decoded.cholesky[:, [0, 2]] > 0).all()


GOOD = formula(4, 8, 8)
NAN = np.full_like(GOOD[0], np.nan)


@pytest.mark.parametrize(
    ("parts", "size", "message"),
    [
        ((NAN, GOOD[1], GOOD[2]), (8, 8), "x of Gaussian 0 is NaN"),
        ((GOOD[0], GOOD[1], np.full_like(GOOD[2], np.nan)), (8, 8), "r of Gaussian 0 is NaN"),
        ((GOOD[0], GOOD[1] * [1, 1, -1], GOOD[2]), (8, 8), "l11 of Gaussian 0 is -0.5; it must be above 0"),
        ((GOOD[0], GOOD[1] * [0, 1, 1], GOOD[2]), (8, 8), "l00 of Gaussian 0 is 0; it must be above 0"),
        ((GOOD[0], GOOD[1][:3], GOOD[2]), (8, 8), r"expected cholesky \[4, 3\], got \[3, 3\]"),
        ((GOOD[1], GOOD[1], GOOD[2]), (8, 8), r"expected means \[n, 2\], got \[4, 3\]"),
        (GOOD, (0, 8), "width x height is 0 x 8"),
        (GOOD, (8, 16385), "width x height is 8 x 16385"),
        (GOOD, (-1, 8), "above 0"),
    ],
)
def test_unfit_values_are_refused(parts: Parts, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"gs2d: .*{message}"):
        splat2d.encode(*parts, *size)
    with pytest.raises(ValueError):  # noqa: PT011
        oracle.encode(*parts, *size)


HARNESS = r"""
#include <algorithm>
#include <iostream>
#include <iterator>
#include <memory>
#include <random>
#include <vector>
#include "splat2d/codec.h"
namespace codec = splat2d::codec;
int main() {
  const std::vector<std::uint8_t> good((std::istreambuf_iterator<char>(std::cin)), {});
  std::mt19937 rng(7);
  long accepted = 0, refused = 0;
  for (int trial = 0; trial < 200000; ++trial) {
    std::size_t size = trial % 3 ? good.size() : rng() % (good.size() + 1);
    std::unique_ptr<std::uint8_t[]> data(new std::uint8_t[size]);  // exactly as long, so that one byte more is seen
    std::copy_n(good.begin(), size, data.get());
    for (int k = rng() % 4; size && k; --k) data[rng() % size] = static_cast<std::uint8_t>(rng());
    if (size >= 24 && trial % 2) {
      const auto crc = codec::crc32(data.get() + 24, size - 24, codec::crc32(data.get(), 20));
      codec::detail::put32(data.get() + 20, crc);
    }
    try {
      const auto header = codec::read_header(data.get(), size);
      std::vector<float> m(2 * header.count), l(3 * header.count), c(3 * header.count);
      codec::decode_values(data.get(), header, {m.data(), l.data(), c.data()});
      std::vector<std::uint8_t> again(codec::encoded_size(header.count));
      if (codec::encode({m.data(), l.data(), c.data()}, header, again.data()) != 0) return 1;
      if (!std::equal(again.begin(), again.end(), data.get())) return 2;
      ++accepted;
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  std::cout << accepted << " " << refused;
}
"""


@pytest.mark.full
def test_damaged_files_under_sanitizers(tmp_path: Path) -> None:
    """200,000 damaged files, half of them with a CRC made right again: no stray read, no undefined behaviour."""
    include = Path(__file__).parent.parent / "kernels" / "include"
    source, program = tmp_path / "harness.cpp", tmp_path / "harness"
    source.write_text(HARNESS)
    flags = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    command = ["c++", *flags, "-fno-sanitize-recover=all", f"-I{include}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    data = (GOLDEN / "count3_32x32.gs2d").read_bytes()
    done = subprocess.run([program], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    accepted, refused = map(int, done.stdout.split())
    assert accepted > 20_000
    assert refused > 20_000
