"""What the student is asked to match. All losses are means over the batch, in float32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def token_loss(latents: Tensor, patches: Tensor, scale: Tensor) -> Tensor:
    """Mean squared error between latents and the teacher's patch embeddings, both [B, L, width].

    scale [width]: the patch embeddings' standard deviations over the training data. The error is divided by their mean
    square, so that 1 is what the mean token scores and 0 is a perfect match, whatever the teacher.
    """
    return F.mse_loss(latents.float(), patches.float()) / scale.square().mean()


def embedding_distance(features: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of L2-normalised embeddings [B, D] to targets [B, D], which are normalised already.

    The paper's stage 1 loss (GaussianVision, arXiv 2509.22615) times D: 2 - 2 cos, so that its weight beside other
    losses does not depend on the embedding's size.
    """
    return (F.normalize(features.float(), dim=-1) - targets).square().sum(-1).mean()
