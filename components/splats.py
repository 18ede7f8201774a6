"""Splats: a picture as additive 2D Gaussians; validated, packed to .gs2d, rendered, padded into batches.

    image(x, y) = sum_i colors_i * exp(-1/2 d^T Sigma_i^-1 d),   d = (x, y) - means_i,   Sigma_i = L_i L_i^T

(GaussianVision, arXiv 2509.22615). Letters: N Gaussians, B pictures, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import splat2d

from components.errors import PermanentError

Floats = npt.NDArray[np.float32]

BYTES_PER_PARAMETER = 2
PARAMETERS_PER_GAUSSIAN = 8


def _field(name: str, values: npt.ArrayLike, shape: tuple[int, int]) -> Floats:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.shape != shape:
        raise PermanentError(f"splats: expected {name} [{shape[0]}, {shape[1]}], got {list(array.shape)}")
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.nonzero(~finite.all(axis=1))[0][0])
        raise PermanentError(f"splats: {name}[{row}] is {array[row].tolist()}; every value must be finite")
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False)
class Splats:
    """One picture's Gaussians; read-only float32 arrays.

    means [N, 2]: pixels, x right, y down, pixel centres at integers. cholesky [N, 3]: (l00, l10, l11) of the lower
    triangular L in pixels, l00 and l11 above 0. colors [N, 3]: any sign, pictures lie in [0, 1]. N may be 0.
    Raises PermanentError where shapes disagree or a value is not finite or not above 0.
    """

    means: Floats
    cholesky: Floats
    colors: Floats
    width: int
    height: int

    def __post_init__(self) -> None:
        count = len(np.atleast_1d(self.means))
        for name, columns in (("means", 2), ("cholesky", 3), ("colors", 3)):
            object.__setattr__(self, name, _field(name, getattr(self, name), (count, columns)))
        if self.width < 1 or self.height < 1:
            raise PermanentError(f"splats: the picture is {self.width} x {self.height}; both must be at least 1")
        flat = (self.cholesky[:, [0, 2]] <= 0).any(axis=1)
        if flat.any():
            row = int(np.nonzero(flat)[0][0])
            raise PermanentError(
                f"splats: cholesky[{row}] is {self.cholesky[row].tolist()}; l00 and l11 must be above 0"
            )

    def __len__(self) -> int:
        return len(self.means)

    def pack(self) -> tuple[bytes, int]:
        """Bytes of a .gs2d file (docs/splat-format.md) and how many values it holds clamped."""
        data, num_clamped = splat2d.encode(self.means, self.cholesky, self.colors, self.width, self.height)
        return data, num_clamped

    @classmethod
    def unpack(cls, data: bytes | memoryview, where: str = "splats") -> Splats:
        """Read a .gs2d file's bytes; PermanentError, naming `where`, on anything malformed."""
        try:
            decoded = splat2d.decode(data)
        except ValueError as error:
            raise PermanentError(f"{where}: {error}") from None
        return cls(*decoded)

    def render(self, *, threads: int = 1) -> Floats:
        """The picture [H, W, 3] they add up to, not clamped to [0, 1]; black where no Gaussian is left."""
        if not len(self):
            return np.zeros((self.height, self.width, 3), np.float32)
        picture: Floats = splat2d.render(
            self.means[None], self.cholesky[None], self.colors[None], self.height, self.width, threads=threads
        )[0]
        return picture


@dataclass(frozen=True, eq=False)
class PaddedSplats:
    """Splats of B pictures in arrays of one size; rows from counts[b] on are zero.

    means [B, N, 2], cholesky [B, N, 3], colors [B, N, 3] float32; counts [B] int32.
    """

    means: Floats
    cholesky: Floats
    colors: Floats
    counts: npt.NDArray[np.int32]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """[B, N]: True where a row is a Gaussian, False where it is padding."""
        return np.arange(self.means.shape[1], dtype=np.int32)[None] < self.counts[:, None]


def pad(
    splats: Sequence[Splats], num_gaussians: int, name: Callable[[int], str] = "splats {} of the batch".format
) -> PaddedSplats:
    """Bring pictures to `num_gaussians` rows each; PermanentError, with name(i), where picture i has more."""
    shape = (len(splats), num_gaussians)
    means, cholesky, colors = (np.zeros((*shape, columns), np.float32) for columns in (2, 3, 3))
    counts = np.array([len(one) for one in splats], np.int32).reshape(len(splats))
    for index, one in enumerate(splats):
        if len(one) > num_gaussians:
            raise PermanentError(f"{name(index)}: {len(one)} Gaussians; room is for {num_gaussians}")
        means[index, : len(one)] = one.means
        cholesky[index, : len(one)] = one.cholesky
        colors[index, : len(one)] = one.colors
    return PaddedSplats(means, cholesky, colors, counts)


def render_pictures(padded: PaddedSplats, height: int, width: int, *, threads: int = 1) -> npt.NDArray[np.uint8]:
    """Pictures [B, height, width, 3] as one would store them: rendered, clipped to [0, 1], rounded to 0..255.

    Black where no Gaussian is left. threads: 0 takes all cores.
    """
    drawn = splat2d.render(
        padded.means, padded.cholesky, padded.colors, height, width, counts=padded.counts, threads=threads
    )
    pictures: npt.NDArray[np.uint8] = np.rint(np.clip(drawn, 0, 1) * 255).astype(np.uint8)
    return pictures


def unpack_padded(
    files: Sequence[bytes | memoryview],
    num_gaussians: int,
    name: Callable[[int], str] = "splats {} of the batch".format,
    *,
    picture: tuple[int, int] | None = None,
) -> PaddedSplats:
    """Read .gs2d files' bytes into a padded batch in one native call: what `pad` makes of `Splats.unpack`.

    picture: width and height that all must have; None: any. PermanentError on anything malformed, of another picture
    size or with more than `num_gaussians`; name(i) is what it calls file i.
    """
    try:
        decoded = splat2d.decode_batch(files, num_gaussians)
    except ValueError:
        pad([Splats.unpack(data, name(i)) for i, data in enumerate(files)], num_gaussians, name)  # names the culprit
        raise
    if picture is not None and (other := (decoded.sizes != np.array(picture)).any(axis=1)).any():
        index = int(np.flatnonzero(other)[0])
        width, height = decoded.sizes[index].tolist()
        raise PermanentError(
            f"{name(index)}: its splats are of a picture of {width} x {height} pixels, expected {picture[0]} x "
            f"{picture[1]}; fit the splats again"
        )
    return PaddedSplats(decoded.means, decoded.cholesky, decoded.colors, decoded.counts)


def compression_ratio(width: int, height: int, num_gaussians: float) -> float:
    """W * H * 3 bytes of raw RGB over N * 8 * 2 bytes of splats: the paper's definition (arXiv 2509.22615).

    It is against raw RGB. A JPEG of the same photograph may well be smaller than the splats: show its bytes beside
    this figure. 224 x 224 at 3136, 1600, 900, 400 Gaussians: 3.00, 5.88, 10.45, 23.52. PermanentError for no Gaussians.
    """
    if num_gaussians <= 0:
        raise PermanentError(f"compression ratio of {num_gaussians} Gaussians; there must be more than 0")
    return width * height * 3 / (num_gaussians * PARAMETERS_PER_GAUSSIAN * BYTES_PER_PARAMETER)
