"""Colour profiles and depths: what comes out is sRGB, and what was sRGB already is left alone."""

from __future__ import annotations

import icc
import numpy as np
import pytest
from PIL import Image, ImageCms
from test_images import png, saved, scene

from components.color import _profile
from components.images import decode, decode_rgb

P3 = icc.rgb_profile(icc.WIDE)
OWN = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SRGB = [pytest.param(icc.rgb_profile(icc.SRGB), id="by hand"), pytest.param(OWN, id="Little CMS's own")]


def soft(height: int = 24, width: int = 32) -> np.ndarray:
    """Colours whose sRGB lies inside, so that nothing is clipped."""
    return (60 + scene(height, width) // 2).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_a_wide_profile_is_converted_and_not_passed_on(format: str) -> None:
    found = decode(saved(Image.fromarray(soft()), format, icc_profile=P3))
    expected = icc.to_srgb(decode_rgb(saved(Image.fromarray(soft()), format)), icc.WIDE)
    assert np.abs(found.pixels - expected).max() <= 1
    assert np.abs(found.pixels.astype(int) - soft()).max() > 8, "the profile must show"
    assert not found.plain


@pytest.mark.parametrize("profile", SRGB)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_srgb_costs_nothing_and_is_passed_on(profile: bytes, format: str) -> None:
    given, bare = (saved(Image.fromarray(scene()), format, **more) for more in ({"icc_profile": profile}, {}))
    found = decode(given)
    assert found.plain
    assert np.array_equal(found.pixels, decode(bare).pixels)
    assert (_profile(profile, "RGB").transform, _profile(profile, "RGB").srgb) == (None, True)


def test_a_name_makes_no_srgb() -> None:
    named = P3.replace(b"test\0", b"sRGB\0")
    assert not decode(saved(Image.fromarray(soft()), "PNG", icc_profile=named)).plain


@pytest.mark.parametrize(
    "profile",
    [b"not a profile", P3[:200], OWN[:-200], icc.grey_profile(1.0), icc.cmyk_profile(), P3 + bytes(5 << 20)],
    ids=["text", "cut", "cut at the end", "of greys", "of inks", "6 MB"],
)
def test_a_profile_that_cannot_be_used_is_ignored(profile: bytes) -> None:
    found = decode(saved(Image.fromarray(scene()), "JPEG", quality=95, icc_profile=profile))
    assert np.array_equal(found.pixels, decode_rgb(saved(Image.fromarray(scene()), "JPEG", quality=95)))


def test_a_broken_profile_is_not_passed_on() -> None:
    """Another reader might make something of it."""
    assert not decode(saved(Image.fromarray(scene()), "PNG", icc_profile=b"not a profile")).plain


def test_greys_with_a_profile() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    light = (values / 255.0) ** 2.2
    expected = np.rint(255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055))
    assert np.abs(expected - values).max() > 4, "the profile must show"
    profile = icc.grey_profile(2.2)
    deep = values.astype(np.uint16) * 257
    both = np.dstack([values, np.full_like(values, 255)])
    for image in (Image.fromarray(values), Image.fromarray(deep), Image.fromarray(both)):
        pixels = decode_rgb(saved(image, "PNG", icc_profile=profile))
        assert np.abs(pixels - expected[..., None]).max() <= 2, image.mode
    assert np.array_equal(decode_rgb(saved(Image.fromarray(values), "PNG"))[..., 0], values)


def test_alpha_and_palette_are_converted_before_they_are_laid_over_white() -> None:
    rgba = np.dstack([soft(), np.full((24, 32), 51, np.uint8)])
    rgba[:, :16, 3] = 255
    converted = icc.to_srgb(soft(), icc.WIDE)
    expected = np.rint((converted * rgba[..., 3:] + 255.0 * (255 - rgba[..., 3:])) / 255)
    pixels = decode_rgb(saved(Image.fromarray(rgba), "PNG", icc_profile=P3))
    assert np.abs(pixels - expected).max() <= 1
    palette = Image.fromarray(soft()).quantize(32)
    colors = icc.to_srgb(np.asarray(palette.convert("RGB")), icc.WIDE)
    assert np.abs(decode_rgb(saved(palette, "PNG", icc_profile=P3)) - colors).max() <= 1
    clear = decode_rgb(saved(palette, "PNG", icc_profile=P3, transparency=int(palette.getpixel((0, 0)))))
    assert clear[0, 0].tolist() == [255, 255, 255]
    assert np.abs(clear[-1, -1] - colors[-1, -1]).max() <= 1


@pytest.mark.parametrize("format", ["TIFF", "JPEG"])
def test_inks_go_through_their_profile(format: str) -> None:
    image = Image.new("CMYK", (16, 8), (255, 0, 0, 0))
    image.paste((0, 0, 0, 0), (8, 0, 16, 8))
    plain, seen = (decode_rgb(saved(image, format, **more)) for more in ({}, {"icc_profile": icc.cmyk_profile()}))
    assert plain[4, 2, 2] > 200, "cyan without a profile"
    red, green, blue = (int(value) for value in seen[4, 2])
    assert green > 120
    assert max(red, blue) < 60, "this press prints green"
    assert seen[4, 12].min() > 245


@pytest.mark.parametrize("color", [2, 6])
@pytest.mark.parametrize("size", [(7, 5), (3, 40)])
def test_sixteen_bit_colours_are_rounded(color: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.color._BAND", 30)  # several bands in so small a picture
    channels = 3 if color == 2 else 4
    values = np.random.default_rng(0).integers(0, 65536, (*size, channels)).astype(">u2")
    values[0, 0, 0] = 128  # rounds up; its upper byte is 0
    values[..., 3:] = 65535
    data = png(size[1], size[0], 16, color, b"".join(b"\0" + row.tobytes() for row in values))
    expected = np.rint(values[..., :3] / 257.0).astype(np.uint8)
    assert np.array_equal(decode_rgb(data), expected)
    assert (expected != values[..., :3] >> 8).mean() > 0.15, "truncated they would differ"


def test_pictures_taken_in_bands_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = np.dstack([soft(), np.arange(24 * 32, dtype=np.uint16).reshape(24, 32).astype(np.uint8)])
    deep = Image.fromarray(rgba[..., 3].astype(np.uint16) * 200)
    files = [saved(image, "PNG") for image in (Image.fromarray(soft()), Image.fromarray(rgba), deep)]
    files.append(saved(Image.fromarray(soft()).quantize(8), "PNG", transparency=3))
    whole = [decode_rgb(data) for data in files]
    monkeypatch.setattr("components.color._BAND", 32 * 5)
    assert all(np.array_equal(decode_rgb(data), pixels) for data, pixels in zip(files, whole, strict=True))
