"""Batches of .gs2d files in one call: values and refusals are those of single files, on every instruction set."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import splat2d
from splat2d import reference_codec as oracle
from test_codec import formula

from components.errors import PermanentError
from components.splats import Splats, pad, unpack_padded

COUNTS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 64, 65, 400]


@pytest.fixture(params=["portable", "best"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops that every processor runs, then those of this one."""
    if request.param == "portable":
        monkeypatch.setenv("SPLAT2D_BACKEND", "portable")
    else:
        monkeypatch.delenv("SPLAT2D_BACKEND", raising=False)


def file_of(count: int, width: int = 224, height: int = 160) -> bytes:
    return splat2d.encode(*formula(count, width, height), width, height)[0]


def with_word(data: bytes, plane: int, gaussian: int, word: int) -> bytes:
    """The file with one 16-bit value replaced and its CRC made right."""
    changed = bytearray(data)
    (count,) = struct.unpack_from("<I", data, 16)
    struct.pack_into("<H", changed, 24 + 2 * (plane * count + gaussian), word)
    struct.pack_into("<I", changed, 20, zlib.crc32(changed[24:], zlib.crc32(changed[:20])))
    return bytes(changed)


def test_a_batch_is_its_files_padded_with_zeros() -> None:
    files = [file_of(count) for count in COUNTS]
    batch = splat2d.decode_batch([memoryview(b"ab" + data)[2:] for data in files], 400)
    assert batch.means.shape == (len(COUNTS), 400, 2)
    assert batch.cholesky.shape == batch.colors.shape == (len(COUNTS), 400, 3)
    assert batch.counts.dtype == np.int32
    assert batch.counts.tolist() == COUNTS
    assert batch.sizes.dtype == np.int32
    assert batch.sizes.tolist() == [[224, 160]] * len(COUNTS)
    for row, data in enumerate(files):
        expected, count = oracle.decode(data), COUNTS[row]
        for found, wanted in zip(batch[:3], expected[:3], strict=True):
            assert found.dtype == np.float32
            assert found.flags.writeable
            assert found[row, :count].tobytes() == np.ascontiguousarray(wanted).tobytes()
            assert not found[row, count:].any()


def test_every_value_of_every_plane_reads_as_the_oracle_has_it() -> None:
    """All 65,536 positions, and all finite halves with their subnormals, through the vector loops and their rest."""
    halves = np.arange(65536, dtype=np.uint16)
    finite = halves[np.isfinite(halves.view(np.float16))]
    positive = finite[(finite >= 0x0400) & (finite < 0x8000)]
    count = 65536 + 3
    words = np.stack([np.resize(v, count) for v in (halves, halves[::-1], positive, finite, positive, *[finite] * 3)])
    header = struct.pack("<4sHHIII", b"GS2D", 1, 1, 224, 1000, count)
    payload = words.astype("<u2").tobytes()
    data = header + struct.pack("<I", zlib.crc32(payload, zlib.crc32(header))) + payload
    batch, expected = splat2d.decode_batch([data], count), oracle.decode(data)
    for found, wanted in zip(batch[:3], expected[:3], strict=True):
        assert found[0].tobytes() == np.ascontiguousarray(wanted).tobytes()


def test_every_damaged_byte_is_refused() -> None:
    data = file_of(17)
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 1 << position % 8
        with pytest.raises(ValueError, match="gs2d: "):
            splat2d.decode(bytes(bad))


@pytest.mark.parametrize("gaussian", [0, 7, 8, 15, 16])
@pytest.mark.parametrize(
    ("plane", "word"),
    [
        (2, 0x0000),
        (2, 0x03FF),
        (2, 0xBC00),
        (4, 0x7C00),
        (3, 0x7C00),
        (3, 0xFE00),
        (5, 0xFC00),
        (6, 0x7FFF),
        (7, 0x7E01),
    ],
)
def test_a_wrong_value_is_named_wherever_it_is(plane: int, word: int, gaussian: int) -> None:
    good = file_of(17)
    where = f"{oracle.PLANES[plane]} of Gaussian {gaussian} .byte {24 + 2 * (17 * plane + gaussian)}. .*0x{word:04x}"
    with pytest.raises(ValueError, match=f"file 1: gs2d: {where}"):
        splat2d.decode_batch([good, with_word(good, plane, gaussian, word)], 17)


