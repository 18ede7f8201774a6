"""One fit, timed whole: initialisation, iterations, .gs2d files written and read back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import splat2d

from components.progress import progress

Pixels = npt.NDArray[np.uint8]


def complete(
    images: Sequence[Pixels], number: int, recipe: str, num_iters: int, *, threads: int, device: str, label: str = ""
) -> dict[str, Any]:
    """Fit pictures of one size; seconds from uint8 pictures to splats read back from files, PSNR of what was read.

    wall_s, cpu_s: fit, encoding, files and decoding; fit_wall_s, fit_cpu_s: the fit alone. psnr_db [B] in dB, float
    render not clamped. RuntimeError where the files are more than 0.1 dB from what the fit reports.
    """
    batch = np.stack(images)
    height, width = batch.shape[1:3]
    label = label or f"N {number}, {recipe}, {num_iters} its"
    with progress(label, total=len(batch), unit="images") as bar, tempfile.TemporaryDirectory() as folder:
        start, start_cpu = time.perf_counter(), time.process_time()
        result = splat2d.fit(
            batch,
            number,
            recipe=recipe,
            num_iters=num_iters,
            threads=threads,
            device=device,
            progress=lambda done: bar.advance(done - bar.done),
        )
        fit_wall, fit_cpu = time.perf_counter() - start, time.process_time() - start_cpu
        num_bytes = 0
        for index, count in enumerate(result.counts):
            parts = (result.means[index, :count], result.cholesky[index, :count], result.colors[index, :count])
            data, _ = splat2d.encode(*parts, width, height)
            Path(folder, f"{index}.gs2d").write_bytes(data)
            num_bytes += len(data)
        decoded = [splat2d.decode(Path(folder, f"{index}.gs2d").read_bytes()) for index in range(len(batch))]
        wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    psnr = np.array([shown_db(one, image) for one, image in zip(decoded, batch, strict=True)])
    if np.abs(psnr - result.psnr).max() > 0.1:
        raise RuntimeError(f"fit reports {result.psnr.mean():.3f} dB, its files show {psnr.mean():.3f} dB")
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "fit_wall_s": fit_wall,
        "fit_cpu_s": fit_cpu,
        "num_images": len(batch),
        "bytes_mean": num_bytes / len(batch),
        "psnr_db": [round(float(value), 4) for value in psnr],
    }


def shown_db(splats: splat2d.Decoded, image: Pixels) -> float:
    """PSNR in dB of what a file shows."""
    parts = (splats.means[None], splats.cholesky[None], splats.colors[None])
    picture = splat2d.render(*parts, splats.height, splats.width, threads=1)
    return float(splat2d.psnr(picture, image[None])[0])


def short_run_rate(
    images: Pixels, number: int, recipe: str, *, threads: int, device: str, num_iters: int = 100, runs: int = 5
) -> float:
    """Picture-iterations a second by wall clock, measured as the PyTorch baseline is.

    A few pictures, short runs, the best one, less the time of the start.
    """

    def seconds(num_iters: int) -> float:
        start = time.perf_counter()
        splat2d.fit(images, number, recipe=recipe, num_iters=num_iters, threads=threads, device=device)
        return time.perf_counter() - start

    start_only = min(seconds(0) for _ in range(runs))
    return len(images) * num_iters / (min(seconds(num_iters) for _ in range(runs)) - start_only)
