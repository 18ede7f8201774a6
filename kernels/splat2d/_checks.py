"""Checks at the boundary: both what was expected and what was given are named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from splat2d import _core

MAX_SIDE = 32768
"""Rows and columns are kept in 16 bits."""

MAX_INT = 2**31 - 1
MAX_METRIC = 1e4
"""Of a metric's values: gradients stay finite."""

MAX_COLOR = 1e4
"""Of splats to start from, in picture units: far beyond any fit, and squares stay finite."""


def described(array: npt.NDArray[Any]) -> str:
    """For messages: "float32 [3, 4]"."""
    return f"{array.dtype} {list(array.shape)}"


def images_of(images: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Pictures as contiguous uint8 [B, H, W, 3]; a single one becomes a batch of one, grey becomes three channels.

    A last axis of 1 or 3 is taken for channels: [B, H, 3] is one picture of B rows, not B grey ones.
    """
    array = np.asarray(images)
    given = described(array)
    if array.ndim in (2, 3) and array.shape[-1] not in (1, 3):
        array = array[..., None]
    if array.ndim == 2:  # one grey picture, 1 or 3 pixels wide
        array = array[..., None]
    if array.ndim == 3:
        array = array[None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape[1:]:
        raise ValueError(f"expected images uint8 [B, H, W, 3], or grey [B, H, W, 1] or [B, H, W], got {given}")
    size_of(array.shape[1], array.shape[2])
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:3], 3)))


def size_of(height: int, width: int) -> None:
    """Refuse pictures without pixels and those too large for the kernels."""
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"expected height and width in 1..{MAX_SIDE}, got {height} and {width}")


def whole(value: Any, name: str, low: int, high: int = MAX_INT) -> int:
    """An integer argument in `low`..`high`; floats and booleans are refused."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"expected {name}: an integer >= {low}, got {value!r}")
    if value > high:
        raise ValueError(f"expected {name}: an integer of at most {high}, got {value!r}")
    return int(value)


def gaussians_of(num_gaussians: int, height: int, width: int) -> int:
    """1 <= N <= H W, or ValueError."""
    number = whole(num_gaussians, "num_gaussians", 1)
    if number > height * width:
        raise ValueError(
            f"expected num_gaussians of at most the picture's {height} x {width} = {height * width} pixels,"
            f" got {number}"
        )
    return number


def splats_of(
    means: npt.ArrayLike, cholesky: npt.ArrayLike, colors: npt.ArrayLike
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Splats as contiguous, finite float32 [B, N, 2], [B, N, 3], [B, N, 3]."""
    arrays = [np.asarray(values) for values in (means, cholesky, colors)]
    shape = arrays[0].shape
    out = []
    for array, name, last in zip(arrays, ("means", "cholesky", "colors"), (2, 3, 3), strict=True):
        if array.ndim != 3 or array.shape[:2] != shape[:2] or array.shape[2] != last or array.dtype.kind != "f":
            raise ValueError(f"expected {name} float [B, N, {last}] with B, N of means, got {described(array)}")
        if array.shape[1] == 0:
            raise ValueError(f"expected {name} of at least one Gaussian, got {described(array)}")
        floats = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(floats).all():
            raise ValueError(f"expected finite {name}, got NaN or infinity among {described(array)}")
        out.append(floats)
    return out[0], out[1], out[2]


def counts_of(counts: npt.ArrayLike | None, batch: int, number: int) -> npt.NDArray[np.int32]:
    """Gaussians in use [B], each in 0..number; all of them where None is given."""
    used = np.full(batch, number, np.int32) if counts is None else np.asarray(counts)
    if used.shape != (batch,) or used.dtype.kind not in "iu":
        raise ValueError(f"expected counts integer [{batch}], got {described(used)}")
    if batch and (used.min() < 0 or used.max() > number):
        raise ValueError(f"expected counts in 0..{number}, got {used.min()}..{used.max()}")
    return used.astype(np.int32)


def start_of(
    start: Sequence[npt.ArrayLike], batch: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Splats to start from, one set a picture, with their counts."""
    if not isinstance(start, (tuple, list)) or len(start) not in (3, 4):
        given = f"{len(start)} arrays" if isinstance(start, (tuple, list)) else type(start).__name__
        raise ValueError(f"expected start: (means, cholesky, colors) and maybe counts, got {given}")
    try:
        arrays = splats_of(*start[:3])
    except ValueError as error:
        raise ValueError(f"start: {error}") from None
    if arrays[0].shape[0] != batch:
        raise ValueError(f"expected start for {batch} pictures, got {described(arrays[0])} as means")
    counts = counts_of(start[3] if len(start) == 4 else None, *arrays[0].shape[:2])
    for b, used in enumerate(counts):
        flat = (arrays[1][b, :used, [0, 2]] == 0).any()
        if flat:
            raise ValueError(f"start: picture {b} has a Gaussian whose l00 or l11 is 0 among its {used}; give counts")
        brightest = np.abs(arrays[2][b, :used]).max(initial=0)
        if brightest > MAX_COLOR:
            raise ValueError(
                f"start: expected colors within {MAX_COLOR:g} (1 is white), got {brightest:g} in picture {b}"
            )
    return (*arrays, counts)


def metric_of(metric: npt.ArrayLike, height: int, width: int) -> npt.NDArray[np.float32]:
    """A metric on patches, contiguous float32 [K, 3 P^2], finite and within MAX_METRIC; P divides height and width."""
    array = np.asarray(metric)
    patch = math.isqrt(array.shape[1] // 3) if array.ndim == 2 else 0
    if array.dtype.kind != "f" or array.ndim != 2 or not len(array) or not patch or array.shape[1] != 3 * patch**2:
        raise ValueError(f"expected metric float [K, 3 P^2], K and P at least 1, got {described(array)}")
    if height % patch or width % patch:
        raise ValueError(f"metric: its patches of {patch} x {patch} pixels do not tile pictures of {height} x {width}")
    floats = np.ascontiguousarray(array, dtype=np.float32)
    largest = np.abs(floats).max()
    if not largest <= MAX_METRIC:
        raise ValueError(f"expected metric within {MAX_METRIC:g}, got {largest:g} among {described(array)}")
    return floats


def above_zero(value: Any, name: str) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < np.inf:
        raise ValueError(f"expected {name}: a finite number above 0, got {value!r}")
    return float(value)


def device_of(device: str) -> None:
    """Refuse devices that this build or machine does not have, naming the remedy."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f'expected device "cpu" or "cuda", got {device!r}')
    if device == "cuda" and not _core.built_with_cuda:
        raise RuntimeError(
            'device="cuda": this splat2d was built without CUDA. Build it again where nvcc is on PATH, with'
            ' CMAKE_ARGS=-DSPLAT2D_CUDA=ON, or use device="cpu"'
        )
    if device == "cuda" and not _core.has_cuda():
        raise RuntimeError(
            'device="cuda": this splat2d was built with -DSPLAT2D_CUDA=ON or AUTO, but the CUDA runtime finds no'
            ' device; check the driver with nvidia-smi, or use device="cpu"'
        )
