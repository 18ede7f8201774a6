"""The CUDA fitter: its kernels run on the CPU, plain and under AddressSanitizer, and on a GPU where there is one."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cuda_cases
import numpy as np
import numpy.typing as npt
import pybind11
import pytest
import splat2d
from cuda_cases import KERNELS, Program, assert_like_cpu, pictures, recipe
from splat2d import reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def objects(folder: Path) -> list[str]:
    return cuda_cases.host_objects(folder)


@pytest.fixture(scope="module")
def plain(folder: Path, objects: list[str]) -> Program:
    return Program(cuda_cases.emulated(folder / "plain", objects), folder)


@pytest.fixture(scope="module", params=["plain", pytest.param("address", marks=pytest.mark.full), "device"])
def program(request: pytest.FixtureRequest, folder: Path) -> Program:
    """The same kernels three times: emulated, emulated under AddressSanitizer, on the GPU."""
    if request.param == "plain":
        return request.getfixturevalue("plain")  # type: ignore[no-any-return]
    if request.param == "address":
        objects = request.getfixturevalue("objects")
        return Program(cuda_cases.emulated(folder / "address", objects, *cuda_cases.ADDRESS), folder)
    if not splat2d.has_cuda():
        pytest.skip("splat2d.has_cuda() is false: no GPU, or a build without CUDA")
    return Program(cuda_cases.on_device(folder, request.getfixturevalue("objects")), folder)


SIZES = [
    (2, 19, 37, 260, 2),  # no multiple of a tile; more Gaussians than threads in a block
    (3, 50, 70, 60, 20),  # several tiles, a whole graph and single iterations
    (1, 33, 16, 1, 5),
    (2, 3, 5, 2, 3),
    (1, 1, 65, 9, 1),
    (1, 34, 33, 1100, 1),  # 1024 Gaussians and more on one tile
]


@pytest.mark.parametrize(("batch", "height", "width", "number", "its"), SIZES)
@pytest.mark.parametrize("name", ["default", "paper"])
def test_kernels_do_what_the_cpu_fit_does(
    program: Program, name: str, batch: int, height: int, width: int, number: int, its: int
) -> None:
    # Few Gaussians' colours are solved for exactly; what is left would be rounding, which Adam scales up.
    images = pictures(batch, height, width)
    settings = recipe(name, its, **({"color_steps": 0} if number < 5 else {}))
    fitted = program.fit(images, number, settings)
    assert_like_cpu(fitted, splat2d.fit(images, number, recipe=settings), 2e-3)
    start = splat2d.fit(images, number, recipe=settings, num_iters=0)
    assert np.abs(fitted.colors - start.colors).mean() > 1e-3  # it moved


@pytest.mark.parametrize("number", [60, 40, 80])
@pytest.mark.parametrize("name", ["default", "paper"])
def test_kernels_start_from_given_gaussians(program: Program, name: str, number: int) -> None:
    """As many, fewer, more."""
    first, images = pictures(2, 45, 52), pictures(3, 45, 52)[1:]
    before = splat2d.fit(first, 60, recipe=recipe(name, 20))
    start = (before.means, before.cholesky, before.colors)
    settings = recipe(name, 8)
    fitted = program.fit(images, number, settings, start)
    assert_like_cpu(fitted, splat2d.fit(images, number, recipe=settings, start=start), 2e-3)
    assert (fitted.counts == number).all()


def scene(height: int, width: int, number: int) -> list[npt.NDArray[np.float64]]:
    """Gaussians of all sizes and slants, some beyond the edge, and those that go wrong elsewhere."""
    rng = np.random.default_rng(number)
    means = rng.uniform(-6, [width + 6, height + 6], (number, 2))
    spread = rng.uniform(0.3, 9, (number, 2))
    cholesky = np.stack([spread[:, 0], rng.uniform(-8, 8, number), spread[:, 1]], axis=1)
    colors = rng.normal(size=(number, 3))
    special = [
        ([width / 2, height / 2], [200.0, 3.0, 150.0]),  # all over the picture
        ([width / 2, height / 2], [0.2, 30.0, 0.2]),  # a needle
        ([width * 3.0, 5.0], [2.0, 0.0, 2.0]),  # outside
        ([31.5, 15.5], [0.1, 0.0, 0.1]),  # between pixels and tiles: no pixel
        ([32.0, 16.0], [0.3, 0.0, 0.3]),  # one pixel
        ([9.0, 9.0], [0.0, 1.0, 2.0]),  # degenerate
        ([9.0, 9.0], [1e-30, 1.0, 1e-30]),
    ]
    for i, (mean, shape) in enumerate(special):
        means[i], cholesky[i] = mean, shape
    return [array.astype(np.float32).astype(np.float64) for array in (means, cholesky, colors)]


def oracle(means: Any, cholesky: Any, colors: Any, image: Any) -> npt.NDArray[np.float64]:
    """Moments [N, 8] in float64."""
    height, width, _ = image.shape
    whole = np.abs(cholesky[:, [0, 2]]).min(axis=1) > 1e-9
    shapes = np.where(whole[:, None], cholesky, 1.0)
    kernel = reference.values(means, shapes, height, width) * whole[:, None, None]
    residual = np.einsum("nhw,nc->hwc", kernel, colors) - image / 255.0
    q = kernel * np.einsum("hwc,nc->nhw", residual, colors)
    dx = np.arange(width)[None, None, :] - means[:, 0, None, None]
    dy = np.arange(height)[None, :, None] - means[:, 1, None, None]
    sums = [q * dx, q * dy, q * dx * dx, q * dx * dy, q * dy * dy]
    weighted = np.stack([value.sum(axis=(1, 2)) for value in sums], axis=1)
    return np.concatenate([np.einsum("nhw,hwc->nc", kernel, residual), weighted], axis=1)


@pytest.mark.parametrize(("height", "width", "number"), [(37, 45, 40), (16, 32, 12), (70, 33, 300), (5, 3, 8)])
def test_moments_agree_with_the_oracle(program: Program, height: int, width: int, number: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)
    arrays = scene(height, width, number)
    ours, error = program.moments(*arrays, image)
    theirs = oracle(*arrays, image)
    # A pixel on the ellipse's rim may fall on either side in float32: a jump of .011 of the peak for a few of them.
    scale = np.abs(theirs).max(axis=0)
    off = np.abs(ours - theirs) / scale
    assert np.median(off) < 1e-6
    assert (off < 2e-5).mean() > 0.9
    assert off.max() < 2e-2
    drawn = np.where(np.abs(arrays[1][:, [0, 2]]).min(axis=1) > 1e-9, 1.0, 0.0)[:, None] * arrays[2]
    shapes = np.where(np.abs(arrays[1][:, [0, 2]]).min(axis=1, keepdims=True) > 1e-9, arrays[1], 1.0)
    residual = reference.render(arrays[0], shapes, drawn, height, width) - image / 255.0
    assert error == pytest.approx(np.square(residual).sum(), rel=1e-4)


def test_moments_are_the_gradient(plain: Program) -> None:
    """Finite differences of the float64 loss against the tile kernel's moments, every parameter of every Gaussian."""
    height, width = 19, 37
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    splats = {
        "means": rng.uniform([0, 0], [width, height], (6, 2)),
        "cholesky": np.stack([rng.uniform(1, 6, 6), rng.uniform(-4, 4, 6), rng.uniform(1, 6, 6)], axis=1),
        "colors": rng.normal(size=(6, 3)),
    }
    splats = {name: array.astype(np.float32).astype(np.float64) for name, array in splats.items()}
    moments, _ = plain.moments(*splats.values(), image)
    gradients: dict[str, npt.NDArray[np.float64]] = {"colors": moments[:, :3]}
    gradients |= {"means": np.zeros((6, 2)), "cholesky": np.zeros((6, 3))}
    for i, (l00, l10, l11) in enumerate(splats["cholesky"]):
        inverse = np.linalg.inv([[l00, 0.0], [l10, l11]])
        first, second = moments[i, 3:5], moments[i, [5, 6, 6, 7]].reshape(2, 2)
        gradients["means"][i] = inverse.T @ inverse @ first
        gradients["cholesky"][i] = (inverse.T @ inverse @ second @ inverse.T)[[0, 1, 1], [0, 0, 1]]
    for name, array in splats.items():
        for index in np.ndindex(array.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = {key: values.copy() for key, values in splats.items()}
                moved[name][index] += step
                ends.append(reference.loss(**moved, image=image) * height * width / 2)
            difference = (ends[0] - ends[1]) / 2e-6
            assert gradients[name][index] == pytest.approx(difference, rel=1e-3, abs=2e-4), (name, index)


SETTINGS = recipe("default", 18, prune_threshold=0.1, refit_share=0.2)
IMAGES = pictures(5, 40, 49)


@pytest.fixture(scope="module")
def expected(plain: Program) -> cuda_cases.Fitted:
    fitted = plain.fit(IMAGES, 50, SETTINGS)
    assert ((fitted.counts > 0) & (fitted.counts < 50)).any()
    return fitted


@pytest.mark.parametrize(
    "environment",
    [
        {"EMULATED_ORDER": 1},
        {"EMULATED_ORDER": 2},
        {"EMULATED_ORDER": 3},
        {"SPLAT2D_CUDA_BATCH": 1},
        {"SPLAT2D_CUDA_BATCH": 2},
        {"SPLAT2D_CUDA_BATCH": 4},
        {"EMULATED_DEVICES": 2, "SPLAT2D_CUDA_BATCH": 1},
        {"EMULATED_DEVICES": 3, "SPLAT2D_CUDA_BATCH": 2},
    ],
    ids=str,
)
def test_nothing_else_decides_a_bit(
    program: Program, expected: cuda_cases.Fitted, environment: dict[str, int], folder: Path
) -> None:
    """Neither the order of threads, nor the pictures of a chunk, nor the number of devices."""
    fitted = program.fit(IMAGES, 50, SETTINGS, **environment)
    if program.path.name != "cases_device":  # a GPU has its own exp, and contracts products and sums
        fitted.assert_same(expected)
    else:
        fitted.assert_same(program.fit(IMAGES, 50, SETTINGS))


# The first step makes every Gaussian at least 120 pixels wide.
GROWING = recipe("paper", 10, scale_min=20.0)


def test_lists_that_overflow_are_grown(program: Program) -> None:
    """While the fit runs, and nothing is lost."""
    images = pictures(3, 50, 70)
    fitted = program.fit(images, 70, GROWING)
    assert_like_cpu(fitted, splat2d.fit(images, 70, recipe=GROWING), 2e-3)
    assert (fitted.cholesky[..., [0, 2]] >= 20).all()
    alone = program.fit(images, 70, GROWING, SPLAT2D_CUDA_BATCH=1)
    alone.assert_same(fitted)
    small = program.fit(images, 70, recipe("paper", 10))
    if fitted.allocations:
        assert int(fitted.allocations) == int(small.allocations) + 1  # once for all three pictures
        assert (
            int(alone.allocations) < 2 * int(small.allocations) + 5
        )  # later chunks begin with what earlier ones needed


def test_a_crowded_tile_grows_its_list(program: Program) -> None:
    images = np.full((1, 128, 128, 3), 90, np.uint8)
    images[0, 20:30, 40:60] = np.random.default_rng(2).integers(0, 256, (10, 20, 3))
    settings = recipe("default", 1)
    fitted = program.fit(images, 1100, settings)
    cpu = splat2d.fit(images, 1100, recipe=settings)
    inside = (np.abs(cpu.means[0] - [48, 24]) < [16, 8]).all(axis=1)
    assert inside.sum() > 400
    if fitted.allocations:
        assert int(fitted.allocations) == int(program.fit(images, 4, settings).allocations) + 1
    np.testing.assert_allclose(fitted.psnr, cpu.psnr, atol=2e-3)
    np.testing.assert_allclose(fitted.means, cpu.means, atol=0.05)  # many small ones on noise


@pytest.mark.parametrize("number", [2, 9, 26, 49, 50, 51])
def test_running_out_of_memory_halves_the_batch(program: Program, number: int) -> None:
    """The number-th allocation fails once: of the settings, of either slot, of lists that grow."""
    if program.path.name == "cases_device":
        pytest.skip("only the emulator's allocations can be made to fail")
    images = pictures(5, 50, 70)
    settings = recipe("paper", 2, scale_min=20.0)
    fitted = program.fit(images, 70, settings, SPLAT2D_CUDA_BATCH=2, EMULATED_FAIL=number)
    assert "out of memory: 1 pictures at a time instead of 2" in fitted.stderr
    fitted.assert_same(program.fit(images, 70, settings))


def test_too_little_memory_for_one_picture_is_an_error(plain: Program) -> None:
    code, _, _, stderr = plain.try_fit(IMAGES, 50, SETTINGS, EMULATED_MEMORY=60000)
    assert code == 2
    assert re.search(r"CUDA: cuda\w+ of \d+ MiB: out of memory; one picture at a time needs", stderr), stderr


def test_a_stop_ends_the_fit_and_frees_the_device(program: Program) -> None:
    code, _, _, stderr = program.try_fit(IMAGES, 50, recipe("paper", 100), SPLAT2D_CUDA_BATCH=2, stop_after=2)
    assert (code, stderr) == (2, "stopped\n")


def test_a_stop_is_quick(plain: Program) -> None:
    """Nothing erases it: what is queued returns at once, both chunks' iterations."""
    images, settings = pictures(4, 40, 49), recipe("paper", 100)
    seconds = []
    for stop_after in (1, 0):
        start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        code, *_ = plain.try_fit(images, 50, settings, SPLAT2D_CUDA_BATCH=2, stop_after=stop_after)
        seconds.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start)
        assert code == (2 if stop_after else 0)
    assert seconds[0] < 0.23 * seconds[1]


