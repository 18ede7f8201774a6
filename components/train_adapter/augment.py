"""Draws of the augmentation: the same ones for a picture's splats, its pixels and what the teacher says of it.

A draw is decided by seed, epoch and key alone, whatever else is in the batch. Gaussians are dropped from the splats
only: the picture, which is what is to be said of them, stays whole.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.augment import (
    WORD,
    color_matrices,
    recolored,
    thinned_splats,
    windowed_images,
    windowed_splats,
    windows,
)
from components.tokens import mirrored

if TYPE_CHECKING:
    from components.config import TrainAdapterParams
    from components.loader import SplatBatch

ASPECT = 4 / 3  # of a window's sides at most, either way
NUM_DRAWS = 8  # numbers of 64 bits that a picture has in an epoch: what one digest holds


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is drawn; nothing by default. Each field is the parameter of train_adapter with its name; flips: augment."""

    flips: bool = False
    crop_min: float = 1.0
    rotate_degrees: float = 0.0
    color_jitter: float = 0.0
    drop_gaussians: float = 0.0

    @classmethod
    def of(cls, params: TrainAdapterParams) -> Augmentation:
        """What a section of parameters asks for."""
        named = {field.name: getattr(params, field.name) for field in fields(cls) if field.name != "flips"}
        return cls(flips=params.augment, **named)

    @property
    def moves(self) -> bool:
        """Whether pictures are seen through windows."""
        return self.crop_min < 1 or self.rotate_degrees > 0

    @property
    def keeps_pictures(self) -> bool:
        """Whether a picture is at most mirrored, so that what the teacher says of it can be kept."""
        return not self.moves and self.color_jitter == 0


@dataclass(frozen=True)
class Draws:
    """What happens to each picture of a batch. flip [B] bool; the others are None where nothing of that kind happens.

    theta [B, 2, 3]: windows, in the mirrored picture; colors [B, 3, 3]: matrices; share [B] of the Gaussians that go,
    salts [B] int64 that decide which.
    """

    flip: Tensor
    theta: Tensor | None = None
    colors: Tensor | None = None
    share: Tensor | None = None
    salts: Tensor | None = None

    def to(self, device: torch.device | str) -> Draws:
        """The same draws on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    @classmethod
    def none(cls, count: int) -> Draws:
        """Nothing happens to `count` pictures."""
        return cls(torch.zeros(count, dtype=torch.bool))


def coins(keys: list[str], *, seed: int, epoch: int) -> Tensor:
    """[B] bool: whether each picture is mirrored in this epoch; by seed, epoch and key alone, whatever the batch."""
    digests = (hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=1).digest() for key in keys)
    return torch.tensor([digest[0] & 1 == 1 for digest in digests])


def _numbers(keys: list[str], *, seed: int, epoch: int) -> Tensor:
    """[B, NUM_DRAWS] int64 of 53 random bits each; others than those of `coins`."""
    size = 8 * NUM_DRAWS
    digests = [
        hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=size, person=b"augment").digest() for key in keys
    ]
    words = [int.from_bytes(digest[at : at + 8], "little") >> 11 for digest in digests for at in range(0, size, 8)]
    return torch.tensor(words, dtype=torch.int64).reshape(len(keys), NUM_DRAWS)


def draw(keys: list[str], augmentation: Augmentation, *, seed: int, epoch: int) -> Draws:
    """What happens to the pictures named `keys` in an epoch.

    A window's area is uniform in crop_min .. 1 (before a turn makes it smaller), the logarithm of its aspect in what
    ASPECT and the area leave, its place in the room there is; angles, factors of brightness and saturation around 1 and
    the share of Gaussians that go are uniform.
    """
    made = Draws.none(len(keys))
    if augmentation.flips:
        made = replace(made, flip=coins(keys, seed=seed, epoch=epoch))
    if augmentation.keeps_pictures and augmentation.drop_gaussians == 0:
        return made
    numbers = _numbers(keys, seed=seed, epoch=epoch)
    shares = numbers.double() / (1 << 53)
    area, aspect, turn, x, y, brightness, saturation, drop = shares.T.contiguous()
    if augmentation.moves:
        area = 1 - (1 - augmentation.crop_min) * area
        most = (-area.log()).clamp_max(math.log(ASPECT))
        angle = (2 * turn - 1) * math.radians(augmentation.rotate_degrees)
        theta = windows(area, ((2 * aspect - 1) * most).exp(), angle, torch.stack([x, y], dim=-1))
        made = replace(made, theta=theta)
    if augmentation.color_jitter > 0:
        factors = 1 + augmentation.color_jitter * (2 * torch.stack([brightness, saturation]) - 1)
        made = replace(made, colors=color_matrices(*factors))
    if augmentation.drop_gaussians > 0:
        salts = (numbers[:, 0] ^ numbers[:, 1]) & WORD
        made = replace(made, share=drop * augmentation.drop_gaussians, salts=salts)
    return made


def augment_images(images: Tensor, draws: Draws) -> Tensor:
    """Pictures uint8 [B, H, W, 3] as drawn: uint8 where they are mirrored at most, else float32 of the same units.

    Colours are not clamped: the splats' are not either.
    """
    images = torch.where(draws.flip[:, None, None, None], images.flip(2), images)
    if draws.theta is not None:
        images = windowed_images(images, draws.theta)
    if draws.colors is not None:
        images = recolored(images.float(), draws.colors)
    return images


def augment_splats(splats: SplatBatch, draws: Draws, side: int) -> SplatBatch:
    """Splats of pictures of side x side pixels as drawn: they render what `augment_images` makes of their pictures."""
    means, cholesky = mirrored(splats.means, splats.cholesky, side, draws.flip)
    splats = replace(splats, means=means, cholesky=cholesky)
    if draws.share is not None and draws.salts is not None:
        splats = thinned_splats(splats, draws.share, draws.salts)
    if draws.theta is not None:
        splats = windowed_splats(splats, draws.theta, side, side)
    if draws.colors is not None:
        splats = replace(splats, colors=recolored(splats.colors, draws.colors))
    return splats
