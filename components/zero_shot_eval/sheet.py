"""The contact sheet: photographs beside what their .gs2d files hold, as one PNG to be looked at.

Each card shows the photograph, the render of its file on the same pixel grid, and the Gaussians themselves
(1-sigma ellipses), with PSNR, bytes and what the splat reader took the picture for.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]

PANEL = 208  # aimed at; small pictures are enlarged by a whole number
LARGEST_PANEL = 256  # larger pictures are reduced to PANEL
MARGIN, GUTTER, GAP = 40, 36, 6  # page edge, between cards, between panels
HEADER, HEADINGS, CAPTION, FOOTER = 96, 26, 70, 46
COLUMNS = 2
SUPERSAMPLE = 3  # of the ellipses: PIL's lines are not smooth
ELLIPSE_POINTS = 40
PAPER: Color = (250, 250, 248)
INK: Color = (28, 30, 34)
SOFT: Color = (112, 116, 122)
RULE: Color = (222, 222, 218)
NIGHT: Color = (18, 20, 24)
GOOD: Color = (22, 122, 72)
BAD: Color = (186, 52, 44)
PANEL_NAMES = ("picture", "render of the .gs2d file", "its Gaussians (1 sigma)")


@dataclass(frozen=True)
class SheetPicture:
    """One card.

    photo, render: uint8 [H, W, 3]; means [n, 2], cholesky [n, 3], colors [n, 3] as decoded from the file;
    num_bytes: of the .gs2d file; photo_bytes, photo_format: of the stored photograph; truth: class name or caption;
    guess: what the splat reader answered, empty where there are no classes; right: whether that is a hit.
    """

    photo: Pixels
    render: Pixels
    means: NDArray[np.floating]
    cholesky: NDArray[np.floating]
    colors: NDArray[np.floating]
    psnr_db: float
    num_bytes: int
    photo_bytes: int
    photo_format: str
    truth: str
    guess: str = ""
    right: bool | None = None


def choose(psnr_db: ArrayLike, count: int) -> list[int]:
    """Pictures spread evenly over the order by PSNR, worst first, the worst and the best among them.

    psnr_db: [n]. Returns min(count, n) distinct positions; one picture: the median.
    """
    values = np.asarray(psnr_db, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    if count == 1 and len(order):
        return [int(order[len(order) // 2])]
    picks = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(i) for i in order[picks]]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _fit_text(draw: ImageDraw.ImageDraw, text: str, size: int, width: float) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if draw.textlength(text, _font(size)) <= width:
        return text
    while text and draw.textlength(text.rstrip() + "...", _font(size)) > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _bytes(count: int) -> str:
    return f"{count:,} bytes" if count < 10_000 else f"{count / 1024:.1f} KiB"


def panel_size(height: int, width: int) -> tuple[int, int]:
    """Width and height of a panel for pictures of this size: a whole multiple, or reduced where they are large."""
    longest = max(height, width)
    scale: float = max(1, round(PANEL / longest)) if longest <= LARGEST_PANEL else PANEL / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def _panel(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    enlarge = size[0] >= image.width
    return image.resize(size, Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)


def line_colors(colors: NDArray[np.floating]) -> list[Color]:
    """The Gaussians' own colours [n, 3], scaled together so that they show on the dark ground (negative parts: 0)."""
    shown = np.clip(colors.astype(np.float64), 0.0, None)
    brightest = float(np.quantile(shown.max(axis=1), 0.9)) if len(shown) else 0.0
    shown = 0.2 + 0.8 * np.clip(shown / max(brightest, 0.05), 0.0, 1.0)
    return [(int(red), int(green), int(blue)) for red, green, blue in np.rint(255 * shown)]


