"""A differentiable render for torch (imported only where it is used)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from splat2d import _core
from splat2d._checks import splats_of
from splat2d.rendering import render as render_arrays


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means: torch.Tensor, cholesky: torch.Tensor, colors: torch.Tensor, size: tuple[int, int, int]
    ) -> torch.Tensor:
        height, width, threads = size
        ctx.save_for_backward(means, cholesky, colors)
        ctx.threads = threads
        means_array, cholesky_array, colors_array = (t.detach().numpy() for t in (means, cholesky, colors))
        picture = render_arrays(means_array, cholesky_array, colors_array, height, width, threads=threads)
        return torch.from_numpy(picture)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v_pictures: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        means, cholesky, colors = splats_of(*(tensor.detach().numpy() for tensor in ctx.saved_tensors))
        v = np.ascontiguousarray(v_pictures.detach().numpy(), dtype=np.float32)
        v_splats = _core.render_backward(means, cholesky, colors, v, ctx.threads)
        return (*map(torch.from_numpy, v_splats), None)


def render(
    means: torch.Tensor,
    cholesky: torch.Tensor,
    colors: torch.Tensor,
    height: int,
    width: int,
    *,
    threads: int = 0,
) -> torch.Tensor:
    """The pictures [B, H, W, 3] of means [B, N, 2], cholesky [B, N, 3], colors [B, N, 3], differentiable once.

    float32 on the CPU; the same model and cut-off as `splat2d.render`. The cut-off's edge is held still in the
    gradient. Raises ValueError on another type or device, and on wrong shapes.
    """
    for tensor, name in ((means, "means"), (cholesky, "cholesky"), (colors, "colors")):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ValueError(f"expected {name} float32 on cpu, got {tensor.dtype} on {tensor.device}")
    pictures = _Render.apply(means, cholesky, colors, (height, width, threads))  # type: ignore[no-untyped-call]
    if not isinstance(pictures, torch.Tensor):
        raise TypeError(f"expected a tensor from the render, got {type(pictures).__name__}")
    return pictures
