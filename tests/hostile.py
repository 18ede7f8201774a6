"""Files that a web crawl brings: damaged, huge when unpacked, misnamed, or no pictures at all. Made from a seed."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from test_images import saved

OK = ("ok", "")
LARGE, TORN, EMPTY = ("failed", "too_large"), ("failed", "unreadable"), ("failed", "empty")
DAMAGED = {OK, TORN, ("failed", "truncated"), LARGE}
Rng = np.random.Generator


@dataclass(frozen=True)
class Kind:
    """make: a file's bytes; ext: of its name; outcomes: (outcome, reason) that are right for it."""

    make: Callable[[Rng], bytes]
    ext: str
    outcomes: frozenset[tuple[str, str]]


KINDS: dict[str, Kind] = {}


def kind(ext: str, *outcomes: tuple[str, str]) -> Callable[[Callable[[Rng], bytes]], Callable[[Rng], bytes]]:
    def keep(make: Callable[[Rng], bytes]) -> Callable[[Rng], bytes]:
        KINDS[make.__name__] = Kind(make, ext, frozenset(outcomes))
        return make

    return keep


def picture(rng: Rng, mode: str = "RGB") -> Image.Image:
    low = rng.integers(0, 256, (5, 5, 3), np.uint8)
    size = int(rng.integers(40, 80)), int(rng.integers(40, 80))
    return Image.fromarray(low).resize(size, Image.Resampling.BICUBIC).convert(mode)


