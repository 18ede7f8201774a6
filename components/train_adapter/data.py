"""What every phase trains on: augmented batches by step number, the teacher's embeddings, text features.

Student and control draw from here with the same seed and so see the same pictures in the same order, augmented alike,
with the same texts. What is drawn is train_adapter/augment.py's.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.device import mixed_precision
from components.distributed import World, current
from components.errors import PermanentError
from components.openclip import normalize_images
from components.train_adapter.augment import Augmentation, Draws, augment_images, augment_splats, draw
from components.train_adapter.targets import TeacherEmbeddings, embed

if TYPE_CHECKING:
    from components.loader import Batch, ImageSet, SplatBatch
    from components.openclip import LoadedTeacher
    from components.texts import TextBank, TextBatch

__all__ = ["Given", "Stream", "TeacherEmbeddings", "TextFeatures", "embed"]
ALONE = World()
MAX_CACHED_TEXTS = 100_000
TEXT_CHUNK = 64


@dataclass(frozen=True)
class Given:
    """One augmented batch.

    images [B, 3, H, W], normalised, and splats: on the device, both augmented alike; mirrored where flip [B] says so.
    batch: what it was made of, on the CPU, not augmented. share: how much of the step's batch it is, 1 but for the
    parts of several processes or of accumulated gradients: a mean over it times its share adds up to the batch's mean.
    """

    batch: Batch
    epoch: int
    flip: Tensor
    images: Tensor
    splats: SplatBatch
    share: float = 1.0

    def parts(self, count: int) -> list[Given]:
        """The same samples in `count` contiguous parts, as views."""
        if count == 1:
            return [self]
        size = len(self.batch)
        rows = [slice(i * size // count, (i + 1) * size // count) for i in range(count)]
        return [
            replace(
                self,
                batch=self.batch.part(part),
                flip=self.flip[part],
                images=self.images[part],
                splats=self.splats.part(part),
                share=self.share * (part.stop - part.start) / size,
            )
            for part in rows
        ]


class Stream:
    """A split's batches by step number; each epoch is a new order, decided by (seed, epoch).

    picture: width in pixels of the pictures that the splats were fitted to. batch_size: over all processes of `world`,
    each of which is given its part.
    """

    def __init__(
        self,
        pictures: ImageSet,
        teacher: LoadedTeacher,
        device: torch.device,
        *,
        picture: int,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        world: World = ALONE,
    ) -> None:
        self._pictures, self._teacher, self._device = pictures, teacher, device
        self._picture, self._seed, self._augmentation = picture, seed, augmentation
        self.world = world
        self.batch_size = min(batch_size, len(pictures))
        self.steps_per_epoch = pictures.steps_per_epoch(self.batch_size)
        self._feed = pictures.feed(self.batch_size, seed=seed, world=world)

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def without_splats(self) -> int:
        """Pictures of the split that are left out, as they have none."""
        return self._pictures.missing["splats"]

    def at(self, step: int) -> Given:
        """The batch of a step: a function of the step alone; cheap when steps follow each other."""
        batch, epoch = self._feed(step)
        return self._given(batch, epoch, draw(batch.keys, self._augmentation, seed=self._seed, epoch=epoch))

    def alone(self) -> Stream:
        """The same batches, each whole in the process that asks."""
        made = copy.copy(self)
        made.world, made._feed = ALONE, self._pictures.feed(self.batch_size, seed=self._seed)
        return made

    def in_order(self, batch_size: int, turns: World = ALONE) -> Iterator[Given]:
        """All pictures once, in the set's order, as they are; of several processes, each has its turns' batches."""
        for batch in self._pictures.batches(batch_size, shuffle=False, drop_last=False, turns=turns):
            yield self._given(batch, 0, Draws.none(len(batch)))

    def _given(self, batch: Batch, epoch: int, draws: Draws) -> Given:
        drawn = draws.to(self._device)
        pixels = augment_images(batch.pixels.to(self._device), drawn)
        images = normalize_images(pixels, self._teacher.mean, self._teacher.std)
        splats = augment_splats(batch.gaussians.trimmed().to(self._device), drawn, self._picture)
        return Given(batch, epoch, draws.flip, images, splats, len(batch) / len(batch.labels.keys))


class TextFeatures:
    """Features of drawn texts: of the teacher's text tower, kept by text, or of one that trains, worked out anew.

    What several processes draw together is kept apart from what one draws for itself, as in validation: which texts are
    known decides how the work is split, and so must be the same in all of them.
    """

    def __init__(self, clip: Any, bank: TextBank) -> None:
        self._clip, self.bank = clip, bank
        self._together: dict[str, Tensor] = {}
        self._alone: dict[str, Tensor] = {}

    def draw(self, given: Given, model: Any = None) -> tuple[TextBatch, Tensor]:
        """The whole batch's texts and their L2-normalised features [U, D]; several processes compute a part each.

        model: a CLIP or SplatClip whose text tower is not the teacher's (any more): gradients reach it, and each
        process computes them all, as its share of the loss depends on all.
        Raises PermanentError, in all processes, where they do not lack the same texts.
        """
        world = ALONE if given.batch.whole is None else current()
        text = self.bank.draw(given.batch.labels, epoch=given.epoch).to(given.images.device)
        if model is not None:
            with mixed_precision(text.tokens.device):
                features = model.encode_text(text.tokens, normalize=False)
            return text, F.normalize(features.float(), dim=-1)
        known = self._alone if world.size == 1 else self._together
        missing = [place for place, name in enumerate(text.texts) if name not in known]
        if len(known) + len(missing) > MAX_CACHED_TEXTS:
            known.clear()
            missing = list(range(len(text.texts)))
        if not world.same(_number([text.texts[place] for place in missing])):
            raise PermanentError(
                f"the processes do not lack the same texts' features in a batch of epoch {given.epoch}; start all of "
                "them with the same code, and run the same command again"
            )
        # Chunks of one size, filled up: a text's features then do not depend on the texts beside it.
        chunks = [missing[start : start + TEXT_CHUNK] for start in range(0, len(missing), TEXT_CHUNK)]
        mine = world.part(len(chunks))
        parts = [self._features(text.tokens[chunk + chunk[:1] * (TEXT_CHUNK - len(chunk))]) for chunk in chunks[mine]]
        if chunks:
            dim = self._clip.visual.output_dim
            own = torch.stack(parts) if parts else torch.empty(0, TEXT_CHUNK, dim, device=text.tokens.device)
            for chunk, features in zip(chunks, world.gather(own, len(chunks)), strict=True):
                known.update({text.texts[place]: features[row] for row, place in enumerate(chunk)})
        return text, torch.stack([known[name] for name in text.texts])

    @torch.no_grad()
    def _features(self, tokens: Tensor) -> Tensor:
        with mixed_precision(tokens.device):
            features = self._clip.encode_text(tokens)
        return F.normalize(features.float(), dim=-1)


def _number(texts: Sequence[str]) -> int:
    """A number of 63 bits that tells lists of texts apart, the same in every process (hash() is not)."""
    joined = "\0".join([str(len(texts)), *texts])
    return int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8).digest(), "little") >> 1
