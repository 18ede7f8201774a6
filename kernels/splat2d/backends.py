"""Which code runs here."""

from __future__ import annotations

from splat2d import _core


def backend() -> str:
    """The CPU code in use: "avx512", "avx2" or "portable".

    The environment variable SPLAT2D_BACKEND forces one; RuntimeError where it cannot run.
    """
    return _core.backend()


def has_cuda() -> bool:
    """Whether this build has CUDA and a device is present."""
    return _core.has_cuda()
