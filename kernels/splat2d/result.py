"""What a fit hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class FitResult:
    """What `fit` found for B pictures. Rows past counts[b] are zero."""

    means: npt.NDArray[np.float32]
    """[B, N, 2] pixels."""
    cholesky: npt.NDArray[np.float32]
    """[B, N, 3] pixels."""
    colors: npt.NDArray[np.float32]
    """[B, N, 3] picture units."""
    counts: npt.NDArray[np.int32]
    """[B] Gaussians of each picture."""
    psnr: npt.NDArray[np.float32]
    """[B] dB of the unclamped render, pictures in [0, 1]; at most 100."""
    iters: npt.NDArray[np.int32]
    """[B] optimiser steps done for each picture, all rounds and refits together."""
    num_iters: int
    """Optimiser steps asked for (a refit after pruning not counted)."""
    target_psnr: float | None = None
    """dB asked for, or None."""

    @property
    def reached(self) -> npt.NDArray[np.bool_]:
        """[B]: whether the picture has the PSNR asked for. Raises ValueError where none was."""
        if self.target_psnr is None:
            raise ValueError("reached: the fit had no target_psnr")
        return np.asarray(self.psnr >= self.target_psnr)

    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """means, cholesky, colors, counts, psnr: what belongs together of a picture."""
        return self.means, self.cholesky, self.colors, self.counts, self.psnr
