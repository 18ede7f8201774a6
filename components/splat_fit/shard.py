"""One image shard in, one splat shard out: decode, fit in chunks, pack, and measure what the file gives back."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import splat2d

from components.config import SplatFitParams
from components.errors import PermanentError
from components.images import EXTENSIONS, ImageError, Pixels, decode_rgb
from components.manifest import SampleNote, canonical
from components.shards import Sample, ShardIndex, write_shard
from components.splats import Floats, Splats, pad

MAX_SIDE = 16384  # of .gs2d version 1
PRUNE_SCORES: dict[str, Literal["luminance", "loss"] | None] = {"luminance": "luminance", "loss": "loss", "": None}
CHUNK_PER_THREAD = 16
CHUNK_PIXELS = 8_000_000
KEPT_FIELDS = ("txt", "cls")
FILE_COST = 0.02  # dB that a .gs2d costs at most up to 3136 Gaussians; beyond 40 dB it may be .05

Tick = Callable[[int, float], None]  # pictures done, their mean PSNR in dB; raises to stop the work


@dataclass
class _Fitted:
    """One picture's file and the figures that go with it; kept are the sample's small fields."""

    data: bytes
    psnr_db: float
    num_gaussians: int
    num_clamped: int
    num_iters: int
    raw_bytes: int
    source_bytes: int = 0
    kept: dict[str, bytes] = field(default_factory=dict)


class ShardFitter:
    """Fits the pictures of one shard as they come; no more than a chunk of each size is held decoded.

    metric: a reader's rows for splat2d.fit, whose patches all pictures must then tile.
    """

    def __init__(self, params: SplatFitParams, device: str, tick: Tick, metric: Floats | None = None) -> None:
        self._params, self.device, self._tick = params, device, tick
        self._metric = None if metric is None else metric * np.float32(params.reader_weight**0.5)
        self._patch = 1 if metric is None else math.isqrt(metric.shape[1] // 3)
        threads = params.threads or len(os.sched_getaffinity(0))
        self._threads, self._chunk = threads, CHUNK_PER_THREAD * threads
        self._waiting: dict[tuple[int, int], list[tuple[Sample, int, Pixels]]] = defaultdict(list)
        self._fitted: dict[str, _Fitted] = {}
        self._order: list[str] = []
        self.notes: list[SampleNote] = []

    def add(self, sample: Sample) -> None:
        """Take one sample; fits a chunk when enough pictures of its size wait."""
        try:
            size, pixels = self._decode(sample)
        except ImageError as error:
            self.notes.append(SampleNote(key=sample.key, outcome="failed", reason=error.reason, detail=error.detail))
            self._tick(1, math.nan)
            return
        small = Sample(sample.key, {ext: sample.fields[ext] for ext in (*KEPT_FIELDS, "json") if ext in sample.fields})
        self._order.append(sample.key)
        height, width = pixels.shape[:2]
        group = self._waiting[height, width]
        group.append((small, size, pixels))
        if len(group) >= max(1, min(self._chunk, CHUNK_PIXELS // (height * width))):
            self._flush((height, width))
        elif sum(map(len, self._waiting.values())) >= 4 * self._chunk:
            self.flush()

    def flush(self) -> None:
        """Fit all that waits."""
        for size in list(self._waiting):
            self._flush(size)

    def _decode(self, sample: Sample) -> tuple[int, Pixels]:
        ext = next((ext for ext in EXTENSIONS if ext in sample.fields), None)
        if ext is None:
            raise ImageError("missing", f"the sample has no picture, only: {', '.join(sample.fields)}")
        pixels = decode_rgb(sample.fields[ext])
        height, width = pixels.shape[:2]
        if max(height, width) > MAX_SIDE:
            raise ImageError("too_large", f"{width} x {height} pixels; a side has {MAX_SIDE} at most")
        least = self._params.min_gaussians or self._params.num_gaussians
        if least > height * width:
            detail = f"{width} x {height} = {height * width} pixels for {least} Gaussians"
            raise ImageError("too_few_pixels", detail)
        if height % self._patch or width % self._patch:
            detail = f"{width} x {height} pixels, which the reader's patches of {self._patch} do not tile"
            raise ImageError("no_patches", detail)
        return len(sample.fields[ext]), pixels

    def _flush(self, size: tuple[int, int]) -> None:
        group = self._waiting.pop(size)
        if not group:
            return
        images = np.stack([pixels for _, _, pixels in group])
        self._tick(0, math.nan)
        params = self._params
        result = splat2d.fit(
            images,
            min(params.num_gaussians, size[0] * size[1]),  # fewer only with min_gaussians: then it is "at most"
            recipe=params.recipe,
            num_iters=params.num_iters or None,
            seed=params.seed,
            threads=params.threads,
            device=self.device,
            lambda_color=None if params.lambda_color == -1 else params.lambda_color,
            target_psnr=params.target_psnr + FILE_COST if params.target_psnr else None,
            min_gaussians=params.min_gaussians or None,
            prune_score=PRUNE_SCORES[params.prune_score],
            prune_threshold=None if params.prune_threshold == -1 else params.prune_threshold,
            prune_to=params.prune_to or None,
            metric=self._metric,
            progress=lambda _: self._tick(0, math.nan),
        )
        kept: list[int] = []
        packed: list[tuple[bytes, int]] = []
        for row, (sample, _, _) in enumerate(group):
            count = int(result.counts[row])
            parts = (result.means[row, :count], result.cholesky[row, :count], result.colors[row, :count])
            if all(np.isfinite(part).all() for part in parts) and (parts[1][:, [0, 2]] > 0).all():
                packed.append(Splats(*parts, width=size[1], height=size[0]).pack())
                kept.append(row)
            else:
                note = SampleNote(key=sample.key, outcome="failed", reason="not_finite", detail="the fit diverged")
                self.notes.append(note)
        psnr = _psnr_after_file([data for data, _ in packed], images[kept], params.threads)
        for row, (data, clamped), value in zip(kept, packed, psnr, strict=True):
            sample, source_bytes, _ = group[row]
            self._fitted[sample.key] = _Fitted(
                data,
                value,
                num_gaussians=int(result.counts[row]),
                num_clamped=clamped,
                num_iters=int(result.iters[row]),
                raw_bytes=size[0] * size[1] * 3,
                source_bytes=source_bytes,
                kept=sample.fields,
            )
        self._tick(len(group), math.fsum(psnr) / max(1, len(psnr)))

    def write(self, path: Path, where: str) -> tuple[int, bytes, dict[str, float]]:
        """Write the splat shard, in the image shard's order.

        Returns the number of samples, the index's bytes, and sums over the samples (metrics of a shard entry).
        """
        self.flush()
        self.notes.sort(key=lambda note: note.key)
        done = [(key, self._fitted[key]) for key in self._order if key in self._fitted]
        layout = write_shard(path, (Sample(key, _fields(key, one, where)) for key, one in done))
        sums = {
            "psnr_db_sum": math.fsum(one.psnr_db for _, one in done),
            "num_gaussians": float(sum(one.num_gaussians for _, one in done)),
            "num_clamped": float(sum(one.num_clamped for _, one in done)),
            "num_iters": float(sum(one.num_iters for _, one in done)),
            "gs2d_bytes": float(sum(len(one.data) for _, one in done)),
            "image_bytes": float(sum(one.source_bytes for _, one in done)),
            "raw_bytes": float(sum(one.raw_bytes for _, one in done)),
        }
        if target := self._params.target_psnr:
            sums["target_reached"] = float(sum(one.psnr_db >= target for _, one in done))
        return len(done), ShardIndex.of(layout).to_bytes(), sums


def _psnr_after_file(files: list[bytes], images: Pixels, threads: int) -> list[float]:
    """PSNR in dB of what each file gives back against its picture (uint8 [B, H, W, 3])."""
    if not files:
        return []
    splats = [Splats.unpack(data) for data in files]
    batch = pad(splats, max(1, *map(len, splats)))
    height, width = images.shape[1:3]
    render = splat2d.render(
        batch.means, batch.cholesky, batch.colors, height, width, counts=batch.counts, threads=threads
    )
    return [float(value) for value in splat2d.psnr(render, images)]


def _fields(key: str, one: _Fitted, where: str) -> dict[str, bytes]:
    try:
        about: dict[str, Any] = json.loads(one.kept.get("json", b"{}"))
        if not isinstance(about, dict):
            raise TypeError("not a mapping")
    except (ValueError, TypeError) as error:
        raise PermanentError(f"{where}: {key}.json is no JSON mapping ({error}); run download again") from error
    about |= {
        "key": key,
        "psnr_db": one.psnr_db,
        "num_gaussians": one.num_gaussians,
        "num_bytes": len(one.data),
    }
    kept: Iterable[str] = (ext for ext in KEPT_FIELDS if ext in one.kept)
    return {"gs2d": one.data, **{ext: one.kept[ext] for ext in kept}, "json": canonical(about)}
