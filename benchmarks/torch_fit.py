"""The baseline of benchmarks/fit.py: 2D Gaussian fitting in plain PyTorch.

Each Gaussian is evaluated in a square window of fixed size that covers 3 standard deviations of three in four of the
Gaussians that the recipe `paper` ends with (GROWTH times those it starts from), all pictures and Gaussians in one
batch, added up with index_add, differentiated by autograd, stepped by Adam with the settings of the recipe `paper`.
Letters: B pictures, N Gaussians, K window pixels.
"""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt
import torch

# Measured on Flickr pictures at 224 px: the largest standard deviations of three in four Gaussians after 600 steps are
# 1.38, 1.41, 1.45 and 1.6 times the start's at N = 400, 900, 1600, 3136; a window for the start covers one in four.
GROWTH = 1.4


class TorchFit:
    """The state of one fit: splats, optimiser and window."""

    def __init__(self, images: npt.NDArray[np.uint8], num_gaussians: int, device: str = "cpu") -> None:
        batch, self.height, self.width, _ = images.shape
        self.target = torch.from_numpy(images.astype(np.float32) / 255.0).reshape(-1, 3).to(device)
        columns = max(1, round(math.sqrt(num_gaussians * self.width / self.height)))
        index = torch.arange(num_gaussians, device=device)
        rows = math.ceil(num_gaussians / columns)
        cell_x, cell_y = self.width / columns, self.height / rows
        x = (index % columns + 0.5) * cell_x - 0.5
        y = (index // columns + 0.5) * cell_y - 0.5
        sigma = 0.5 * min(cell_x, cell_y)
        self.means = torch.stack([x, y], dim=-1).repeat(batch, 1, 1).requires_grad_()
        shape = torch.tensor([sigma, 0.0, sigma], device=device)
        self.cholesky = shape.repeat(batch, num_gaussians, 1).requires_grad_()
        pixel = y.round().long().clamp(0, self.height - 1) * self.width + x.round().long().clamp(0, self.width - 1)
        self.colors = self.target.reshape(batch, -1, 3)[:, pixel].clone().requires_grad_()
        reach = math.ceil(3 * GROWTH * sigma)
        offset = torch.arange(-reach, reach + 1, device=device)
        self.offset_x, self.offset_y = (g.reshape(-1) for g in torch.meshgrid(offset, offset, indexing="xy"))
        self.first = (torch.arange(batch, device=device) * self.height * self.width)[:, None, None]
        groups = [(self.means, 0.3), (self.cholesky, 0.1), (self.colors, 0.01)]
        self.optimizer = torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in groups], betas=(0.9, 0.99))

    def render(self) -> torch.Tensor:
        """The pictures [B H W, 3]."""
        x, y = (self.means[..., axis : axis + 1] for axis in (0, 1))  # [B, N, 1]
        column = x.detach().round().long() + self.offset_x  # [B, N, K]
        row = y.detach().round().long() + self.offset_y
        inside = (column >= 0) & (column < self.width) & (row >= 0) & (row < self.height)
        l00, l10, l11 = (self.cholesky[..., i : i + 1] for i in range(3))
        w0 = (column - x) / l00
        w1 = ((row - y) - l10 * w0) / l11
        distance = w0 * w0 + w1 * w1
        value = torch.exp(-0.5 * distance) * (inside & (distance <= 9.0))
        at = (self.first + row * self.width + column) * inside
        colored = value[..., None] * self.colors[:, :, None]
        return torch.zeros_like(self.target).index_add(0, at.reshape(-1), colored.reshape(-1, 3))

    def step(self) -> float:
        """One iteration; the loss before it."""
        self.optimizer.zero_grad()
        batch = self.means.shape[0]
        error = (self.render() - self.target).square().sum() / (self.height * self.width)
        loss = error + 1e-6 * self.colors.abs().sum()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()) / batch


def iterations_per_second(
    images: npt.NDArray[np.uint8],
    number: int,
    *,
    num_iters: int,
    threads: int,
    device: str = "cpu",
    batches: tuple[int, ...] = (1, 4),
) -> float:
    """Picture-iterations a second: the best of two runs with each number of pictures at a time.

    RuntimeError if the loss does not fall.
    """
    torch.set_num_threads(threads)
    best = 0.0
    for batch in sorted({min(batch, len(images)) for batch in batches}):
        fit = TorchFit(images[:batch], number, device)
        first, last = fit.step(), math.inf
        for _ in range(2):
            start = time.perf_counter()
            for _ in range(num_iters):
                last = fit.step()  # reads the loss, which waits for the device
            best = max(best, batch * num_iters / (time.perf_counter() - start))
        if not last < first:
            raise RuntimeError(f"the baseline does not learn: loss {first:.4g} before, {last:.4g} after")
    return best