def some_file(rng: Rng) -> bytes:
    return saved(picture(rng), str(rng.choice(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@lru_cache(maxsize=8)
def zeros(count: int) -> bytes:
    """So many zero bytes, compressed a thousandfold: one megabyte's block, over and over."""
    packer, last = zlib.compressobj(wbits=-15), zlib.compressobj(wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = last.compress(bytes(count % (1 << 20))) + last.flush()
    return b"\x78\x9c" + block * (count >> 20) + rest + struct.pack(">HH", count % 65521, 1)  # the Adler-32 of zeros


def with_chunk(rng: Rng, name: bytes, data: bytes) -> bytes:
    whole = saved(picture(rng), "PNG")
    return whole[:33] + chunk(name, data) + whole[33:]


def tiff(tags: dict[int, int], body: bytes, following: int = 0) -> bytes:
    """A little TIFF of one directory; a tag's value "body" (-1) is where the body lies."""
    place = 8 + 2 + 12 * len(tags) + 4
    rows = [struct.pack("<HHII", tag, 4, 1, place if value == -1 else value) for tag, value in sorted(tags.items())]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(rows) + struct.pack("<I", following) + body


GREY = {256: 64, 257: 64, 258: 8, 262: 1, 277: 1}


@kind("jpg", *DAMAGED, EMPTY)
def truncated(rng: Rng) -> bytes:
    data = some_file(rng)
    return data[: int(rng.integers(1, len(data)))]


@kind("png", *DAMAGED)
def flipped(rng: Rng) -> bytes:
    data = bytearray(some_file(rng))
    for at in rng.integers(0, len(data), int(rng.integers(1, 40))):
        data[at] ^= 1 << int(rng.integers(0, 8))
    return bytes(data)


@kind("png", LARGE)
def png_bomb(rng: Rng) -> bytes:
    side = int(rng.integers(11_500, 13_000))  # under the size that Pillow refuses by itself
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zeros(3 * 13_000**2 // 4)) + chunk(b"IEND", b"")


@kind("jpg", LARGE)
def jpeg_bomb(rng: Rng) -> bytes:
    data = bytearray(saved(picture(rng), "JPEG", progressive=True))
    at = data.index(b"\xff\xc2")
    data[at + 5 : at + 9] = struct.pack(">HH", 11_000, 11_000)
    return bytes(data)


@kind("gif", LARGE)
def gif_canvas(rng: Rng) -> bytes:
    data = bytearray(saved(picture(rng), "GIF"))
    data[6:10] = struct.pack("<HH", 10_000, 9_000)
    return bytes(data)


@kind("webp", LARGE)
def webp_canvas(rng: Rng) -> bytes:
    frames = [picture(rng).resize((40, 40)) for _ in range(2)]
    data = bytearray(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    data[24:30] = (9_000).to_bytes(3, "little") * 2
    return bytes(data)


@kind("bmp", LARGE)
def bmp_bomb(rng: Rng) -> bytes:
    data = bytearray(saved(picture(rng), "BMP"))
    data[18:26] = struct.pack("<ii", 10_000, 10_000)
    return bytes(data)


@kind("ppm", LARGE)
def ppm_bomb(rng: Rng) -> bytes:
    return b"P6 12000 12000 255\n" + bytes(1000)


@kind("tif", LARGE)
def tiff_tile_bomb(rng: Rng) -> bytes:
    body = zeros(20_000**2)  # one tile of 400 MB, of which the picture shows 64 x 64
    return tiff({**GREY, 259: 8, 322: 20_000, 323: 20_000, 324: -1, 325: len(body)}, body)


@kind("tif", *DAMAGED)
def tiff_strip_bomb(rng: Rng) -> bytes:
    body = zeros(400_000_000)
    return tiff({**GREY, 259: 8, 273: -1, 278: int(rng.choice([64, 1 << 30])), 279: len(body)}, body)


@kind("tif", OK, TORN)
def tiff_that_bites_its_tail(rng: Rng) -> bytes:
    return tiff({**GREY, 259: 1, 273: -1, 278: 64, 279: 64 * 64, 330: 8, 34665: 8}, bytes(64 * 64), following=8)


@kind("png", OK, TORN)
def ztxt_of_a_gigabyte(rng: Rng) -> bytes:
    return with_chunk(rng, b"zTXt", b"Comment\0\0" + zeros(1 << 30))


@kind("png", OK, TORN)
def itxt_of_a_gigabyte(rng: Rng) -> bytes:
    return with_chunk(rng, b"iTXt", b"Comment\0\1\0\0\0" + zeros(1 << 30))


@kind("png", OK, TORN)
def profile_of_a_gigabyte(rng: Rng) -> bytes:
    return with_chunk(rng, b"iCCP", b"sRGB\0\0" + zeros(1 << 30))


@kind("png", OK)
def profile_of_noise(rng: Rng) -> bytes:
    return saved(picture(rng), "PNG", icc_profile=rng.bytes(3000))


@kind("jpg", OK)
def huge_exif(rng: Rng) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    return saved(picture(rng), "JPEG", exif=exif)


@kind("jpg", OK)
def broken_exif(rng: Rng) -> bytes:
    return saved(picture(rng), "JPEG", exif=b"Exif\0\0II*\0" + rng.bytes(400))


@kind("svg.png", TORN)
def svg(rng: Rng) -> bytes:
    return b"<svg xmlns='http://www.w3.org/2000/svg' width='9999999' height='9999999'/>"


@kind("jpg", TORN)
def html(rng: Rng) -> bytes:
    return b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


@kind("jpg", TORN)
def postscript(rng: Rng) -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%touch /tmp/x) (w) file\n"


@kind("jpg", EMPTY)
def zero_bytes(rng: Rng) -> bytes:
    return b""


@kind("png", TORN)
def noise(rng: Rng) -> bytes:
    return rng.bytes(5000)


@kind("jpg", LARGE)
def more_bytes_than_allowed(rng: Rng) -> bytes:
    return saved(picture(rng), "JPEG") + bytes(MAX_BYTES)


@kind("png", LARGE)
def long_text(rng: Rng) -> bytes:
    return with_chunk(rng, b"tEXt", b"Comment\0" + b"x" * MAX_BYTES)


@kind("gif", OK)
def animated(rng: Rng) -> bytes:
    frames = [picture(rng).resize((50, 60)) for _ in range(20)]
    return saved(frames[0], str(rng.choice(["GIF", "PNG", "WEBP"])), save_all=True, append_images=frames[1:])


@kind("png", OK)
def sixteen_bit(rng: Rng) -> bytes:
    return saved(Image.fromarray(rng.integers(0, 65536, (40, 50)).astype(np.uint16)), "PNG")


@kind("jpg", OK)
def cmyk(rng: Rng) -> bytes:
    return saved(picture(rng, "CMYK"), "JPEG")


@kind("png", OK)
def jpeg_called_png(rng: Rng) -> bytes:
    return saved(picture(rng), "JPEG")


@kind("jpg", OK)
def page_behind_the_picture(rng: Rng) -> bytes:
    return saved(picture(rng), "JPEG") + b"<html><script>alert(1)</script></html>PK\3\4" + rng.bytes(200)


@kind("gif", TORN, OK, LARGE, ("failed", "truncated"))
def script_that_is_a_gif(rng: Rng) -> bytes:
    return b"GIF89a/*" + saved(picture(rng), "GIF")[8:] + b"*/=1;alert(1)"


@kind("avif", *DAMAGED)
def torn_avif(rng: Rng) -> bytes:
    data = bytearray(saved(picture(rng), "AVIF"))
    data[int(rng.integers(40, len(data)))] ^= 255
    return bytes(data)


@kind("png", OK)
def one_pixel(rng: Rng) -> bytes:
    return saved(Image.new("RGB", (1, 1)), "PNG")


@kind("png", OK)
def thread(rng: Rng) -> bytes:
    return saved(Image.new("RGB", (1, 30_000)), "PNG")


UNCAPTIONED = ""
MAX_BYTES, MAX_PIXELS = 4 << 20, 4_000_000
# Stems of names, one for each file in turn: most are plain, some are not even UTF-8.
STEMS = ["{}", "{}", "{}", "{} with  spaces", "{}\n", "{}.tar.gz", "\udcff{}", "-{}", "ünï {}"]
STEMS.append("{}" + "x" * 200)
CAPTIONS = ["a picture", "nul \0 inside", "half a pair \ud800", "x" * 100_000, "𝒜 𝓅𝒾𝒸", "=cmd|' /C calc'!A0"]
GONE = ["../../etc/passwd", "nul\0.png", "/dev/zero", "half\ud800.png", "gone.png"]


def make(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Write `count` files and captions.jsonl, which names GONE as well; returns name -> kind, or UNCAPTIONED."""
    folder.mkdir(parents=True)
    rng, made, rows = np.random.default_rng(seed), {}, []
    names = list(KINDS)
    for i in range(count):
        what = names[i % len(names)]
        stem = STEMS[int(rng.integers(len(STEMS)))] if i % 20 else "{}\\..\\up"
        name = stem.format(f"{i:04d}") + f".{KINDS[what].ext}"
        (folder / name).write_bytes(KINDS[what].make(rng))
        made[name] = what
        if "\\" in name:  # in a caption file it would stand for a folder
            made[name] = UNCAPTIONED
            continue
        rows.append({"image": name, "caption": CAPTIONS[int(rng.integers(len(CAPTIONS)))]})
    rows += [{"image": name, "caption": "x"} for name in GONE]
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="ascii")
    return made
