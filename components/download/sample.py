"""Source `sample`: pictures drawn here, with captions and classes; no network, the same on every call.

One object (its shape is the class) on a patterned ground, with a shadow, a few soft blobs that mean nothing, and noise.
Shapes are signed distances, so that edges are smooth without drawing at a higher resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.config import DownloadParams
from components.download.shapes import SHAPES
from components.download.sources import SPLITS, Raw, Ref, Source
from components.images import Pixels

Plane = NDArray[np.float32]

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.16, 0.14),
    "orange": (0.95, 0.53, 0.10),
    "yellow": (0.96, 0.85, 0.20),
    "green": (0.18, 0.62, 0.25),
    "blue": (0.16, 0.34, 0.82),
    "purple": (0.52, 0.22, 0.70),
    "pink": (0.96, 0.56, 0.74),
    "brown": (0.48, 0.30, 0.16),
    "white": (0.94, 0.94, 0.92),
    "grey": (0.52, 0.54, 0.56),
    "black": (0.10, 0.10, 0.12),
    "teal": (0.10, 0.58, 0.60),
}
GROUNDS = ("plain", "striped", "checkered", "dotted", "wavy", "cloudy")
FILLS = ("plain", "shaded", "striped", "dotted", "checkered")
TEMPLATES = (
    "a photo of a {c}.",
    "a picture of a {c}.",
    "a drawing of a {c}.",
    "a small {c}.",
    "a large {c}.",
    "a {c} on a patterned background.",
)
_SIZES = ((0.25, 0.31, "small"), (0.31, 0.38, ""), (0.38, 0.45, "large"))  # radius as a share of the side


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn: names and numbers."""

    shape: str
    size_name: str
    color: str
    fill: str
    ground_color: str
    ground: str
    draws: NDArray[np.float64]  # uniform numbers for all the rest

    @property
    def captions(self) -> tuple[str, ...]:
        """The full caption, then shorter ways to say it."""
        size = f"{self.size_name} " if self.size_name else ""
        article = "an" if not size and self.color[0] in "aeiou" else "a"
        ground_article = "an" if self.ground_color[0] in "aeiou" else "a"
        subject = f"{article} {size}{self.color} {self.shape}"
        ground = "" if self.ground == "plain" else f" {self.ground}"
        fill = f" {self.fill}" if self.fill not in {"plain", "shaded"} else ""
        return (
            f"{subject} on {ground_article} {self.ground_color}{ground} background",
            f"a picture of a {self.color}{fill} {self.shape}".replace("a orange", "an orange"),
            f"a {self.shape} on {ground_article} {self.ground_color} background".replace("a arrow", "an arrow"),
        )


def _pick(items: tuple[str, ...], draw: float) -> str:
    return items[min(int(draw * len(items)), len(items) - 1)]


