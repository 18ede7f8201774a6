"""Where a student starts from: statistics of the first training pictures, and a stem that is fitted to them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from components.adapter import SplatClip, patch_embeddings
from components.errors import UsageError
from components.stems import StemConfig, start_stem
from components.tokens import FeatureStats, SplatTensors, feature_stats

if TYPE_CHECKING:
    from components.config import TrainAdapterParams
    from components.distributed import World
    from components.openclip import LoadedTeacher
    from components.signals import Stop
    from components.train_adapter.data import Given, Stream

STATS_PICTURES = 10_000  # the first ones of the first epoch


class _Moments:
    """Sums of the teacher's patch embeddings, by channel in float64."""

    def __init__(self, width: int) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(width).double(), torch.zeros(width).double()

    def add(self, patches: Tensor) -> None:
        """Patches [B, L, width]."""
        rows = patches.flatten(0, 1).double().cpu()
        self.count += len(rows)
        self.total += rows.sum(0)
        self.squares += rows.square().sum(0)

    def stats(self) -> FeatureStats:
        """Mean and standard deviation of each channel."""
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp_min(1e-12).sqrt()
        return FeatureStats(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


@torch.no_grad()
def fresh_student(
    params: TrainAdapterParams,
    teacher: LoadedTeacher,
    stream: Stream,
    *,
    side: int,
    device: torch.device,
    stop: Stop,
    world: World,
) -> SplatClip:
    """The untrained student: the teacher's copy behind a fresh stem, with statistics of the first training batches.

    stream: whole batches; of several processes only the first reads them, the others are given what it made.
    side: in pixels, of the pictures that the splats were fitted to. Raises UsageError for latents that cannot be
    matched to patches, Interrupted after SIGTERM.
    """
    visual: Any = teacher.model.visual
    rows, columns = visual.grid_size
    num_latents = params.num_latents or rows * columns
    if num_latents != rows * columns and params.stage1_token_epochs > 0:
        raise UsageError(
            f"train_adapter.num_latents is {num_latents}, but the teacher has {rows * columns} patches: they cannot be "
            "matched one by one; set stage1_token_epochs to 0, or num_latents to 0"
        )
    width = int(visual.conv1.out_channels)
    steps = min(stream.steps_per_epoch, -(-STATS_PICTURES // params.batch_size))

    def batches() -> Iterator[Given]:
        for step in range(steps):
            stop.check("nothing was trained yet; run the same command again")
            yield stream.at(step)

    def statistics() -> tuple[FeatureStats, FeatureStats]:
        moments = _Moments(width)

        def splats() -> Iterator[SplatTensors]:
            for given in batches():
                moments.add(patch_embeddings(teacher.model, given.images))
                yield given.splats

        return feature_stats(splats(), side, side), moments.stats()

    features, tokens = world.share(statistics)
    config = StemConfig(
        stem=params.stem,
        stem_width=params.stem_width,
        layers=params.resampler_layers,
        heads=params.resampler_heads,
        num_latents=num_latents,
        grid=(int(rows), int(columns)),
        width=width,
        picture=(side, side),
        features=features,
        tokens=tokens,
        points=params.stem_points,
        channels=params.stem_channels,
        top_k=params.stem_top_k,
        pixels=FeatureStats(mean=teacher.mean, std=teacher.std),
        patch=int(visual.conv1.kernel_size[0]),
    )
    torch.manual_seed(params.seed)
    student = SplatClip(copy.deepcopy(teacher.model), config).to(device).eval()
    if world.leads:
        pairs = ((given.splats, patch_embeddings(teacher.model, given.images)) for given in batches())
        start_stem(student.stem, visual.conv1, pairs)
    world.copy_from_first([*student.stem.parameters(), *student.stem.buffers()])
    return student
