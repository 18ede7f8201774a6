"""The CUDA code as a program of its own (tests/cuda/cases.cu): on the CPU through the emulator, or on a device."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import splat2d

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
Images = npt.NDArray[np.uint8]
Splats = tuple[npt.NDArray[np.float32], ...]

ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-sections=cuda_shared", "-g1")
THREADS = ("-fsanitize=thread", "-DEMULATED_THREADS", "-g1")
RACE = 66  # what ThreadSanitizer makes of an exit code


def host_sources(kernels: Path = KERNELS) -> list[Path]:
    """What fit_cuda.cu needs besides itself and more; the host's part is the portable engine."""
    others = ("bind", "codec", "engine_avx")
    return [path for path in sorted((kernels / "src").glob("*.cpp")) if not path.name.startswith(others)]


def compile_all(jobs: list[list[str]], at_once: int = 2) -> None:
    """Compilers side by side; the first that fails fails the test with its message."""
    for start in range(0, len(jobs), at_once):
        group = [
            subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for job in jobs[start : start + at_once]
        ]
        for process in group:
            output, _ = process.communicate()
            assert process.returncode == 0, f"{' '.join(map(str, process.args))}\n{output}"


def host_objects(folder: Path, *flags: str) -> list[str]:
    """The host's part, compiled into `folder`."""
    compiler = os.environ.get("CXX", "c++")
    common = [
        compiler,
        "-std=c++20",
        "-O1",
        "-fPIC",
        "-pthread",
        "-w",
        "-Wno-psabi",
        f"-I{KERNELS / 'include'}",
        *flags,
    ]
    jobs = [[*common, "-c", str(path), "-o", str(folder / f"{path.stem}.o")] for path in host_sources()]
    compile_all(jobs)
    return [job[-1] for job in jobs]


