"""Bugs planted in copies of the CUDA sources, one at a time: the checks of test_splat2d_cuda.py must catch each.

The checks, cheapest first; the first that fails is named:
- results: mode=fit against the same case of the sources as they are, bit for bit, threads in order;
- order: the same with threads in other orders;
- moments: the tile kernel's moments, bit for bit;
- races: ThreadSanitizer.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cuda_cases
import numpy as np
import pytest
import splat2d
from cuda_cases import ADDRESS, KERNELS, RACE, THREADS, Program, assert_like_cpu, pictures, recipe

pytestmark = pytest.mark.full

SOURCES = sorted(path.name for path in (KERNELS / "src").glob("cuda_*.cuh"))
BARRIERS = [
    (name, index)
    for name in SOURCES
    for index in range(len(re.findall(r"__syncthreads\(\);", (KERNELS / "src" / name).read_text())))
]
# An expression that is there once in its file, what is planted for it, and which kind of bug that is.
WRONG = [
    ("cuda_tile.cuh", "m[3] += qx", "m[3] -= qx", "sign of a gradient"),
    ("cuda_tile.cuh", "m[6] += qx * dy", "m[6] += qy * dy", "wrong moment"),
    ("cuda_tile.cuh", "upper ? v[j + half] : v[j]", "v[j]", "sum"),
    ("cuda_tile.cuh", "residual + y * kPitch + x", "residual + x * kPitch + y", "index: rows for columns"),
    ("cuda_tile.cuh", "x > box.x1", "x >= box.x1", "off by one"),
    ("cuda_tile.cuh", "d.entries + row * d.list_capacity", "d.entries + row * (d.list_capacity - 1)", "index: list"),
    (
        "cuda_tile.cuh",
        "drawn.red - static_cast<float>(target[0]) * kScale",
        "static_cast<float>(target[0]) * kScale - drawn.red",
        "sign of the residual",
    ),
    ("cuda_tile.cuh", "box.x1 >= left", "box.x1 > left", "pixels left out"),
    (
        "cuda_lists.cuh",
        "l.start + (y - l.y0) * (l.x1 - l.x0 + 1) + x - l.x0",
        "l.start + (y - l.y0) * (l.x1 - l.x0 + 1) + x - l.x0 + 1",
        "index: slot of the neighbour",
    ),
    ("cuda_lists.cuh", "((1u << lane) - 1u)", "((2u << lane) - 1u)", "index: rank"),
    (
        "cuda_update.cuh",
        "static_cast<std::size_t>(l.start) * 8 + thread % 8",
        "static_cast<std::size_t>(l.start) * 8 + (thread + 1) % 8",
        "index: moment",
    ),
    ("cuda_update.cuh", "!listed", "!listed && d.width < 0", "stale lists"),
    ("cuda_update.cuh", "d.control->iteration - 1", "d.control->iteration", "index: schedule"),
    ("cuda_grow.cuh", "static_cast<float>(x - left)", "static_cast<float>(x)", "centre of a cell"),
]

OUT_OF_BOUNDS = [
    ("cuda_lists.cuh", "tile >= d.tiles", "false", "tile"),
    ("cuda_tile.cuh", "t.left + x >= d.width || t.top + y >= d.height", "false", "image"),
]
Wrong = tuple[str, str, str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="module")
def objects(folder: Path) -> list[str]:
    return cuda_cases.host_objects(folder)


@pytest.fixture(scope="module")
def thread_objects(folder: Path) -> list[str]:
    (folder / "threads").mkdir()
    return cuda_cases.host_objects(folder / "threads", *THREADS)


def outcome(program: Program, **environment: int) -> bytes:
    """Everything that a few cases write; exit codes that are not 0 count as an outcome."""
    out = b""
    growing = recipe("default", 12, prune_threshold=0.05, refit_share=0.5)
    for images, number, settings in (
        (pictures(2, 40, 49), 300, growing),
        (pictures(1, 50, 70), 40, recipe("paper", 6, lr_position=3.0)),
    ):
        code, written, _, _ = program.try_fit(images, number, settings, **environment)
        out += bytes([code % 256]) + written
    rng = np.random.default_rng(0)
    splats = [rng.uniform(0, 35, (600, 2)), rng.uniform(1, 4, (600, 3)), rng.normal(size=(600, 3))]
    image = pictures(1, 33, 37)[0]
    shape = {"batch": 1, "height": 33, "width": 37, "num_gaussians": 600}
    arrays = [image, *(np.asarray(array, np.float32) for array in splats)]
    code, written, _, _ = program.run("moments", arrays, **shape, **environment)
    return out + bytes([code % 256]) + written


@pytest.fixture(scope="module")
def expected(folder: Path, objects: list[str]) -> bytes:
    program = Program(cuda_cases.emulated(folder / "sound", objects), folder)
    sound = outcome(program)
    assert all(outcome(program, EMULATED_ORDER=order) == sound for order in (1, 2))
    return sound


def patched(folder: Path, changes: dict[str, Callable[[str], str]]) -> Path:
    """A copy of the kernels in which each file named has been changed."""
    kernels = folder / "kernels"
    shutil.copytree(KERNELS / "src", kernels / "src")
    shutil.copytree(KERNELS / "include", kernels / "include")
    for name, change in changes.items():
        source = kernels / "src" / name
        text = source.read_text()
        changed = change(text)
        assert changed != text
        source.write_text(changed)
    return kernels


def caught_by(program: Program, expected: bytes, **environment: int) -> str:
    """The first of the quick checks that differs, or nothing."""
    if outcome(program, **environment) != expected:
        return "results"
    orders = (outcome(program, EMULATED_ORDER=order, **environment) for order in (1, 2, 3))
    return "order" if any(found != expected for found in orders) else ""


# Which bug there is, if any, is said when the program is run: WITHOUT=n, no barrier n; WRONG=n, a wrong expression n.
PLANTED = """#include <cstdlib>
inline bool is_number(const char* value, int number) { return value != nullptr && std::atoi(value) == number; }
inline bool stands(int barrier) {
  static const char* const without = std::getenv("WITHOUT");
  return !is_number(without, barrier);
}
inline bool wrong(int number) {
  static const char* const is = std::getenv("WRONG");
  return is_number(is, number);
}
"""


def ready(folder: Path, wrong: list[Wrong]) -> tuple[Path, list[str]]:
    """A copy of the kernels in which all barriers and `wrong` can be planted, and the compiler's flags for it."""

    def change(name: str) -> Callable[[str], str]:
        numbers = (number for number, (where, _) in enumerate(BARRIERS) if where == name)

        def changed(text: str) -> str:
            text = re.sub(r"__syncthreads\(\);", lambda _: f"if (stands({next(numbers)})) __syncthreads();", text)
            for number, (where, right, bug, what) in enumerate(wrong):
                if where == name:
                    assert text.count(right) == 1, f"{what}: {name} has no or several {right!r}"
                    text = text.replace(right, f"(wrong({number}) ? ({bug}) : ({right}))")
            return text

        return changed

    names = {name for name, *_ in (*BARRIERS, *wrong)}
    kernels = patched(folder, {name: change(name) for name in names})
    (folder / "planted.h").write_text(PLANTED)
    return kernels, ["-w", "-include", str(folder / "planted.h")]


@pytest.fixture(scope="module")
def planted(folder: Path, objects: list[str], thread_objects: list[str]) -> tuple[Program, Program]:
    """Two programs for all bugs, as each takes a while to compile; the second with ThreadSanitizer."""
    kernels, flags = ready(folder / "planted", WRONG)
    quick = cuda_cases.emulated(folder / "quick", objects, *flags, kernels=kernels)
    races = cuda_cases.emulated(folder / "races", thread_objects, *THREADS, *flags, kernels=kernels)
    return Program(quick, folder / "quick"), Program(races, folder / "races")


def races(program: Program, **environment: int) -> tuple[bool, str]:
    """Whether ThreadSanitizer reports one, and what it says."""
    settings = recipe("default", 4, prune_threshold=0.05, refit_share=0.5)
    code, _, _, stderr = program.try_fit(pictures(1, 18, 34), 290, settings, prune_to=250, **environment)
    return code == RACE and "data race" in stderr, stderr


def test_without_a_bug_nothing_is_caught(planted: tuple[Program, Program], expected: bytes) -> None:
    quick, threads = planted
    assert caught_by(quick, expected) == ""
    assert not races(threads)[0]


@pytest.mark.parametrize("name", ["default", "paper"])
def test_no_races_under_thread_sanitizer(planted: tuple[Program, Program], name: str) -> None:
    """Every kernel, one std::thread a CUDA thread, on two devices."""
    settings = recipe(name, 2, prune_threshold=0.05, refit_share=0.5)
    images = pictures(2, 18, 34)
    fitted = planted[1].fit(images, 270, settings, SPLAT2D_CUDA_BATCH=1, EMULATED_DEVICES=2)
    assert_like_cpu(fitted, splat2d.fit(images, 270, recipe=settings), 2e-3)


@pytest.mark.parametrize("number", range(len(BARRIERS)), ids=[f"{name}-{index}" for name, index in BARRIERS])
def test_a_removed_barrier_is_caught(planted: tuple[Program, Program], expected: bytes, number: int) -> None:
    quick, threads = planted
    name, index = BARRIERS[number]
    if check := caught_by(quick, expected, WITHOUT=number):  # the sanitizer would take a minute
        print(f"{name} barrier {index}: {check}")
        return
    race, stderr = races(threads, WITHOUT=number)
    assert race, stderr
    print(f"{name} barrier {index}: race")


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[what for *_, what in WRONG])
def test_a_wrong_index_or_sign_is_caught(planted: tuple[Program, Program], expected: bytes, number: int) -> None:
    quick, _ = planted
    check = caught_by(quick, expected, WRONG=number)
    print(f"{WRONG[number][0]} {WRONG[number][-1]}: {check}")
    assert check


@pytest.fixture(scope="module")
def bounds(folder: Path, objects: list[str]) -> Program:
    kernels, flags = ready(folder / "bounds", OUT_OF_BOUNDS)
    return Program(cuda_cases.emulated(folder / "address", objects, *ADDRESS, *flags, kernels=kernels), folder)


@pytest.mark.parametrize("number", [-1, 0, 1], ids=["none", *(what for *_, what in OUT_OF_BOUNDS)])
def test_an_index_out_of_bounds_is_caught_by_the_address_sanitizer(bounds: Program, number: int) -> None:
    code, _, _, stderr = bounds.try_fit(pictures(1, 35, 36), 40, recipe("default", 1), WRONG=number)
    assert (code != 0, "heap-buffer-overflow" in stderr) == ((number >= 0,) * 2), stderr
