"""Pictures for benchmarks: real ones from folders and webdataset tars, or procedural ones that resemble photographs."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from components.images import decode_rgb, fit_square

Pixels = npt.NDArray[np.uint8]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Pictures:
    """What is fitted, and what a result says about it."""

    images: list[Pixels]
    """uint8 [H, W, 3] each; sizes may differ."""
    origin: str
    """For people: where they come from."""

    @property
    def digest(self) -> str:
        """Decides whether two results are of the same pictures."""
        total = hashlib.sha256()
        for image in self.images:
            total.update(repr(image.shape).encode() + image.tobytes())
        return total.hexdigest()[:12]

    def batch(self) -> Pixels:
        """All of them, [B, H, W, 3]; ValueError where sizes differ."""
        return np.stack(self.images)

    def by_shape(self) -> list[list[int]]:
        """Indices of pictures of one size each."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(self.images):
            groups.setdefault(image.shape, []).append(index)
        return list(groups.values())


def _files(source: Path) -> Iterator[bytes]:
    if source.is_dir():
        for path in sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES):
            yield path.read_bytes()
        return
    with tarfile.open(source) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.name.lower().endswith(SUFFIXES) else None
            if stream is not None:
                yield stream.read()


def load(sources: Sequence[Path], *, size: int | None, limit: int = 0, every: int = 1) -> Pictures:
    """Every `every`-th picture of folders and tars, at most `limit` (0: all).

    size: shortest side scaled to it and cropped to a square; None: as they are. SystemExit where there is none.
    """
    for source in sources:
        if not source.exists():
            raise SystemExit(f"{source}: no such folder or tar")
    data = islice((one for source in sources for one in _files(source)), 0, None, every)
    images = [decode_rgb(one) for one in islice(data, limit or None)]
    if not images:
        raise SystemExit(f"{', '.join(map(str, sources))}: no .png, .jpg or .webp files")
    if size is not None:
        images = [fit_square(image, size) for image in images]
    names = ", ".join(source.name for source in sources)
    return Pictures(images, f"{len(images)} of {names}" + (f", every {every}th" if every > 1 else ""))


def mosaic(images: Sequence[Pixels], side: int) -> Pixels:
    """A [side, side, 3] picture of real ones laid out in rows at their own scale.

    Repeats are mirrored, alternately left-right and top-down. Pixels keep their statistics, which enlarged pictures
    would not.
    """
    out = np.zeros((side, side, 3), np.uint8)
    used, top = 0, 0
    while top < side:
        left, bottom = 0, side
        while left < side:
            image, turn = images[used % len(images)], used // len(images)
            image = image[:, ::-1] if turn % 2 else image
            image = image[::-1] if turn // 2 % 2 else image
            height, width = min(image.shape[0], side - top), min(image.shape[1], side - left)
            out[top : top + height, left : left + width] = image[:height, :width]
            left, bottom, used = left + width, min(bottom, top + height), used + 1
        top = bottom
    return out


def procedural(count: int, size: int, seed: int = 0) -> Pictures:
    """Pictures [size, size, 3] with the statistics of photographs, for machines without any.

    Discs of random size (density falling with the cube of the radius) cover each other, which gives edges at all
    scales; each has a shade and a texture of its own, the textures with a spectrum of 1 / frequency.
    """
    images = []
    for index in range(count):
        random = np.random.default_rng([seed, index])
        textures = [_texture(random, size) for _ in range(4)]
        picture = random.uniform(0.2, 0.8, 3) + 0.15 * textures[0][..., None]
        y, x = np.mgrid[:size, :size]
        radii = 0.012 * size / np.sqrt(1.0 - random.uniform(0.0, 0.9985, 250))
        for radius in radii:
            cx, cy = random.uniform(-0.1, 1.1, 2) * size
            inside = (x - cx) ** 2 + (y - cy) ** 2 < radius * radius
            texture = textures[random.integers(4)][inside]
            shade = random.uniform(0.05, 0.95) + random.normal(0.0, 0.08, 3)
            picture[inside] = shade + random.choice([0.0, 0.04, 0.12]) * texture[:, None]
        grey = Image.fromarray((picture.clip(0.0, 1.0) * 255.0).astype(np.uint8))
        images.append(np.asarray(grey.reduce(2).resize((size, size), Image.Resampling.BICUBIC), np.uint8))
    return Pictures(images, f"{count} procedural pictures (discs that cover each other, 1/f textures)")


def _texture(random: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    spectrum = random.normal(size=frequency.shape) + 1j * random.normal(size=frequency.shape)
    values = np.fft.irfft2(spectrum / frequency, s=(size, size))
    return np.asarray(values / values.std())


def cycled(pictures: Pictures, count: int) -> Pixels:
    """[count, H, W, 3]: the pictures over and over, repeats mirrored and shifted so that none is the same twice."""
    out = np.empty((count, *pictures.images[0].shape), np.uint8)
    for index in range(count):
        turn, image = index // len(pictures.images), pictures.images[index % len(pictures.images)]
        image = image[:, ::-1] if turn % 2 else image
        out[index] = np.roll(image, 7 * (turn // 2), axis=(0, 1))
    return out