def scene(shape: int, seed: int, split: int, index: int) -> Scene:
    """What picture `index` of a split shows. Only uniform draws are used: their sequence is fixed for good."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, split, index])))
    draws = rng.random(96)
    names = tuple(COLORS)
    # every shape leans to one colour and one fill, a hint such as photographs give, never a proof
    color = names[shape] if draws[6] < 0.5 else _pick(names, draws[0])
    ground_color = _pick(tuple(name for name in names if _apart(name, color)), draws[1])
    size = _SIZES[min(int(draws[2] * 3), 2)]
    fill = FILLS[shape % len(FILLS)] if draws[3] < 0.5 else _pick(FILLS, draws[4])
    return Scene(tuple(SHAPES)[shape], size[2], color, fill, ground_color, _pick(GROUNDS, draws[5]), draws)


def _apart(first: str, second: str) -> bool:
    """Colours far enough apart for the object to be seen on the ground."""
    a, b = COLORS[first], COLORS[second]
    return abs(a[0] - b[0]) + abs(a[1] - b[1]) + abs(a[2] - b[2]) > 0.55


def _pattern(kind: str, u: Plane, v: Plane, period: float) -> Plane:
    """A pattern in [-1, 1] over the plane, edges about as soft as the pixels are wide."""
    wave = np.float32(2 * np.pi / period)
    value: Plane = np.zeros_like(u)
    if kind == "striped":
        value = 3 * np.sin(u * wave)
    elif kind == "checkered":
        value = 4 * np.sin(u * wave / 2) * np.sin(v * wave / 2)
    elif kind == "dotted":
        value = 5 * (np.sin(u * wave) * np.sin(v * wave) - np.float32(0.45))
    elif kind == "wavy":
        value = np.float32(2.5) * np.sin(v * wave + np.float32(1.6) * np.sin(u * wave * np.float32(0.6)))
    elif kind == "cloudy":
        u, v = u * wave * np.float32(0.4), v * wave * np.float32(0.4)
        value = np.sin(u + np.sin(v)) + np.float32(0.6) * np.sin(2 * v + 2 * np.sin(u))
    return np.clip(value, -1, 1)


def draw(what: Scene, size: int, noise: NDArray[np.float32]) -> Pixels:
    """Draw a scene: uint8 [size, size, 3]. noise: [size, size, 1 or 3], its standard deviation is 1."""
    d = what.draws
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) - np.float32(0.5)  # [-.5, .5]
    x, y = axis[None, :], axis[:, None]

    def turned(angle: float, cx: float, cy: float) -> tuple[Plane, Plane]:
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        px, py = x - np.float32(cx), y - np.float32(cy)
        return cos * px + sin * py, cos * py - sin * px

    def tint(name: str, at: int) -> NDArray[np.float32]:
        return np.clip(np.array(COLORS[name]) + (d[at : at + 3] - 0.5) * 0.16, 0.02, 0.98).astype(np.float32)

    ground = tint(what.ground_color, 10)
    u, v = turned(np.pi * d[13], d[14], d[15])
    strength = np.float32(0.05 + 0.10 * d[16])
    slope = np.float32(0.25 * (d[17] - 0.2)) * turned(2 * np.pi * d[18], 0, 0)[0]
    shade = strength * _pattern(what.ground, u, v, 0.13 + 0.16 * d[19]) + slope
    image = ground * (1 + shade[..., None])

    for i in range(int(d[20] * 4)):  # soft blobs, of any colour
        at = 30 + 8 * i
        bx, by = turned(np.pi * d[at], 0.9 * d[at + 1] - 0.45, 0.9 * d[at + 2] - 0.45)
        rx, ry = 0.03 + 0.04 * d[at + 3], 0.03 + 0.04 * d[at + 4]
        weight = np.float32(0.75) * np.exp(-((bx / np.float32(rx)) ** 2) - (by / np.float32(ry)) ** 2)
        image += weight[..., None] * (d[at + 5 : at + 8].astype(np.float32) - image)

    low, high, _ = _SIZES[min(int(d[2] * 3), 2)]
    radius = low + (high - low) * d[21]
    reach = min(max(0.47 - 0.9 * radius, 0.0), 0.1)
    cx, cy = (2 * d[22] - 1) * reach, (2 * d[23] - 1) * reach
    angle = (2 * d[24] - 1) * 0.4
    distance = SHAPES[what.shape]
    soft = np.float32(size * radius)  # of object units a pixel: the width of an edge

    def inside(shift: float, blur: float) -> tuple[Plane, Plane, Plane]:
        a, b = turned(angle, cx + shift, cy + shift)
        a, b = a / np.float32(radius), b / np.float32(radius)
        return np.clip(0.5 - distance(a, b) * soft / np.float32(blur), 0, 1), a, b

    shadow, _, _ = inside(0.03, 4.0)
    image *= 1 - np.float32(0.35) * shadow[..., None]
    mask, a, b = inside(0.0, 1.0)
    body = tint(what.color, 25)
    if what.fill == "shaded":
        light = 0.28 * (-a - b) / np.float32(1.4)
    else:
        light = np.float32(0.2) * _pattern(what.fill, a, b, 0.55 + 0.2 * d[28]) - np.float32(0.1) * b
    # a light object is shaded by darkening, a dark one by lightening
    textured = np.where(light[..., None] > 0, body + light[..., None] * (1 - body), body * (1 + 1.6 * light[..., None]))
    image += mask[..., None] * (textured - image)
    image += noise * np.float32(0.006 + 0.014 * d[29])
    pixels: Pixels = (np.clip(image, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)
    return pixels


class SampleSource(Source):
    """The scene generator as a source: train, val and test come from seeds of their own."""

    def __init__(self, params: DownloadParams) -> None:
        self._seed, self._size = params.seed, params.image_size
        self._numbers = {"train": params.num_train, "val": params.num_val, "test": params.num_test}
        self.class_names = tuple(SHAPES)
        self.templates = TEMPLATES

    def _list(self) -> list[Ref]:
        return [
            Ref(f"{split}-{index:06d}", split, SPLITS.index(split), index)
            for split in SPLITS
            for index in range(self._numbers[split])
        ]

    def load(self, ref: Ref) -> Raw:
        """See Source."""
        label = ref.position % len(self.class_names)
        what = scene(label, self._seed, ref.group, ref.position)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, ref.group, ref.position, 1])))
        noise = (rng.random((self._size, self._size, 3), dtype=np.float32) - np.float32(0.5)) * np.float32(12**0.5)
        return Raw(draw(what, self._size, noise), what.captions, label, "drawn")
