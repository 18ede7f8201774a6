"""Batches of pictures and their splats, from shards; deterministic in (seed, epoch), resumable at any step.

Letters: B samples, N Gaussians (rows past a picture's own are masked), H = W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from components.errors import PermanentError, UsageError
from components.manifest import Artifact
from components.records import Decoder, Record, ShardPairs

MAX_CACHED_BYTES = 4 << 30
SHUFFLE_BUFFER = 4096  # samples that are held, encoded, while shards are streamed


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

    def first(self, count: int) -> SplatBatch:
        """The first `count` samples, as views."""
        return SplatBatch(*(t[:count] for t in (self.means, self.cholesky, self.colors, self.mask)))

    def select(self, index: Tensor) -> SplatBatch:
        """The samples at `index`."""
        return SplatBatch(self.means[index], self.cholesky[index], self.colors[index], self.mask[index])


@dataclass(frozen=True)
class Batch:
    """images uint8 [B, H, W, 3] or None; splats or None; captions: a list a sample; classes [B] int64, -1: none.

    places [B, 2] int64, on the CPU: each sample's shard and its row there, as in Record.
    """

    keys: list[str]
    images: Tensor | None
    splats: SplatBatch | None
    captions: list[list[str]]
    classes: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.keys)

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

    def first(self, count: int) -> Batch:
        """The first `count` samples, their tensors as views."""
        images = None if self.images is None else self.images[:count]
        splats = None if self.splats is None else self.splats.first(count)
        return Batch(
            self.keys[:count], images, splats, self.captions[:count], self.classes[:count], self.places[:count]
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


class ImageSet:
    """One split's pictures, and the splats fitted to them, in batches.

    artifact: of the image shards; splats: of splat_fit's shards, or None. With splats, only pictures that have some are
    served, and only splats that have a picture; `missing` counts the others ("image", "splats"). want_images,
    want_splats: what a batch holds; the pairing does not depend on them. limit: at most so many, in the shards' order.
    image_size: side of the pictures served, others are resized and cropped as open_clip does; 0: as they are.

    What fits max_cached_bytes is decoded once and kept; else shards are read in turn, in an order shuffled by
    (seed, epoch), through a buffer of a few thousand samples. The two give different orders, each the same every time.
    Raises PermanentError for a split that is missing or empty, or a picture that cannot be decoded.
    """

    def __init__(
        self,
        artifact: Artifact,
        split: str,
        *,
        splats: Artifact | None = None,
        want_images: bool = True,
        want_splats: bool = True,
        limit: int = 0,
        image_size: int = 0,
        max_cached_bytes: int = MAX_CACHED_BYTES,
    ) -> None:
        want_splats = want_splats and splats is not None
        if not want_images and not want_splats:
            raise UsageError("an ImageSet of neither images nor splats was asked for")
        self.split, self._limit = split, limit
        self._want_images, self._want_splats = want_images, want_splats
        self._shards = ShardPairs(artifact, split, splats, want_images=want_images, want_splats=want_splats)
        self.image_size = image_size or self._shards.image_size
        self.num_gaussians = self._shards.num_gaussians if splats is not None else 0
        self._decode = Decoder(
            image_size=self.image_size if want_images else 0, num_gaussians=self.num_gaussians if want_splats else 0
        )
        count = min(self._shards.num_samples, limit) if limit else self._shards.num_samples
        self.cached = count * self._decode.bytes_per_sample <= max_cached_bytes
        self._whole = self._read_all(limit, count) if self.cached else None
        self._length = (len(self._whole) if self._whole is not None else 0) if self.cached else count
        self.missing = dict(self._shards.missing)
        if not self._length:
            lack = (
                "has no picture with splats; were they fitted to these pictures?" if splats is not None else "is empty"
            )
            raise PermanentError(f"{artifact.url}: split {split!r} {lack}")

    def __len__(self) -> int:
        return self._length

    def _read_all(self, limit: int, count: int) -> Batch | None:
        """All samples decoded, `count` at most, filled in shard by shard: the peak is the whole and one shard."""
        whole: Batch | None = None
        filled = 0
        for records in self._shards.read_all(limit):
            if not records:
                continue
            part = self._collate(records)
            whole = _room(part, count) if whole is None else whole
            for target, source in zip(_tensors(whole), _tensors(part), strict=True):
                target[filled : filled + len(part)] = source
            whole.keys.extend(part.keys)
            whole.captions.extend(part.captions)
            filled += len(part)
        return None if whole is None else whole.first(filled)

    def _collate(self, records: Sequence[Record]) -> Batch:
        images, splats = None, None
        if self._want_images:
            images = torch.from_numpy(self._decode.images(records))
        if self._want_splats:
            padded = self._decode.splats(records)
            arrays = (padded.means, padded.cholesky, padded.colors, padded.mask)
            splats = SplatBatch(*(torch.from_numpy(array) for array in arrays))
        return Batch(
            keys=[record.key for record in records],
            images=images,
            splats=splats,
            captions=[record.captions for record in records],
            classes=torch.tensor([record.number for record in records], dtype=torch.int64),
            places=torch.tensor([record.place for record in records], dtype=torch.int64).view(-1, 2),
        )

    def steps_per_epoch(self, batch_size: int, drop_last: bool = True) -> int:
        """Batches an epoch. Raises UsageError if, with drop_last, there is not even one."""
        steps = len(self) // batch_size if drop_last else -(-len(self) // batch_size)
        if not steps:
            raise UsageError(f"batch_size is {batch_size}, but split {self.split!r} has only {len(self)} samples")
        return steps

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        start_step: int = 0,
    ) -> Iterator[Batch]:
        """One epoch from its batch number `start_step` on; the same batches for the same arguments.

        Without shuffle: in the shards' order.
        """
        steps = self.steps_per_epoch(batch_size, drop_last)
        if self._whole is not None:
            order = _permutation(len(self), seed, epoch) if shuffle else torch.arange(len(self))
            for step in range(start_step, steps):
                yield self._whole.select(order[step * batch_size : (step + 1) * batch_size])
            return
        records = self._shards.stream(
            self._limit, buffer=SHUFFLE_BUFFER if shuffle else 0, order=(seed, epoch) if shuffle else None
        )
        for step in range(steps):
            group = list(islice(records, batch_size))
            if step >= start_step:
                yield self._collate(group)

    def feed(self, batch_size: int, *, seed: int) -> Callable[[int], tuple[Batch, int]]:
        """A function from a training step's number to its batch and epoch; cheap when asked for steps in turn."""
        steps = self.steps_per_epoch(batch_size)
        current: Iterator[Batch] = iter(())
        expected = -1

        def batch_of(step: int) -> tuple[Batch, int]:
            nonlocal current, expected
            epoch, offset = divmod(step, steps)
            if step != expected or offset == 0:
                current = self.batches(batch_size, seed=seed, epoch=epoch, start_step=offset)
            expected = step + 1
            return next(current), epoch

        return batch_of


def _tensors(batch: Batch) -> list[Tensor]:
    splats = batch.splats
    parts = [] if splats is None else [splats.means, splats.cholesky, splats.colors, splats.mask]
    return [batch.classes, batch.places, *([] if batch.images is None else [batch.images]), *parts]


def _room(like: Batch, count: int) -> Batch:
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


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    """An order of `count` samples that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed}/{epoch}").getrandbits(63))
    return torch.randperm(count, generator=generator)
