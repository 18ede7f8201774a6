"""Batches of pictures and their splats, from shards; deterministic in (seed, epoch), resumable at any step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from components.batches import Batch, Labels, SplatBatch, labels_at, room_for, tensors_of
from components.decoder import Decoder
from components.distributed import World
from components.errors import PermanentError, UsageError
from components.lanes import ShuffledEpoch
from components.manifest import Artifact
from components.pace import waiting
from components.pairs import ShardPairs
from components.records import Encoded, Rows

__all__ = ["Batch", "ImageSet", "SplatBatch"]
MAX_CACHED_BYTES = 4 << 30
ALONE = World()
SHUFFLE_BUFFER = 4096  # samples that are held, encoded, while shards are streamed


class ImageSet:
    """One split's pictures, and the splats fitted to them, in batches.

    artifact: of the image shards; splats: of splat_fit's shards, or None. With splats, only pictures that have some are
    served, and only splats that have a picture; `missing` counts the others ("image", "splats"). want_images,
    want_splats: what a batch holds; the pairing does not depend on them. limit: at most so many, in the shards' order.
    image_size: side of the pictures served, others are resized and cropped as open_clip does; 0: as they are.

    What fits max_cached_bytes is decoded once and kept; else shards are read in turn, in an order shuffled by
    (seed, epoch), through buffers of a few thousand samples (components/lanes.py). The two give different orders, each
    the same every time.
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
            image_size=self.image_size if want_images else 0,
            num_gaussians=self.num_gaussians if want_splats else 0,
            splat_size=self._shards.image_size,
        )
        count = min(self._shards.num_samples, limit) if limit else self._shards.num_samples
        self.cached = count * self._decode.bytes_per_sample <= max_cached_bytes
        self._whole = self._read_all(limit, count) if self.cached else None
        self._length = (len(self._whole) if self._whole is not None else 0) if self.cached else count
        self.missing = dict(self._shards.missing) if self.cached else self._shards.unpaired()
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
        for rows in self._shards.read_all(limit):
            if not len(rows):
                continue
            part = self._collate(rows.encoded())
            whole = room_for(part, count) if whole is None else whole
            for target, source in zip(tensors_of(whole), tensors_of(part), strict=True):
                target[filled : filled + len(part)] = source
            whole.keys.extend(part.keys)
            whole.captions.extend(part.captions)
            filled += len(part)
        return None if whole is None else whole.part(slice(filled))

    def _collate(self, samples: Encoded) -> Batch:
        images, splats = None, None
        if self._want_images:
            images = torch.from_numpy(self._decode.images(samples))
        if self._want_splats:
            padded = self._decode.splats(samples)
            arrays = (padded.means, padded.cholesky, padded.colors, padded.mask)
            splats = SplatBatch(*(torch.from_numpy(array) for array in arrays))
        captions, numbers = samples.labels(self._shards.texts_at)
        return Batch(
            keys=samples.keys,
            images=images,
            splats=splats,
            captions=captions,
            classes=torch.from_numpy(np.array(numbers, np.int64)),
            places=torch.from_numpy(samples.places),
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
        world: World = ALONE,
        turns: World = ALONE,
    ) -> Iterator[Batch]:
        """One epoch from its batch number `start_step` on; the same batches for the same arguments.

        Without shuffle: in the shards' order. world: several processes get their parts of each batch; where shards are
        read in turn, without the labels of the whole, which `feed` adds. turns: several processes get whole batches in
        turn, and decode no others'.
        """
        steps = self.steps_per_epoch(batch_size, drop_last)
        mine = range(turns.rank, steps, turns.size)
        if self._whole is not None:
            order = _permutation(len(self), seed, epoch) if shuffle else torch.arange(len(self))
            for step in range(start_step, steps):
                if step not in mine:
                    continue
                group = order[step * batch_size : (step + 1) * batch_size]
                part = self._whole.select(group[world.part(len(group))])
                yield part if world.size == 1 else replace(part, whole=labels_at(self._whole, group))
            return
        streamed = self._streamed(batch_size, steps, start_step, world, (seed, epoch) if shuffle else None)
        for step, samples in enumerate(streamed, start_step):
            if step in mine:
                yield self._collate(samples)

    def _streamed(
        self, batch_size: int, steps: int, start_step: int, world: World, order: tuple[int, int] | None
    ) -> Iterator[Encoded]:
        if order is not None:
            epoch = ShuffledEpoch(
                self._shards, limit=self._limit, batch_size=batch_size, order=order, buffer=SHUFFLE_BUFFER
            )
            yield from map(Encoded.of, islice(epoch.batches(start_step, world.rank, world.size), steps - start_step))
            return
        for parts in islice(_groups(self._shards.stream(self._limit), batch_size), start_step, steps):
            group = Encoded.joined([rows.encoded() for rows in parts])
            yield group if world.size == 1 else group.part(world.part(len(group)))

    def feed(self, batch_size: int, *, seed: int, world: World = ALONE) -> Callable[[int], tuple[Batch, int]]:
        """A function from a training step's number to its batch (this process's part) and epoch.

        Cheap when asked for steps in turn: of a streamed set the next batch is then decoded ahead.
        """
        steps = self.steps_per_epoch(batch_size)
        current: Iterator[Batch] = iter(())
        expected = -1

        def batch_of(step: int) -> tuple[Batch, int]:
            nonlocal current, expected
            epoch, offset = divmod(step, steps)
            if step != expected or offset == 0:
                batches = self.batches(batch_size, seed=seed, epoch=epoch, start_step=offset, world=world)
                current = batches if self.cached else _ahead(batches)
            expected = step + 1
            with waiting():
                batch = next(current)
                if batch.whole is None and world.size > 1:  # here, as processes meet in their main threads alone
                    batch = replace(batch, whole=Labels.joined(world.collect(batch.labels)))
            return batch, epoch

        return batch_of


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the next one made in a thread while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="batch") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def _groups(shards: Iterator[Rows], size: int) -> Iterator[list[Rows]]:
    """Stretches of `size` samples together, across shards; fewer in the last."""
    group: list[Rows] = []
    lacking = size
    for rows in shards:
        start = 0
        while start < len(rows):
            group.append(rows.part(start, start + lacking))
            start += len(group[-1])
            lacking -= len(group[-1])
            if not lacking:
                yield group
                group, lacking = [], size
    if group:
        yield group


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    """An order of `count` samples that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed}/{epoch}").getrandbits(63))
    return torch.randperm(count, generator=generator)
