"""What a training step is given: pictures, their splats, captions and classes, a batch at a time.

Letters: B samples, N Gaussians (rows past a picture's own are masked), H = W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from components.errors import UsageError


@dataclass(frozen=True)
class SplatBatch:
    """A padded batch of splats: means [B, N, 2] and cholesky [B, N, 3] in pixels, colors [B, N, 3], mask [B, N] bool.

    mask is False on padding, whose other rows are zero.
    """

    means: Tensor
    cholesky: Tensor
    colors: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.means)

    def to(self, device: torch.device | str) -> SplatBatch:
        """The same batch on a device."""
        return SplatBatch(*(t.to(device) for t in (self.means, self.cholesky, self.colors, self.mask)))

    def part(self, rows: slice) -> SplatBatch:
        """Some samples, as views."""
        return SplatBatch(*(t[rows] for t in (self.means, self.cholesky, self.colors, self.mask)))

    def trimmed(self) -> SplatBatch:
        """As views, without the columns at the end that are padding in every picture; at least one column stays."""
        used = self.mask.any(0).nonzero()
        most = int(used.max()) + 1 if len(used) else 1
        return SplatBatch(self.means[:, :most], self.cholesky[:, :most], self.colors[:, :most], self.mask[:, :most])

    def select(self, index: Tensor) -> SplatBatch:
        """The samples at `index`."""
        return SplatBatch(self.means[index], self.cholesky[index], self.colors[index], self.mask[index])


@dataclass(frozen=True)
class Labels:
    """What texts are drawn by, of a whole batch of which a process holds a part: as in Batch."""

    keys: list[str]
    captions: list[list[str]]
    classes: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Labels]) -> Labels:
        """The labels of a batch from those of its parts, in order."""
        keys = [key for part in parts for key in part.keys]
        captions = [texts for part in parts for texts in part.captions]
        return cls(keys, captions, torch.cat([part.classes for part in parts]))


@dataclass(frozen=True)
class Batch:
    """images uint8 [B, H, W, 3] or None; splats or None; captions: a list a sample; classes [B] int64, -1: none.

    places [B, 2] int64, on the CPU: each sample's shard and its row there, as in Record. whole: labels of the
    batch that this is one process's part of; None where it is all of it.
    """

    keys: list[str]
    images: Tensor | None
    splats: SplatBatch | None
    captions: list[list[str]]
    classes: Tensor
    places: Tensor
    whole: Labels | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def labels(self) -> Labels:
        """Keys, captions and classes of the whole batch."""
        return self.whole or Labels(self.keys, self.captions, self.classes)

    @property
    def pixels(self) -> Tensor:
        """The images, of a batch that has some."""
        if self.images is None:
            raise UsageError("this batch was made without images (want_images=False)")
        return self.images

    @property
    def gaussians(self) -> SplatBatch:
        """The splats, of a batch that has some."""
        if self.splats is None:
            raise UsageError("this batch was made without splats")
        return self.splats

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on a device."""
        images = None if self.images is None else self.images.to(device)
        splats = None if self.splats is None else self.splats.to(device)
        return replace(self, images=images, splats=splats, classes=self.classes.to(device))

    def part(self, rows: slice) -> Batch:
        """Some samples, their tensors as views."""
        return Batch(
            keys=self.keys[rows],
            images=None if self.images is None else self.images[rows],
            splats=None if self.splats is None else self.splats.part(rows),
            captions=self.captions[rows],
            classes=self.classes[rows],
            places=self.places[rows],
            whole=self.whole,
        )

    def select(self, index: Tensor) -> Batch:
        """The samples at `index` [b], in that order."""
        places = index.tolist()
        return Batch(
            keys=[self.keys[i] for i in places],
            images=None if self.images is None else self.images[index],
            splats=None if self.splats is None else self.splats.select(index),
            captions=[self.captions[i] for i in places],
            classes=self.classes[index],
            places=self.places[index],
        )


def labels_at(whole: Batch, group: Tensor) -> Labels:
    """The labels of some samples of a batch."""
    places = group.tolist()
    return Labels([whole.keys[i] for i in places], [whole.captions[i] for i in places], whole.classes[group])


def tensors_of(batch: Batch) -> list[Tensor]:
    """All tensors of a batch, in a fixed order."""
    splats = batch.splats
    parts = [] if splats is None else [splats.means, splats.cholesky, splats.colors, splats.mask]
    return [batch.classes, batch.places, *([] if batch.images is None else [batch.images]), *parts]


def room_for(like: Batch, count: int) -> Batch:
    """Room for `count` samples of the kind of `like`; no keys and captions yet."""

    def empty(tensor: Tensor) -> Tensor:
        return tensor.new_empty((count, *tensor.shape[1:]))

    splats = like.splats
    return Batch(
        keys=[],
        images=None if like.images is None else empty(like.images),
        splats=None
        if splats is None
        else SplatBatch(*(empty(t) for t in (splats.means, splats.cholesky, splats.colors, splats.mask))),
        captions=[],
        classes=empty(like.classes),
        places=empty(like.places),
    )