def test_a_stop_is_met_by_whole_blocks(plain: Program) -> None:
    """The host writes it while a kernel runs: between the reads of two threads of a block."""
    code, _, _, stderr = plain.run("halt", [])
    assert code == 0, stderr


@pytest.mark.parametrize("value", ["0", "x", "-3", "1e9"])
def test_a_wrong_batch_is_an_error(plain: Program, value: str) -> None:
    code, _, _, stderr = plain.try_fit(IMAGES, 50, SETTINGS, SPLAT2D_CUDA_BATCH=value)
    assert code == 2
    assert f"SPLAT2D_CUDA_BATCH={value}: expected a whole number" in stderr


PRUNING = [
    {"prune_threshold": 0.1, "refit_share": 0.0},
    {"prune_threshold": 0.1, "refit_share": 1.0},
    {"prune_threshold": 0.1, "prune_to": 200, "refit_share": 0.5},
    {"prune_to": 100, "prune_score": "loss", "refit_share": 0.5},
    {"prune_threshold": 1e-5, "prune_score": "loss", "refit_share": 0.0},
]


@pytest.mark.parametrize("changes", PRUNING, ids=str)
def test_kernels_prune_and_refit(program: Program, changes: dict[str, Any]) -> None:
    images = pictures(2, 30, 34)
    images[0] = 150 + images[0] // 3
    images[1, :, :18] = 0
    most = {name: value for name, value in changes.items() if name == "prune_to"}
    settings = recipe("paper", 4, **{name: value for name, value in changes.items() if name != "prune_to"})
    fitted = program.fit(images, 300, settings, **most)
    assert_like_cpu(fitted, splat2d.fit(images, 300, recipe=settings, **most), 2e-3)
    assert 0 < fitted.counts[1] < 300
    if changes == PRUNING[1]:
        assert fitted.counts[0] == 300  # nothing to drop: this picture is not fitted again
    assert not fitted.colors[1, fitted.counts[1] :].any()