def test_what_a_batch_refuses() -> None:
    good = file_of(9)
    with pytest.raises(ValueError, match="file 2: gs2d: 9 Gaussians; room is for 8"):
        splat2d.decode_batch([file_of(8), b"" + file_of(0), good], 8)
    with pytest.raises(ValueError, match="file 0: gs2d: truncated"):
        splat2d.decode_batch([good[:-1]], 9)
    for number in (-1, 2**24 + 1, 2**58, 2**61, 2**63 - 1):
        with pytest.raises(ValueError, match=f"num_gaussians is {number}; it must be at least 0 and at most 16777216"):
            splat2d.decode_batch([good], number)
    with pytest.raises(TypeError):
        splat2d.decode_batch([good, "text"], 9)  # type: ignore[list-item]
    with pytest.raises(BufferError):
        splat2d.decode_batch([memoryview(good + good)[::2]], 9)
    assert splat2d.decode_batch([], 5).means.shape == (0, 5, 2)
    assert splat2d.decode_batch([], 2**24).means.shape == (0, 2**24, 2)


class Made(Sequence[bytes]):
    """A sequence that makes each item when it is asked for; the last one asked for may raise."""

    def __init__(self, files: Sequence[bytes], fail: bool = False) -> None:
        self.files, self.fail = files, fail

    def __len__(self) -> int:
        return len(self.files) + self.fail

    def __getitem__(self, i: Any) -> Any:
        return bytes(bytearray(self.files[i]))


def test_items_that_are_made_on_access() -> None:
    """Rows of an array, and fresh bytes, that nobody else holds."""
    files = [splat2d.encode(*formula(400, width, 160), width, 160)[0] for width in range(100, 164)]
    expected = splat2d.decode_batch(files, 400)
    rows = np.stack([np.frombuffer(data, np.uint8) for data in files])
    for given in (rows, Made(files)):
        found = splat2d.decode_batch(given, 400)  # type: ignore[arg-type]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(IndexError):
        splat2d.decode_batch(Made(files, fail=True), 400)


def test_unpack_padded_is_pad_of_unpack_and_names_the_culprit() -> None:
    files = [file_of(count) for count in (3, 0, 8)]
    padded, expected = unpack_padded(files, 10), pad([Splats.unpack(data) for data in files], 10)
    for name in ("means", "cholesky", "colors", "counts", "mask"):
        np.testing.assert_array_equal(getattr(padded, name), getattr(expected, name))
    names = ["a", "b", "c"].__getitem__
    with pytest.raises(PermanentError, match="c: gs2d: CRC-32"):
        unpack_padded([*files[:2], files[2][:-1] + b"\x55"], 10, names)
    with pytest.raises(PermanentError, match=r"^c: 8 Gaussians; room is for 7"):
        unpack_padded(files, 7, names)
    with pytest.raises(PermanentError, match=r"^splats 2 of the batch: 8 Gaussians; room is for 7"):
        pad([Splats.unpack(data) for data in files], 7)


def test_splats_of_another_picture_size_are_named() -> None:
    files = [file_of(3), file_of(3, height=161), file_of(3)]
    assert len(unpack_padded(files, 3).counts) == 3, "of any size, where none is asked for"
    assert len(unpack_padded([files[0]], 3, picture=(224, 160)).counts) == 1
    assert len(unpack_padded([], 3, picture=(224, 160)).counts) == 0
    said = "^b: its splats are of a picture of 224 x 161 pixels, expected 224 x 160; fit the splats again"
    with pytest.raises(PermanentError, match=said):
        unpack_padded(files, 3, ["a", "b", "c"].__getitem__, picture=(224, 160))
