"""The CUDA fitter where there is no GPU: its kernels run on the CPU, its build is imported."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pybind11
import pytest
import splat2d

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
# What fit_cuda needs besides itself; without SPLAT2D_X86 the host's part is the portable engine.
SOURCES = (
    "dispatch",
    "engine_portable",
    "grow",
    "init_adaptive",
    "init_grid",
    "memory",
    "parallel",
    "prune",
    "schedule",
    "stages",
    "warm_start",
    "workspace",
)

Fit = Callable[..., list[npt.NDArray[Any]]]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """fit_cuda.cu compiled for the CPU: one std::thread a CUDA thread."""
    folder = tmp_path_factory.mktemp("emulated")
    compiler = os.environ.get("CXX", "c++")
    flags = ["-std=c++20", "-O1", "-fPIC", "-w", f"-I{KERNELS / 'include'}", f"-I{KERNELS / 'src'}"]
    extra = ["-DSPLAT2D_EMULATED_CUDA", "-include", str(ROOT / "tests/cuda/emulated_cuda.h"), "-x", "c++"]
    jobs = {name: [str(KERNELS / "src" / f"{name}.cpp")] for name in SOURCES}
    jobs["fit_cuda"] = [*extra, str(KERNELS / "src/fit_cuda.cu")]
    jobs["emulated_fit"] = [str(ROOT / "tests/cuda/emulated_fit.cpp")]
    running = [
        subprocess.Popen([compiler, *flags, *job, "-c", "-o", str(folder / f"{name}.o")]) for name, job in jobs.items()
    ]
    assert [process.wait() for process in running] == [0] * len(running)
    library = folder / "emulated.so"
    objects = [str(folder / f"{name}.o") for name in jobs]
    subprocess.run([compiler, "-shared", "-pthread", "-o", str(library), *objects], check=True)
    function = ctypes.CDLL(str(library)).emulated_fit

    def fit(
        images: npt.NDArray[np.uint8], number: int, *, natural: bool, its: int, prune: float = 0.0, refit: int = 0
    ) -> list[npt.NDArray[Any]]:
        batch, height, width, _ = images.shape
        arrays: list[npt.NDArray[Any]] = [np.full((batch, number, k), np.nan, np.float32) for k in (2, 3, 3)]
        arrays += [np.zeros(batch, np.int32), np.zeros(batch, np.float32)]
        numbers = [ctypes.c_int(v) for v in (batch, height, width, number, natural, its)]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        threshold, again = ctypes.c_float(prune), ctypes.c_int(refit)
        assert function(ctypes.c_void_p(images.ctypes.data), *numbers, threshold, again, *pointers) == 1
        return arrays

    return fit


def pictures(batch: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    waves = [np.stack([np.sin((b + 1 + k) * x / 7 + k * y / 9) for k in range(3)], axis=-1) for b in range(batch)]
    return np.ascontiguousarray((127 + 120 * np.stack(waves)).astype(np.uint8))


def recipe(name: str, **changes: Any) -> splat2d.Recipe:
    """The settings that emulated_fit.cpp runs with."""
    settings = {"beta1": 0.8, "beta2": 0.95, "lr_final": 0.01, "lambda_color": 0.0, "scale_min": 0.5, "color_steps": 3}
    if name == "default":
        settings |= {
            "lr_position": 0.2,
            "lr_shape": 0.1,
            "lr_color": 0.2,
            "start_share": 1.0,
            "grow_steps": 0,
            "move_steps": 0,
        }
    return replace(splat2d.RECIPES[name], **(settings | changes))


@pytest.mark.parametrize("name", ["default", "paper"])
def test_kernels_do_what_the_cpu_fit_does(emulated: Fit, name: str) -> None:
    # 19 x 37: tiles at the edge are cut off; 260 Gaussians: more than one round of kTileThreads.
    images = pictures(2, 19, 37)
    means, cholesky, colors, counts, psnr = emulated(images, 260, natural=name == "default", its=2)
    cpu = splat2d.fit(images, 260, recipe=recipe(name), num_iters=2)
    assert (counts == 260).all()
    # The same steps on sums in another order; two steps do not let the rounding grow.
    np.testing.assert_allclose(psnr, cpu.psnr, atol=0.02)
    assert np.abs(means - cpu.means).mean() < 2e-3
    assert np.abs(colors - cpu.colors).mean() < 2e-3
    assert np.abs(cholesky - cpu.cholesky).mean() < 2e-3
    start = splat2d.fit(images, 260, recipe=recipe(name), num_iters=0)
    assert np.abs(means - start.means).mean() > 1e-2  # it moved


def test_kernels_prune_and_refit(emulated: Fit) -> None:
    images = pictures(2, 16, 16)
    images[0] = 150 + images[0] // 3  # nothing to drop here: this picture is not fitted again
    images[1, :, :8] = 0
    *arrays, counts, psnr = emulated(images, 12, natural=False, its=2, prune=0.1, refit=2)
    settings = recipe("paper", refit_share=1.0)
    cpu = splat2d.fit(images, 12, recipe=settings, num_iters=2, prune_threshold=0.1)
    np.testing.assert_array_equal(counts, cpu.counts)
    assert counts[0] == 12
    assert 0 < counts[1] < 12
    np.testing.assert_allclose(psnr, cpu.psnr, atol=0.02)
    for ours, theirs in zip(arrays, (cpu.means, cpu.cholesky, cpu.colors), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-3)


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A build of its own with the CMake of this environment; the module lands in folder."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert cmake is not None
    configure = [cmake, "-S", str(KERNELS), "-B", str(folder), f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DSPLAT2D_IN_PLACE=OFF", "-DSPLAT2D_WERROR=ON", *options]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    if done.returncode:
        return done
    compiled = subprocess.run([cmake, "--build", str(folder), "-j2"], capture_output=True, text=True, check=False)
    return subprocess.CompletedProcess(configure, compiled.returncode, done.stdout + compiled.stdout, compiled.stderr)


@pytest.mark.full
def test_the_cuda_build_imports_without_a_gpu(tmp_path: Path) -> None:
    """nvcc is required here: without it the build fails, and so does the test."""
    done = build(tmp_path / "build", "-DSPLAT2D_CUDA=ON")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "splat2d: CPU and CUDA" in done.stdout
    package = tmp_path / "splat2d"
    package.mkdir()
    (module,) = (tmp_path / "build").glob("_core*.so")
    for source in [*(KERNELS / "splat2d").glob("*.py"), module]:
        shutil.copy(source, package)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
sys.meta_path[:] = [finder for finder in sys.meta_path if "_editable" not in type(finder).__module__]
import numpy as np, splat2d
from splat2d import _core
assert _core.__file__.startswith({str(tmp_path)!r}), _core.__file__
assert _core.built_with_cuda
images = np.zeros((1, 8, 8, 3), np.uint8)
assert splat2d.fit(images, 4, num_iters=3).psnr[0] > 30
try:
    result = splat2d.fit(images, 4, num_iters=3, device="cuda")
except RuntimeError as error:
    assert not splat2d.has_cuda() and "no device" in str(error), error
else:
    assert splat2d.has_cuda() and result.psnr[0] > 30
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.full
def test_cuda_on_without_a_compiler_fails(tmp_path: Path) -> None:
    done = build(tmp_path / "on", "-DSPLAT2D_CUDA=ON", "-DCMAKE_CUDA_COMPILER=NOTFOUND")
    assert done.returncode != 0
    assert "there is no CUDA compiler" in done.stderr
    off = build(tmp_path / "off", "-DSPLAT2D_CUDA=OFF")
    assert off.returncode == 0, off.stdout + off.stderr
    assert "splat2d: CPU only (SPLAT2D_CUDA=OFF)" in off.stdout
