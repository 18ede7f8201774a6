"""CLIP's contrastive loss with several positives a row, and the prompt classifier.

Letters: B pictures, U distinct texts, C classes, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.distributed import World, current
from components.errors import UsageError
from components.openclip import Tokenizer
from components.prompts import PLACEHOLDER


def clip_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, positives: Tensor) -> Tensor:
    """Symmetric cross-entropy, with the target spread evenly over a row's positives; a scalar in float32.

    image_features [B, D] and text_features [U, D], L2-normalised; logit_scale: a log, exponentiated here;
    positives [B, U] bool, at least one in each row and column. With one positive each this is CLIP's loss.

    In several processes, where image_features are one's part of the B rows and text_features are all of them (gathered
    with World.gather, or computed by each process), this is its share of the whole batch's loss: of its rows and of its
    part of the columns. Image features are gathered with their gradients, as open_clip's ClipLoss does with local_loss
    and gather_with_grad, so that no process holds all logits.
    """
    if len(image_features) != len(positives):
        return _share(image_features.float(), text_features.float(), logit_scale.exp(), positives, current())
    logits = logit_scale.exp() * image_features.float() @ text_features.float().T
    target = positives.to(logits.dtype)
    by_image = -(logits.log_softmax(dim=1) * target).sum(dim=1) / target.sum(dim=1)
    by_text = -(logits.log_softmax(dim=0) * target).sum(dim=0) / target.sum(dim=0)
    return 0.5 * (by_image.mean() + by_text.mean())


def _share(images: Tensor, texts: Tensor, scale: Tensor, positives: Tensor, world: World) -> Tensor:
    count, distinct = positives.shape
    rows, columns = world.part(count), world.part(distinct)
    if len(images) != rows.stop - rows.start:
        raise UsageError(f"{len(images)} image features for a batch of {count}, of which this process has {rows}")
    everyones = world.gather(images, count)
    target = positives[rows].to(images.dtype)
    logits = scale * images @ texts.T
    by_image = -(logits.log_softmax(dim=1) * target).sum(dim=1) / target.sum(dim=1)
    target = positives[:, columns].to(images.dtype)
    logits = scale * everyones @ texts[columns].T
    by_text = -(logits.log_softmax(dim=0) * target).sum(dim=0) / target.sum(dim=0)
    return 0.5 * (by_image.sum() / count + by_text.sum() / distinct)


@torch.no_grad()
def prompt_classifier(
    model: Any, tokenizer: Tokenizer, class_names: Sequence[str], templates: Sequence[str], batch_size: int = 256
) -> Tensor:
    """CLIP's prompt ensemble: [D, C], the mean of a class's L2-normalised text features, normalised again.

    model: an open_clip CLIP, or anything with its encode_text(tokens, normalize=True). templates hold {c} for the name.
    """
    device = next(model.parameters()).device
    texts = [template.replace(PLACEHOLDER, name) for name in class_names for template in templates]
    parts = [
        model.encode_text(tokenizer(texts[start : start + batch_size]).to(device), normalize=True).float()
        for start in range(0, len(texts), batch_size)
    ]
    features = torch.cat(parts).view(len(class_names), len(templates), -1).mean(dim=1)
    return F.normalize(features, dim=-1).T.contiguous()


def num_correct(image_features: Tensor, classifier: Tensor, classes: Tensor) -> int:
    """How many of image_features [B, D] score highest in classifier [D, C] on their own class, classes [B]."""
    return int(((image_features.float() @ classifier).argmax(dim=1) == classes).sum())
