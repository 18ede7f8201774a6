from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_F = npt.NDArray[np.float32]
_I = npt.NDArray[np.int32]

def fit(
    images: npt.NDArray[np.uint8],
    num_gaussians: int,
    numbers: _I | None,
    start: tuple[_F, _F, _F, _I] | None,
    metric: _F | None,
    settings: dict[str, Any],
    threads: int,
    device: str,
    progress: Callable[[int], None] | None,
) -> tuple[_F, _F, _F, _I, _F, _I]: ...
def render(means: _F, cholesky: _F, colors: _F, height: int, width: int, counts: _I, threads: int) -> _F: ...
def render_backward(means: _F, cholesky: _F, colors: _F, v_pictures: _F, threads: int) -> tuple[_F, _F, _F]: ...
def loss_and_grad(
    means: _F,
    cholesky: _F,
    colors: _F,
    images: npt.NDArray[np.uint8],
    lambda_color: float,
    threads: int,
) -> tuple[_F, _F, _F, _F]: ...
def backend() -> str: ...
def has_cuda() -> bool: ...
def peak_bytes() -> int:
    """The most bytes that the library's own arrays held at once since reset_peak_bytes, in all threads together.

    Python's arrays, the code and the threads' stacks are not in it.
    """

def reset_peak_bytes() -> None: ...

built_with_cuda: bool

class Decoded(NamedTuple):
    means: _F
    cholesky: _F
    colors: _F
    width: int
    height: int

def encode(
    means: npt.ArrayLike, cholesky: npt.ArrayLike, colors: npt.ArrayLike, width: int, height: int
) -> tuple[bytes, int]: ...
def decode(data: bytes | memoryview) -> Decoded: ...

class DecodedBatch(NamedTuple):
    means: _F
    cholesky: _F
    colors: _F
    counts: _I
    sizes: _I

def decode_batch(files: Sequence[bytes | memoryview], num_gaussians: int) -> DecodedBatch: ...