def test_everything_can_be_pruned(program: Program) -> None:
    images = pictures(1, 9, 9)
    nothing = program.fit(images, 12, recipe("paper", 2, prune_threshold=100.0))
    assert not nothing.counts.any()
    assert not nothing.colors.any()
    np.testing.assert_allclose(nothing.psnr, splat2d.psnr(np.zeros(images.shape, np.float32), images), atol=1e-3)


@pytest.mark.parametrize(("number", "steps"), [(40, 3), (350, 2)])
def test_kernels_grow_as_the_cpu_does(program: Program, number: int, steps: int) -> None:
    """Where the errors of cells differ clearly; where they are equal, rounding decides which one is taken."""
    images = pictures(2, 45, 52)
    settings = recipe("default", 12, start_share=0.3, grow_steps=steps, grow_first=0.1, grow_last=0.6, move_steps=0)
    fitted = program.fit(images, number, settings)
    cpu = splat2d.fit(images, number, recipe=settings)
    assert_like_cpu(fitted, cpu, 5e-3)
    assert (fitted.counts == number).all()


@pytest.mark.parametrize("name", ["default", "paper"])
def test_kernels_move_the_weakest_as_the_cpu_does(program: Program, name: str) -> None:
    images = pictures(2, 45, 52)
    settings = recipe(
        name, 8, start_share=1.0, grow_steps=0, grow_last=0.2, move_share=0.2, move_steps=2, move_last=0.7
    )
    fitted = program.fit(images, 60, settings)
    assert_like_cpu(fitted, splat2d.fit(images, 60, recipe=settings), 5e-3)
    still = program.fit(images, 60, recipe(name, 8, start_share=1.0, grow_steps=0, move_steps=0))
    assert np.abs(fitted.means - still.means).max() > 4


def test_moving_while_lists_overflow_happens_once(program: Program) -> None:
    """The lists of the iteration after the move are too short: it is gone on with, not moved again."""
    images = pictures(2, 50, 70)
    settings = recipe("paper", 3, scale_min=20.0, move_share=0.2, move_steps=1, move_last=0.4)
    fitted = program.fit(images, 70, settings)
    assert_like_cpu(fitted, splat2d.fit(images, 70, recipe=settings), 5e-3)


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
    """All architectures of a release. nvcc is required here: without it the build fails, and so does the test."""
    done = build(tmp_path / "build", "-DSPLAT2D_CUDA=ON", "-DSPLAT2D_CUDA_ARCHITECTURES=release")
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
