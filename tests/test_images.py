"""Pictures: every kind of file becomes RGB, or a reason."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.errors import UsageError
from components.images import ImageError, decode, decode_rgb, encode, fit_square

RNG = np.random.default_rng(0)


def scene(height: int = 24, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1).astype(np.uint8)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG by hand: kinds that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_come_back_exactly(format: str) -> None:
    assert np.array_equal(decode_rgb(saved(Image.fromarray(scene()), format)), scene())


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_files_come_back_nearly(format: str) -> None:
    pixels = decode_rgb(saved(Image.fromarray(scene()), format, quality=95))
    assert pixels.shape == (24, 32, 3)
    assert np.abs(pixels.astype(int) - scene()).mean() < 6


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_greyscale(format: str) -> None:
    grey = scene()[..., 0]
    pixels = decode_rgb(saved(Image.fromarray(grey), format))
    assert np.abs(pixels.astype(int) - grey[..., None]).max() <= (0 if format == "PNG" else 8)


def test_sixteen_bits_are_divided_by_257_and_rounded() -> None:
    values = np.array([[0, 1, 128, 129, 257, 32768], [65535, 65407, 65406, 385, 386, 51400]], np.uint16)
    expected = np.rint(values / 257.0).astype(np.uint8)
    for format in ("PNG", "TIFF"):
        pixels = decode_rgb(saved(Image.fromarray(values), format))
        assert np.array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))
    big_endian = Image.frombytes("I;16B", (6, 2), values.astype(">u2").tobytes())
    assert np.array_equal(decode_rgb(saved(big_endian, "TIFF"))[..., 0], expected)


def test_sixteen_bit_colour_is_read_and_not_passed_on() -> None:
    rows = b"".join(b"\0" + np.full((4, 3), value, ">u2").tobytes() for value in (0, 65535, 32896))
    found = decode(png(4, 3, 16, 2, rows))
    assert [int(v) for v in found.pixels[:, 0, 0]] == [0, 255, 128]
    assert not found.plain


def test_cmyk() -> None:
    colors = Image.fromarray(scene()).convert("CMYK")
    for format in ("TIFF", "JPEG"):
        pixels = decode_rgb(saved(colors, format, quality=95) if format == "JPEG" else saved(colors, format))
        assert np.abs(pixels.astype(int) - scene()).mean() < 8


def test_alpha_is_laid_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (0, 51, 255)
    expected = [[255, 255, 255], [244, 204, 204], [200, 0, 0]]
    assert decode_rgb(saved(Image.fromarray(rgba), "PNG"))[0].tolist() == expected
    grey = Image.new("LA", (2, 1), (10, 0))
    grey.putpixel((1, 0), (10, 255))
    assert decode_rgb(saved(grey, "PNG"))[0, :, 0].tolist() == [255, 10]


def test_palette_with_and_without_a_transparent_colour() -> None:
    image = Image.fromarray(scene()).quantize(16)
    assert np.array_equal(decode_rgb(saved(image, "PNG")), np.asarray(image.convert("RGB")))
    keyed = Image.new("P", (2, 1))
    keyed.putpalette([255, 0, 0, 0, 0, 255])
    keyed.putpixel((1, 0), 1)
    for transparency in (0, bytes([0, 255])):
        pixels = decode_rgb(saved(keyed, "PNG", transparency=transparency))
        assert pixels[0].tolist() == [[255, 255, 255], [0, 0, 255]]
    rgb = Image.new("RGB", (2, 1), (1, 2, 3))
    rgb.putpixel((1, 0), (9, 9, 9))
    found = decode(saved(rgb, "PNG", transparency=(1, 2, 3)))
    assert found.pixels[0].tolist() == [[255, 255, 255], [9, 9, 9]]
    assert not found.plain


def test_one_bit() -> None:
    assert decode_rgb(saved(Image.new("1", (3, 2), 1), "PNG")).tolist() == [[[255] * 3] * 3] * 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(saved(Image.fromarray(scene()), "PNG", exif=exif))
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation]
    assert np.array_equal(found.pixels, turn(scene()))
    assert found.plain == (orientation == 1)


def test_exif_orientation_wherever_it_stands_and_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.rot90(scene(), -1)
    image = Image.fromarray(scene())
    for options in ({}, {"compression": "tiff_lzw"}):  # Pillow turns a TIFF while it reads it
        assert np.array_equal(decode_rgb(saved(image, "TIFF", exif=exif, **options)), turned)
    bare, data = (saved(image, "PNG", **more) for more in ({}, {"exif": exif}))
    start = data.index(b"eXIf") - 4
    (size,) = struct.unpack(">I", data[start : start + 4])
    late = bare[:-12] + data[start : start + 12 + size] + bare[-12:]  # behind the pixels
    found = decode(late)
    assert np.array_equal(found.pixels, turned)
    assert not found.plain


def test_broken_exif_is_no_reason_to_lose_the_picture() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0"):
        for format in ("JPEG", "PNG", "WEBP"):
            assert decode(saved(Image.fromarray(scene()), format, exif=exif)).pixels.shape == (24, 32, 3)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0))]
    for format in ("GIF", "PNG", "WEBP"):
        found = decode(
            saved(
                frames[0],
                format,
                save_all=True,
                append_images=frames[1:],
                **({"lossless": True} if format == "WEBP" else {}),
            )
        )
        assert found.pixels[4, 4].tolist() == [255, 0, 0]
        assert not found.plain


@pytest.mark.parametrize(("format", "ext"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "")])
def test_what_can_be_passed_on(format: str, ext: str) -> None:
    found = decode(saved(Image.fromarray(scene()), format))
    assert (found.format, found.plain) == (ext, bool(ext))
    if format != "BMP":
        assert not decode(saved(Image.fromarray(scene()).convert("RGBA"), "PNG")).plain


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_has_a_reason(format: str, share: float) -> None:
    data = saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), format)
    with pytest.raises(ImageError) as caught:
        decode_rgb(data[: int(len(data) * share)])
    assert caught.value.reason in {"truncated", "unreadable"}
    if format == "JPEG":
        assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture", "unreadable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unreadable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "unreadable"),
        (b"\xff\xd8\xff", "unreadable"),
        (png(4, 4, 8, 2, b""), "truncated"),
        (png(200_000, 200_000, 8, 2, b""), "too_large"),
        (png(11_000, 11_000, 8, 2, b""), "too_large"),
    ],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_rgb(data)
    assert (caught.value.reason, caught.value.exit_code) == (reason, 42)


def test_the_limit_is_looked_at_before_decoding() -> None:
    data = saved(Image.fromarray(scene()), "BMP")
    assert decode_rgb(data, max_pixels=24 * 32).shape == (24, 32, 3)
    with pytest.raises(ImageError, match="32 x 24 pixels; the limit is 767"):
        decode_rgb(data[:100], max_pixels=24 * 32 - 1)


def test_floating_point_has_no_range() -> None:
    with pytest.raises(ImageError, match="unreadable"):
        decode_rgb(saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@settings(max_examples=80, deadline=None)
@given(format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]), seed=st.integers(0, 10_000))
def test_damage_gives_pixels_or_a_reason(format: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(saved(Image.fromarray(scene()), format))
    for _ in range(int(rng.integers(1, 6))):
        data[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
    pixels, reason = None, ""
    try:
        pixels = decode_rgb(bytes(data[: int(rng.integers(1, len(data) + 1))]))
    except ImageError as error:
        reason = error.reason
        assert " at 0x" not in error.detail, "the same damage is to be described in the same words"  # noqa: PT017
    assert (pixels is None) == (reason in {"truncated", "unreadable", "too_large"})
    assert pixels is None or (pixels.dtype == np.uint8 and pixels.ndim == 3)


def test_threads_decode_alike() -> None:
    data = saved(Image.fromarray(scene()), "PNG")
    found: list[bool] = []

    def work() -> None:
        found.extend(np.array_equal(decode_rgb(data), scene()) for _ in range(30))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 120


@pytest.mark.parametrize(("height", "width"), [(24, 32), (32, 24), (33, 57), (16, 16), (5, 90), (100, 16), (17, 16)])
def test_fit_square_is_open_clips_transform(height: int, width: int) -> None:
    from components.openclip import import_open_clip

    import_open_clip()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    transform = Compose([Resize(16, InterpolationMode.BICUBIC), CenterCrop(16)])
    image = scene(height, width)
    assert np.array_equal(fit_square(image, 16), np.asarray(transform(Image.fromarray(image))))


def test_fit_square_of_its_own_size_is_the_picture() -> None:
    image = scene(20, 20)
    assert np.array_equal(fit_square(image, 20), image)
    with pytest.raises(UsageError):
        fit_square(image, 0)


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_encode(format: str) -> None:
    data = encode(scene(), format, 95)
    found = decode(data)
    assert (found.format, found.plain) == (format, True)
    error = np.abs(found.pixels.astype(int) - scene()).mean()
    assert error == 0 if format == "png" else error < 5
    assert encode(scene(), format, 95) == data
    with pytest.raises(UsageError, match="gif"):
        encode(scene(), "gif")


def test_real_photographs(shared_data: Path) -> None:
    for path in sorted((shared_data / "kodak").glob("*.png"))[:2]:
        found = decode(path.read_bytes())
        assert found.plain
        assert sorted(found.pixels.shape) == [3, 512, 768]
        assert fit_square(found.pixels, 224).shape == (224, 224, 3)
