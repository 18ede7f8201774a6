"""Low-rank updates of frozen weights (LoRA; Hu et al., arXiv 2106.09685).

A weight W [out, in] becomes W + B A, with A [rank, in] and B [out, rank]; A and B train, W stays bit for bit what it
was. B starts at zero, so that nothing changes before the first step. There is no further factor (alpha = rank).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

BLOCKS = (0, 1)  # of the vision tower
# Module within a block, and its weight: attention's and MLP's projections. Queries, keys and values share one A.
WEIGHTS = (("attn", "in_proj_weight"), ("attn.out_proj", "weight"), ("mlp.c_fc", "weight"), ("mlp.c_proj", "weight"))
MARK = ".parametrizations."
UPDATES = ("down", "up")  # names of A and B


class LowRank(nn.Module):
    """The parametrisation W -> W + up @ down; down [rank, in] starts uniform in +-1 / sqrt(in), up [out, rank] at 0."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        bound = columns**-0.5
        down = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight.device, weight.dtype))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out, in]; in the weight's own precision, also where the tower runs in bfloat16."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.up @ self.down


def _targets(visual: Any) -> Iterator[tuple[str, nn.Module, str]]:
    for block in BLOCKS[: len(visual.transformer.resblocks)]:
        for path, weight in WEIGHTS:
            yield f"{block}.{path}", visual.transformer.resblocks[block].get_submodule(path), weight


def add_lora(visual: Any, rank: int, seed: int) -> None:
    """Put low-rank updates on the first two blocks of open_clip's VisionTransformer, in place; twice is once.

    What they start from depends on seed and place alone. Raises ValueError for another rank than is there already.
    """
    for name, module, weight in _targets(visual):
        if parametrize.is_parametrized(module, weight):
            there = len(module.parametrizations[weight][0].down)  # type: ignore[index, union-attr]
            if there != rank:
                raise ValueError(f"block {name} has low-rank updates of rank {there}; asked for are {rank}")
            continue
        digest = hashlib.blake2b(f"{seed}/{name}.{weight}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        update = LowRank(getattr(module, weight), rank, generator)
        parametrize.register_parametrization(module, weight, update, unsafe=True)  # no trial: meta tensors cannot


def merge_lora(visual: Any) -> None:
    """Write the updates into the weights, in place: the plain VisionTransformer again, with the same output."""
    for _, module, weight in _targets(visual):
        if parametrize.is_parametrized(module, weight):
            parametrize.remove_parametrizations(module, weight, leave_parametrized=True)


def is_update(name: str) -> bool:
    """Whether a parameter's name is that of an update's A or B."""
    return MARK in name and name.rpartition(".")[2] in UPDATES
