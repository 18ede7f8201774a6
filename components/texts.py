"""Texts for contrastive steps: one a picture, chosen by (seed, epoch, key), each distinct text tokenised once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from components.errors import PermanentError
from components.openclip import Tokenizer
from components.prompts import PLACEHOLDER

MAX_CACHED = 100_000  # distinct texts whose tokens are kept: 60 MB at 77 tokens


class Captioned(Protocol):
    """What is read of a loader's Batch."""

    @property
    def keys(self) -> list[str]:
        """The samples' keys."""

    @property
    def captions(self) -> list[list[str]]:
        """The samples' captions; an empty list where there is none."""

    @property
    def classes(self) -> Tensor:
        """[B] int64 class numbers, -1 where there is none."""


@dataclass(frozen=True)
class TextBatch:
    """texts: U distinct ones; tokens [U, L] int64; index [B]: which one each picture drew; positives [B, U] bool."""

    texts: list[str]
    tokens: Tensor
    index: Tensor
    positives: Tensor

    def to(self, device: torch.device) -> TextBatch:
        """The same batch on a device."""
        return TextBatch(self.texts, self.tokens.to(device), self.index.to(device), self.positives.to(device))


def _draw(seed: int, epoch: int, key: str, what: str, choices: int) -> int:
    """A number under `choices` that depends on the arguments alone, in any process."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{what}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % choices


class TextBank:
    """Draws texts for batches.

    A picture without captions draws a class prompt: a template with its class's name. One with captions draws a
    caption; where the set has classes too, every other draw is a class prompt, so that both are learnt.
    A text is positive for the pictures that drew it, and a class prompt for all pictures of its class.
    """

    def __init__(
        self, tokenizer: Tokenizer, class_names: Sequence[str] = (), templates: Sequence[str] = (), *, seed: int = 0
    ) -> None:
        self._tokenizer, self._seed = tokenizer, seed
        self._class_names, self._templates = list(class_names), list(templates)
        self._tokens: dict[str, Tensor] = {}

    def _text(self, key: str, captions: Sequence[str], number: int, epoch: int) -> tuple[str, int]:
        """The text drawn, and its class where it is a class prompt, else -1."""
        captions = [caption for caption in captions if caption]
        prompts = 0 <= number < len(self._class_names) and bool(self._templates)
        if not captions and not prompts:
            raise PermanentError(
                f"sample {key!r} has no caption and no class prompt: its text is empty and its class is {number} of "
                f"{len(self._class_names)}; add captions, or classnames.txt and templates to the source"
            )
        if prompts and (not captions or _draw(self._seed, epoch, key, "kind", 2)):
            template = self._templates[_draw(self._seed, epoch, key, "template", len(self._templates))]
            return template.replace(PLACEHOLDER, self._class_names[number]), number
        return captions[_draw(self._seed, epoch, key, "caption", len(captions))], -1

    def _encode(self, texts: list[str]) -> Tensor:
        missing = [text for text in texts if text not in self._tokens]
        if len(self._tokens) + len(missing) > MAX_CACHED:
            self._tokens.clear()
            missing = texts
        if missing:
            self._tokens.update(zip(missing, self._tokenizer(missing), strict=True))
        return torch.stack([self._tokens[text] for text in texts])

    def draw(self, batch: Captioned, *, epoch: int) -> TextBatch:
        """One text a picture. Raises PermanentError, naming the sample, where it has neither caption nor class."""
        classes = batch.classes.tolist()
        drawn = [
            self._text(key, captions, number, epoch)
            for key, captions, number in zip(batch.keys, batch.captions, classes, strict=True)
        ]
        distinct = dict(sorted(drawn))  # a text that is both a caption (-1) and a class prompt is the latter
        texts = sorted(distinct)
        place = {text: position for position, text in enumerate(texts)}
        index = torch.tensor([place[text] for text, _ in drawn])
        text_classes = torch.tensor([distinct[text] for text in texts])
        same_class = (batch.classes[:, None] == text_classes[None]) & (text_classes[None] >= 0)
        positives = same_class | (index[:, None] == torch.arange(len(texts))[None])
        return TextBatch(texts, self._encode(texts), index, positives)
