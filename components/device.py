"""Where training and evaluation run, and in which number format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from components.errors import UsageError


def pick_device(device: str, threads: int = 0) -> torch.device:
    """The torch device for `auto`, `cpu` or `cuda`; sets torch's CPU threads to `threads` where that is above 0.

    Raises UsageError for another name, and for `cuda` where torch sees no GPU.
    """
    if threads > 0:
        torch.set_num_threads(threads)
    if device not in {"auto", "cpu", "cuda"}:
        raise UsageError(f"device is {device!r}; choose one of: auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        raise UsageError(
            f"device is 'cuda', but torch {torch.__version__} ({build}) sees no GPU; choose device cpu or auto, "
            "or install a CUDA build of torch and check nvidia-smi"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def precision(device: torch.device) -> str:
    """`bf16` where the device multiplies bfloat16 in hardware, else `fp32`."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    """Run the towers in the device's fastest safe format; losses belong outside, in float32.

    On a CPU with bfloat16 a training step takes a third of its float32 time, but only without torch's flash attention,
    whose backward pass alone costs more than all of the rest there (torch 2.13).
    """
    enabled = precision(device) == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), same_attention(device):
        yield


@contextmanager
def same_attention(device: torch.device) -> Iterator[None]:
    """Attention as in mixed_precision: for a backward pass that computes activations again, beside nothing else."""
    if precision(device) == "bf16" and device.type == "cpu":
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield
