"""The native fitter, with everything that one call of `fit` holds fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from splat2d import _core
from splat2d._checks import MAX_INT
from splat2d.recipe import Recipe
from splat2d.result import FitResult

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int32]
Start = tuple[Floats, Floats, Floats, Counts]


@dataclass(frozen=True)
class Job:
    """Checked arguments of a fit."""

    pictures: npt.NDArray[np.uint8]
    recipe: Recipe
    seed: int
    threads: int
    device: str
    target_psnr: float | None
    plateau: float | None
    prune_to: int | None
    progress: Callable[[int], None] | None
    metric: Floats | None = None

    def run(self, num_gaussians: int, *, numbers: Counts | None = None, start: Start | None = None) -> FitResult:
        """One pass of the native fitter; numbers [B]: Gaussians of each picture, all at most num_gaussians."""
        settings = asdict(self.recipe) | {
            "seed": self.seed,
            "refit_iters": min(round(self.recipe.num_iters * self.recipe.refit_share), MAX_INT),
            "target_psnr": self.target_psnr or 0.0,
            "plateau": self.plateau or 0.0,
            "prune_to": self.prune_to or 0,
        }
        arrays = _core.fit(
            self.pictures,
            num_gaussians,
            numbers,
            start,
            self.metric,
            settings,
            self.threads,
            self.device,
            self.progress,
        )
        return FitResult(*arrays, self.recipe.num_iters, self.target_psnr)

    def part(self, rows: npt.NDArray[np.intp]) -> Job:
        """The same for some of the pictures."""
        return replace(self, pictures=self.pictures[rows])

    def waiting(self) -> Callable[[int], None] | None:
        """A progress callback for work after which no picture is done yet."""
        progress = self.progress
        return None if progress is None else lambda _: progress(0)
