"""The benchmarks' own C++: compiled on the fly into build/benchmarks, run as programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pybind11
import splat2d
from choices import pairs_inside

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "benchmarks"
OPERATIONS = 50
"""Floating-point operations a pair of Gaussian and pixel, render and gradient together (exp counted as part)."""


def run(command: Sequence[str | Path]) -> str:
    """Standard output; RuntimeError with what the command wrote where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def measured_peak(threads: int) -> dict[str, Any]:
    """fp32 peak of `threads` threads at once: isa, gflops [threads] a second of processor time, wall_gflops."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "peak"
    compiler = os.environ.get("CXX", "c++")
    run([compiler, "-std=c++20", "-O3", "-pthread", HERE / "native" / "peak.cpp", "-o", program])
    peak: dict[str, Any] = json.loads(run([program, str(threads)]))
    return peak


@contextmanager
def written(images: npt.NDArray[np.uint8], result: splat2d.FitResult) -> Iterator[Path]:
    """A file of pictures and splats as the programs read it: int32 B, H, W, N, then the arrays."""
    head = np.array([*images.shape[:3], result.means.shape[1]], np.int32)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        for part in (head, images, result.means, result.cholesky, result.colors):
            file.write(part.tobytes())
        file.flush()
        yield Path(file.name)


def build_roofline() -> Path:
    """The program that times the kernels alone, built from the same sources and flags as the module."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise RuntimeError("no cmake on PATH: it builds the program that times the kernels (pip install cmake)")
    folder = BUILD / "kernels"
    options = ["-DSPLAT2D_CUDA=OFF", "-DSPLAT2D_IN_PLACE=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    options += ["-DCMAKE_BUILD_TYPE=Release", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    run([cmake, "-S", HERE.parent / "kernels", "-B", folder, *options])
    run([cmake, "--build", folder, "--target", "splat2d_roofline", "-j", "2"])
    return folder / "splat2d_roofline"


def roofline(
    images: npt.NDArray[np.uint8], number: int, recipe: str, *, threads: int, runs: int = 20
) -> dict[str, Any]:
    """Render and gradient of fitted splats, alone: seconds of processor time and GFLOP/s a core, by counted pairs.

    gflops: with preparation and lists; gflops_passes: the two passes over the pixels alone.
    """
    result = splat2d.fit(images, number, recipe=recipe, threads=threads)
    batch, height, width, _ = images.shape
    pairs = sum(
        pairs_inside(means, cholesky, height, width)
        for means, cholesky in zip(result.means, result.cholesky, strict=True)
    )
    with written(images, result) as path:
        timed = json.loads(run([build_roofline(), path, str(threads), str(runs)]))
    if timed["backend"] != splat2d.backend():
        raise RuntimeError(f"the module runs {splat2d.backend()}, the program {timed['backend']}")
    return {
        "pairs_mean": round(pairs / batch),
        "recipe": recipe,
        "ms_an_iteration": 1e3 * timed["whole_s"] / batch,
        "gflops": 1e-9 * OPERATIONS * pairs / timed["whole_s"],
        "gflops_passes": 1e-9 * OPERATIONS * pairs / timed["passes_s"],
    }


def compiled_cuda(source: str, architecture: str) -> Path:
    """A program of benchmarks/native built by nvcc for one architecture, such as sm_90."""
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if nvcc is None:
        raise RuntimeError("no nvcc on PATH: it builds the benchmarks' CUDA programs")
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / f"{source}_{architecture}"
    warnings = ["-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra"]
    include = HERE.parent / "kernels" / "include"
    options = ["-std=c++20", "-O3", f"-arch={architecture}", f"-I{include}", *warnings]
    run([nvcc, *options, HERE / "native" / f"{source}.cu", "-o", program])
    return program


def sorted_fit(
    program: Path, images: npt.NDArray[np.uint8], number: int, num_iters: int, *, on_host: bool = False
) -> dict[str, Any]:
    """The recipe `paper` by the sort-based rasteriser, one picture after the other: seconds, psnr_db [B]."""
    recipe = splat2d.RECIPES["paper"]
    start = splat2d.fit(images, number, recipe=recipe, num_iters=0)
    names = (
        "lr_position",
        "lr_shape",
        "lr_color",
        "lr_final",
        "beta1",
        "beta2",
        "epsilon",
        "lambda_color",
        "scale_min",
    )
    settings = [str(getattr(recipe, name)) for name in names]
    with written(images, start) as path:
        out = run([program, path, str(num_iters), str(len(images)), str(int(on_host)), *settings])
    result: dict[str, Any] = json.loads(out)
    return result