def outlines(picture: SheetPicture, size: tuple[int, int]) -> Image.Image:
    """The Gaussians' 1-sigma ellipses on a dark ground, width x height = size. Large ones are drawn first."""
    big = (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE)
    canvas = Image.new("RGB", big, NIGHT)
    draw = ImageDraw.Draw(canvas)
    scale = np.array([big[0] / picture.photo.shape[1], big[1] / picture.photo.shape[0]])
    angle = np.linspace(0.0, 2.0 * np.pi, ELLIPSE_POINTS + 1)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    factor = picture.cholesky.astype(np.float64)
    inks = line_colors(picture.colors)
    for i in np.argsort(-np.abs(factor[:, 0] * factor[:, 2]), kind="stable"):
        l00, l10, l11 = factor[i]
        offset = np.stack([l00 * circle[0], l10 * circle[0] + l11 * circle[1]], axis=1)
        points = (picture.means[i].astype(np.float64) + offset + 0.5) * scale  # pixel centres are at integers
        draw.line([(float(x), float(y)) for x, y in points], fill=inks[i], width=SUPERSAMPLE)
    return canvas.resize(size, Image.Resampling.LANCZOS)


def _verdict(picture: SheetPicture) -> tuple[str, str, Color]:
    """First and second part of the caption's second line, and the colour of the second."""
    if picture.right is None or not picture.guess:
        return picture.truth, "", SOFT
    return picture.truth, f"read from splats: {picture.guess}", GOOD if picture.right else BAD


def _draw_card(page: Image.Image, picture: SheetPicture, left: int, top: int, panel: tuple[int, int]) -> None:
    draw = ImageDraw.Draw(page)
    width, height = panel
    panels = (_panel(picture.photo, panel), _panel(picture.render, panel), outlines(picture, panel))
    for column, image in enumerate(panels):
        page.paste(image, (left + column * (width + GAP), top))
    right = left + 3 * width + 2 * GAP
    below = top + height + 8
    stored = f"{picture.photo_format.upper()} {_bytes(picture.photo_bytes)}"
    draw.text((left, below), f"{picture.psnr_db:.1f} dB", INK, _font(16))
    count = len(picture.means)
    details = f"{count:,} Gaussian{'s' if count != 1 else ''} in {_bytes(picture.num_bytes)}, {stored}"
    draw.text((right, below + 1), details, SOFT, _font(14), anchor="ra")
    truth, verdict, color = _verdict(picture)
    room = right - left
    verdict = _fit_text(draw, verdict, 15, 0.62 * room)
    used = draw.textlength(verdict, _font(15)) + 16 if verdict else 0
    draw.text((left, below + 23), _fit_text(draw, truth, 15, room - used), INK, _font(15))
    draw.text((right, below + 23), verdict, color, _font(15), anchor="ra")


def draw_sheet(pictures: Sequence[SheetPicture], *, title: str, subtitle: str, footer: str = "") -> Image.Image:
    """Lay the cards out in two columns under a heading. Raises ValueError without pictures."""
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    panel = panel_size(*pictures[0].photo.shape[:2])
    card = 3 * panel[0] + 2 * GAP
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    pitch = panel[1] + CAPTION
    width = 2 * MARGIN + columns * card + (columns - 1) * GUTTER
    height = HEADER + HEADINGS + rows * pitch + (FOOTER if footer else MARGIN // 2)
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    room = width - 2 * MARGIN
    draw.text((MARGIN, 24), _fit_text(draw, title, 28, room), INK, _font(28))
    draw.text((MARGIN, 62), _fit_text(draw, subtitle, 16, room), SOFT, _font(16))
    for column in range(columns):
        left = MARGIN + column * (card + GUTTER)
        draw.line([(left, HEADER), (left + card - 1, HEADER)], fill=RULE, width=1)
        for index, name in enumerate(PANEL_NAMES):
            text = _fit_text(draw, name, 13, panel[0])
            draw.text((left + index * (panel[0] + GAP), HEADER + 6), text, SOFT, _font(13))
    for index, picture in enumerate(pictures):
        left = MARGIN + (index % columns) * (card + GUTTER)
        _draw_card(page, picture, left, HEADER + HEADINGS + (index // columns) * pitch, panel)
    if footer:
        draw.text((MARGIN, height - FOOTER + 8), _fit_text(draw, footer, 13, room), SOFT, _font(13))
    return page


def to_png(image: Image.Image) -> bytes:
    """PNG bytes; the same picture gives the same bytes (no time stamp, no metadata)."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()
