"""A training step of a ViT that reads splats, and the same step on pictures: samples a second and memory.

Weights, pictures and Gaussians are random: neither time nor memory depends on what they are, but for how many Gaussians
reach a patch; these are as wide as those of a fit with so many.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from records import Row
from torch import Tensor

from components.adapter import SplatClip, encode_patches, patch_embeddings
from components.contrastive import clip_loss
from components.device import mixed_precision, same_attention
from components.freeze import apply_control_policy, apply_freeze_policy
from components.openclip import build
from components.stem_config import StemConfig
from components.tokens import NUM_FEATURES, FeatureStats
from components.train_adapter.loss import embedding_distance, token_loss

COLORS = 0.5  # spread of the Gaussians' colours
Step = Callable[[], Tensor]


def stats(count: int) -> FeatureStats:
    """Those of values that are normalised already."""
    return FeatureStats(mean=(0.0,) * count, std=(1.0,) * count)


def random_splats(batch: int, number: int, side: int, device: str) -> SimpleNamespace:
    """Gaussians all over a picture of side x side pixels, about as wide as their spacing."""
    spacing = side / number**0.5
    means = torch.rand(batch, number, 2, device=device) * side
    cholesky = spacing * (0.3 + 0.5 * torch.rand(batch, number, 3, device=device))
    cholesky[..., 1] -= 0.55 * spacing
    colors = COLORS * torch.randn(batch, number, 3, device=device)
    mask = torch.ones(batch, number, dtype=torch.bool, device=device)
    return SimpleNamespace(means=means, cholesky=cholesky, colors=colors, mask=mask)


def student(model: str, stem: str, device: str) -> SplatClip:
    """A CLIP of random weights behind a stem of params/datacomp-small.yaml's sizes."""
    clip: Any = build(model)
    visual = clip.visual
    rows, columns = visual.grid_size
    width, side = visual.conv1.out_channels, visual.image_size[0]
    config = StemConfig(
        stem=stem,
        stem_width=256,
        layers=4,
        heads=8,
        num_latents=rows * columns,
        grid=(rows, columns),
        width=width,
        picture=(side, side),
        features=stats(NUM_FEATURES),
        tokens=stats(width),
        pixels=stats(3),
        patch=visual.conv1.kernel_size[0],
    )
    return SplatClip(clip, config).to(device)


def make_step(model: str, stem: str, number: int, batch: int, device: str, *, stage: int, policy: str) -> Step:
    """A whole step, optimiser included, that returns the loss. stem "": of the control, on pictures, in stage 2.

    Stage 1: the stem alone, patch tokens and image embedding. Stage 2: contrastive and anchor, under the policy.
    """
    torch.manual_seed(0)
    made: Any = student(model, stem, device) if stem else build(model).to(device)
    clip: Any = made.clip if stem else made
    if stem:
        apply_freeze_policy(made, "stem" if stage == 1 else policy)
    else:
        apply_control_policy(made, policy)
    side = clip.visual.image_size[0]
    images = torch.randn(batch, 3, side, side, device=device)
    splats = random_splats(batch, number, side, device) if stem else None
    dim = clip.visual.output_dim
    texts, targets = (F.normalize(torch.randn(batch, dim, device=device), dim=-1) for _ in range(2))
    positives = torch.eye(batch, dtype=torch.bool, device=device)
    trained = [p for p in made.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def loss() -> Tensor:
        with mixed_precision(images.device):
            if stem:
                latents = made.patch_latents(splats)
                features = encode_patches(clip, latents)
            else:
                features = made.encode_image(images)
        distance = embedding_distance(features, targets)
        if stage == 2:
            return distance + clip_loss(F.normalize(features.float(), dim=-1), texts, made.logit_scale, positives)
        with torch.no_grad():
            patches = patch_embeddings(clip, images)
        return distance + token_loss(latents, patches, torch.ones(latents.shape[-1], device=device))

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        total = loss()
        with same_attention(images.device):
            torch.autograd.backward(total)
        optimiser.step()
        return total.detach()

    return step


def measured(
    model: str,
    stem: str,
    number: int,
    batch: int,
    device: str,
    *,
    stage: int = 2,
    policy: str = "paper",
    steps: int = 20,
) -> Row:
    """Samples a second of `steps` steps after two that warm up, and the most memory that was held.

    memory_bytes: of the GPU's tensors; of the whole process's resident set on the CPU.
    """
    step = make_step(model, stem, number, batch, device, stage=stage, policy=policy)
    for _ in range(2):
        first = float(step())
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(steps):
        last = step()
    value = float(last)  # waits for the device
    seconds = time.perf_counter() - start
    if not math.isfinite(value) or value == first:
        raise RuntimeError(f"the loss is {value} after {steps} steps and was {first}")
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident()
    return {"samples_per_s": batch * steps / seconds, "step_ms": 1e3 * seconds / steps, "memory_bytes": peak}


def peak_resident() -> int:
    """Most bytes that this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """One stage's steps in a process of their own, for memory: prints a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--stem", default="splat", help="empty: the control, on pictures")
    parser.add_argument("--num-gaussians", type=int, default=3136)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2)
    parser.add_argument("--policy", default="paper")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    row = measured(
        args.model, args.stem, args.num_gaussians, args.batch, args.device,
        stage=args.stage, policy=args.policy, steps=args.steps,
    )  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()
