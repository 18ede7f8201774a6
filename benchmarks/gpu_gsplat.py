"""The package gsplat, where it is installed, as it is used for one picture: render, backward, Adam.

Its compositing is front to back with opacity, so PSNR is not comparable; the time of an iteration is.
"""

from __future__ import annotations

import importlib.util
import math
import time

import numpy as np
import numpy.typing as npt
import torch


def iterations_per_second(image: npt.NDArray[np.uint8], number: int, num_iters: int = 200) -> dict[str, float]:
    """Iterations a second for one picture [H, W, 3]; RuntimeError without the package or a GPU."""
    if importlib.util.find_spec("gsplat") is None or not torch.cuda.is_available():
        raise RuntimeError("gsplat is not installed here, or there is no GPU")
    from gsplat import rasterization

    height, width = image.shape[:2]
    target = torch.from_numpy(image.astype(np.float32) / 255.0).cuda()
    columns = max(1, round(math.sqrt(number * width / height)))
    index, rows = torch.arange(number, device="cuda"), math.ceil(number / columns)
    x = (index % columns + 0.5) * (width / columns)
    y = (index // columns + 0.5) * (height / rows)
    # Seen straight on by an orthographic camera of one unit a pixel, all at one depth.
    means = torch.stack([x, y, torch.ones_like(x)], dim=-1).requires_grad_()
    scales = torch.full((number, 3), 0.5 * min(width / columns, height / rows), device="cuda").requires_grad_()
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0], device="cuda").repeat(number, 1).requires_grad_()
    colors = torch.full((number, 3), 0.5, device="cuda").requires_grad_()
    opacities = torch.full((number,), 0.9, device="cuda").requires_grad_()
    camera = {"viewmats": torch.eye(4, device="cuda")[None], "Ks": torch.eye(3, device="cuda")[None]}
    parameters = [means, scales, quats, colors, opacities]
    optimizer = torch.optim.Adam([{"params": [p], "lr": 0.01} for p in parameters], fused=True)

    def step() -> float:
        optimizer.zero_grad()
        picture, _, _ = rasterization(
            means, quats, scales, opacities, colors, width=width, height=height, camera_model="ortho", **camera
        )
        loss = (picture[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    first = step()
    start = time.perf_counter()
    for _ in range(num_iters):
        last = step()
    seconds = time.perf_counter() - start
    if not last < first:
        raise RuntimeError(f"gsplat does not learn here: loss {first:.4g} before, {last:.4g} after")
    return {"iterations_per_s": num_iters / seconds}
