"""Pictures and splats of encoded samples, as arrays."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from components.errors import PermanentError, UsageError
from components.images import ImageError, decode_rgb, fit_square
from components.records import Buffer, Encoded
from components.splats import PaddedSplats, unpack_padded

DECODE_THREADS = 4
SPLAT_BYTES = 8 * 4 + 1  # a Gaussian decoded: eight float32 and its place in the mask


class Decoder:
    """Decodes samples in a few threads.

    image_size, num_gaussians: 0 where pictures or splats are not wanted; splat_size: side in pixels of the pictures
    that all splats must be of, 0: any.
    """

    def __init__(self, *, image_size: int, num_gaussians: int, splat_size: int = 0) -> None:
        self._image_size, self._num_gaussians = image_size, num_gaussians
        self._picture = (splat_size, splat_size) if splat_size else None
        self.bytes_per_sample = image_size * image_size * 3 + num_gaussians * SPLAT_BYTES
        threads = min(DECODE_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def _image(self, key: str, data: Buffer) -> npt.NDArray[np.uint8]:
        try:
            image = decode_rgb(bytes(data))
        except ImageError as error:
            raise PermanentError(f"sample {key!r}: {error}; run the download again") from error
        if image.shape[:2] != (self._image_size, self._image_size):
            image = fit_square(image, self._image_size)
        return image

    def images(self, samples: Encoded) -> npt.NDArray[np.uint8]:
        """[B, H, W, 3]; PermanentError naming the sample that cannot be decoded."""
        if samples.images is None:
            raise UsageError("these samples were read without pictures")
        return np.stack(list(self._pool.map(self._image, samples.keys, samples.images)))

    def splats(self, samples: Encoded) -> PaddedSplats:
        """Padded to num_gaussians; PermanentError naming the sample that is damaged, has too many or another size."""
        if samples.splats is None:
            raise UsageError("these samples were read without splats")
        keys = samples.keys
        return unpack_padded(
            samples.splats, self._num_gaussians, lambda i: f"sample {keys[i]!r}", picture=self._picture
        )
