"""Scores on the validation split: the prompt classifier's accuracy, or the contrastive loss without classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.contrastive import clip_loss, num_correct
from components.device import mixed_precision
from components.distributed import current
from components.freeze import trains_text

if TYPE_CHECKING:
    from components.train_adapter.data import Given, Stream, TextFeatures

VAL_BATCH = 250


class Classifier:
    """The prompt classifier of a model's text tower, [D, C]; that of the teacher's tower is worked out once.

    make: from a CLIP or SplatClip.
    """

    def __init__(self, make: Callable[[Any], Tensor]) -> None:
        self._make = make
        self._frozen: Tensor | None = None

    def of(self, model: Any) -> Tensor:
        """A model whose text tower trains has its own at every call; that of all others is the teacher's."""
        if trains_text(model):
            return self._make(model)
        if self._frozen is None:
            self._frozen = self._make(model)
        return self._frozen


class Validation:
    """Every choice is made here, never on the test split.

    classifier: scored by accuracy; None: by the contrastive loss in batches of VAL_BATCH, with the first
    epoch's texts. stream None: the validation split is empty, and nothing is scored.
    """

    def __init__(self, stream: Stream | None, texts: TextFeatures, classifier: Classifier | None) -> None:
        self._stream, self._texts, self._classifier = stream, texts, classifier

    @property
    def names(self) -> tuple[str, ...]:
        """What `of` returns, in a curve's row."""
        return ("val_accuracy", "val_loss")

    @torch.no_grad()
    def of(self, model: Any, encode: Callable[[Any, Given], Tensor]) -> dict[str, float]:
        """{"val_accuracy": share in 0 .. 1} or {"val_loss": ...} of the model; {} without a validation split."""
        if self._stream is None:
            return {}
        world = current()
        correct, loss, count = 0, 0.0, 0
        own_texts = model if trains_text(model) else None
        classifier = self._classifier.of(model) if self._classifier is not None else None
        for given in self._stream.in_order(VAL_BATCH, turns=world):
            with mixed_precision(given.images.device):
                features = encode(model, given)
            features = F.normalize(features.float(), dim=-1)
            size = len(given.batch)
            count += size
            if classifier is not None:
                correct += num_correct(features, classifier, given.batch.classes.to(features.device))
            else:
                text, text_features = self._texts.draw(given, own_texts)
                loss += size * float(clip_loss(features, text_features, model.logit_scale, text.positives))
        hits, loss, total = world.totals([correct, loss, count])
        return {"val_accuracy": hits / total} if classifier is not None else {"val_loss": loss / total}

    def better(self, values: Mapping[str, float], than: Mapping[str, float]) -> bool:
        """Whether one model's values beat another's."""
        if "val_accuracy" in values:
            return values["val_accuracy"] > than["val_accuracy"]
        return "val_loss" in values and values["val_loss"] < than["val_loss"]