def emulated(folder: Path, objects: list[str], *flags: str, kernels: Path = KERNELS) -> Path:
    """cases.cu and the kernels in `kernels` for the CPU, with the sanitizer of `flags`."""
    folder.mkdir(exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    program = folder / "cases"
    emulator = ["-DSPLAT2D_EMULATED_CUDA", "-include", str(ROOT / "tests/cuda/emulated_cuda.h"), "-x", "c++"]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    common = [compiler, "-std=c++20", "-O1", "-fPIC", "-pthread", *flags]
    includes = [f"-I{kernels / 'include'}", f"-I{kernels / 'src'}"]
    compile_all(
        [
            [*common, *warnings, *includes, *emulator, "-c", str(ROOT / "tests/cuda/cases.cu"), "-o", f"{program}.o"],
            [*common, "-o", str(program), f"{program}.o", *objects],
        ],
        at_once=1,
    )
    return program


def on_device(folder: Path, objects: list[str]) -> Path:
    """The same program for the GPU of this machine."""
    nvcc = shutil.which("nvcc")
    assert nvcc is not None
    program = folder / "cases_device"
    includes = [f"-I{KERNELS / 'include'}", f"-I{KERNELS / 'src'}"]
    source = str(ROOT / "tests/cuda/cases.cu")
    compile_all([[nvcc, "-std=c++20", "-O2", "-arch=native", *includes, "-o", str(program), source, *objects]])
    return program


@dataclass(frozen=True)
class Fitted:
    """What mode=fit wrote."""

    means: npt.NDArray[np.float32]
    cholesky: npt.NDArray[np.float32]
    colors: npt.NDArray[np.float32]
    psnr: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int32]
    iters: npt.NDArray[np.int32]
    allocations: str
    """How many of device and pinned memory there were, where emulated."""
    stderr: str

    def arrays(self) -> list[npt.NDArray[Any]]:
        return [self.means, self.cholesky, self.colors, self.psnr, self.counts, self.iters]

    def assert_same(self, other: Fitted) -> None:
        for ours, theirs in zip(self.arrays(), other.arrays(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


class Program:
    """Runs cases, each in a process of its own."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder, self.number = path, folder, 0

    def run(self, mode: str, data: list[npt.NDArray[Any]], **settings: Any) -> tuple[int, bytes, str, str]:
        """The exit code, what was written, stdout and stderr. Names in capitals go to the environment."""
        self.number += 1
        source, target = (self.folder / f"{self.path.name}-{self.number}.{end}" for end in ("in", "out"))
        source.write_bytes(b"".join(array.tobytes() for array in data))
        environment = {name: str(value) for name, value in settings.items() if name.isupper()}
        arguments = [f"{name}={value}" for name, value in settings.items() if not name.isupper()]
        done = subprocess.run(
            [str(self.path), str(source), str(target), f"mode={mode}", *arguments],
            env={**os.environ, **environment, "TSAN_OPTIONS": f"halt_on_error=1 exitcode={RACE}"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, target.read_bytes() if target.exists() else b"", done.stdout, done.stderr

    def fit(
        self,
        images: Images,
        number: int,
        recipe: splat2d.Recipe,
        start: Splats = (),
        **settings: Any,
    ) -> Fitted:
        """fit_cuda; fails the test where it fails."""
        code, out, stdout, stderr = self.try_fit(images, number, recipe, start, **settings)
        assert code == 0, f"exit code {code}\n{stderr}"
        batch = len(images)
        sizes = [batch * number * 2, batch * number * 3, batch * number * 3, batch, batch, batch]
        parts = np.split(np.frombuffer(out, np.float32), np.cumsum(sizes)[:-1])
        shaped = [part.reshape(batch, number, -1) for part in parts[:3]]
        return Fitted(*shaped, parts[3], parts[4].view(np.int32), parts[5].view(np.int32), stdout, stderr)

    def try_fit(
        self,
        images: Images,
        number: int,
        recipe: splat2d.Recipe,
        start: Splats = (),
        **settings: Any,
    ) -> tuple[int, bytes, str, str]:
        """As `run`."""
        batch, height, width, _ = images.shape
        fields = ("num_iters", "lr_position", "lr_shape", "lr_color", "lr_final", "beta1", "beta2", "lambda_color")
        fields += ("color_steps", "scale_min", "prune_threshold")
        fields += ("start_share", "grow_first", "grow_last", "grow_steps")
        fields += ("move_share", "move_last", "move_steps")
        given = {name: getattr(recipe, name) for name in fields}
        given |= {"batch": batch, "height": height, "width": width, "num_gaussians": number}
        given |= {"prune_to": 0, "by_loss": int(recipe.prune_score == "loss")}
        given |= {"natural": int(recipe.optimizer == "natural")}
        given |= {"refit_iters": round(recipe.num_iters * recipe.refit_share)}
        given["start"] = start[0].shape[1] if start else 0
        return self.run("fit", [images, *start], **(given | settings))

    def moments(
        self, means: Any, cholesky: Any, colors: Any, image: Images, **settings: Any
    ) -> tuple[npt.NDArray[np.float64], float]:
        """Moments [N, 8] of each Gaussian by place, list and fit_tile, and the squared error."""
        height, width, _ = image.shape
        splats = [np.asarray(array, np.float32) for array in (means, cholesky, colors)]
        shape = {"batch": 1, "height": height, "width": width, "num_gaussians": len(splats[0])}
        code, out, _, stderr = self.run("moments", [image, *splats], **(shape | settings))
        assert code == 0, f"exit code {code}\n{stderr}"
        values = np.frombuffer(out, np.float32).astype(np.float64)
        return values[:-1].reshape(-1, 8), float(values[-1])


def assert_like_cpu(fitted: Fitted, cpu: splat2d.FitResult, tolerance: float) -> None:
    """The same steps on sums in another order; a few steps do not let the rounding grow."""
    np.testing.assert_array_equal(fitted.counts, cpu.counts)
    np.testing.assert_array_equal(fitted.iters, cpu.iters)
    np.testing.assert_allclose(fitted.psnr, cpu.psnr, atol=tolerance)
    for ours, theirs in zip(fitted.arrays()[:3], (cpu.means, cpu.cholesky, cpu.colors), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


def pictures(batch: int, height: int, width: int) -> Images:
    """Coloured waves, each picture others."""
    y, x = np.mgrid[:height, :width]
    waves = [np.stack([np.sin((b + 1 + k) * x / 7 + k * y / 9) for k in range(3)], axis=-1) for b in range(batch)]
    return np.ascontiguousarray((127 + 120 * np.stack(waves)).astype(np.uint8))


def recipe(name: str, num_iters: int, **changes: Any) -> splat2d.Recipe:
    return replace(splat2d.RECIPES[name], num_iters=num_iters, **changes)
