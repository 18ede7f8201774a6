"""Time a pixel and memory as pictures grow, at constant pixels a Gaussian.

    python benchmarks/scaling.py --images ../shared/data/kodak

Large pictures are mosaics of real ones at their own scale (repeats mirrored); every size is cropped from the same
mosaic. A second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import splat2d
from pictures import load, mosaic
from records import Journal, Row, module_digest, processor, table
from rich.console import Console

RESULTS = Path(__file__).resolve().parent / "results"
SIZES = (224, 512, 1024, 2048)
PIXELS_A_GAUSSIAN = 224 * 224 / 900
Start = dict[str, npt.NDArray[np.float32]]
BYTES_A_PIXEL, BYTES_A_GAUSSIAN = 64, 256  # the target, for each thread


def gaussians(size: int) -> int:
    return round(size * size / PIXELS_A_GAUSSIAN)


def crops(large: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Crops [B, size, size, 3] side by side over the whole picture: every size is timed on the same content."""
    steps = large.shape[0] // size
    starts = [round(k * (large.shape[0] - size) / max(1, steps - 1)) for k in range(steps)]
    return np.stack([large[y : y + size, x : x + size] for y in starts for x in starts])


def timed(images: npt.NDArray[np.uint8], recipe: str, num_iters: int, threads: int) -> Row:
    """One fit of the crops: nanoseconds of processor time (and of wall time, times threads) a pixel and iteration."""
    number = gaussians(images.shape[1])
    start, start_cpu = time.perf_counter(), time.process_time()
    result = splat2d.fit(images, number, recipe=recipe, num_iters=num_iters, threads=threads)
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    work = images.shape[0] * images.shape[1] * images.shape[2] * num_iters
    used = min(threads, len(images))
    row = {"cpu_ns": 1e9 * cpu / work, "wall_ns": 1e9 * wall * used / work, "num_images": len(images)}
    return row | {"psnr_db": float(result.psnr.mean())}


# VmHWM, not ru_maxrss: the latter starts at what the parent process held when it started this one.
PROBE = """
import json, sys
import numpy as np, splat2d
images, number, threads = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
recipe, num_iters = sys.argv[4], int(sys.argv[5])
splat2d.fit(images[:, :16, :16], 4, num_iters=1, threads=threads)
def held(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
start = [np.load(sys.argv[6])[name] for name in ("means", "cholesky", "colors")] if sys.argv[6:] else None
before = held("VmRSS:")
result = splat2d.fit(images, number, recipe=recipe, num_iters=num_iters, threads=threads, start=start)
out = sum(part.nbytes for part in (result.means, result.cholesky, result.colors))
row = {"counted": splat2d._core.peak_bytes(), "resident": held("VmHWM:") - before - out}
print(json.dumps(row | {"psnr_db": float(result.psnr.mean())}))
"""


def memory(
    images: npt.NDArray[np.uint8], number: int, recipe: str, num_iters: int, threads: int, *, start: Start | None
) -> Row:
    """Bytes that one fit allocates: as the module counts them, and by the process's resident set, outputs left out.

    In a process of its own; a small fit comes first, so that neither holds what is loaded once.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "images.npy"), images)
        arguments = [str(Path(folder, "images.npy")), str(number), str(threads), recipe, str(num_iters)]
        if start is not None:
            np.savez(Path(folder, "start.npz"), allow_pickle=False, **start)
            arguments.append(str(Path(folder, "start.npz")))
        done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
    used = min(threads, len(images))
    limit = used * (BYTES_A_PIXEL * images.shape[1] * images.shape[2] + BYTES_A_GAUSSIAN * number)
    row: Row = json.loads(done.stdout)
    return row | {"limit": limit, "num_gaussians": number, "threads": used}


def with_giants(size: int, number: int, giants: int) -> Start:
    """Splats for `fit` to start from: some with a standard deviation of a quarter of the picture, the others small."""
    random = np.random.default_rng(0)
    sigma = np.where(np.arange(number) < giants, size / 4, 5.0).astype(np.float32)
    return {
        "means": random.uniform(0, size, (1, number, 2)).astype(np.float32),
        "cholesky": (sigma[:, None] * np.array([1.0, 0.0, 1.0], np.float32))[None],
        "colors": np.full((1, number, 3), 0.5 / giants, np.float32),
    }


def markdown(journal: Journal, recipe: str) -> str:
    rows, first = [], None
    for size in SIZES:
        found = [row for row in journal.rows() if row["key"].get("size") == size and row["key"]["kind"] == "time"]
        if not found:
            continue
        cpu, wall = (median(row[field] for row in found) for field in ("cpu_ns", "wall_ns"))
        first = first or (cpu, wall)
        cells = [size, gaussians(size), found[0]["num_images"], f"{cpu:.3f}", f"{cpu / first[0]:.2f}"]
        rows.append([*cells, f"{wall / first[1]:.2f}", f"{found[0]['psnr_db']:.2f}"])
    header = ["px", "N", "pictures", "ns a pixel and iteration", "against 224 px (target: at most 1.3)"]
    speed = table([*header, "by wall time", "dB"], rows)
    header = ["picture", "N", "threads", "limit, MB", "counted, MB", "share of the limit", "resident set, MB", "dB"]
    rows = []
    for row in (row for row in journal.rows() if row["key"]["kind"] == "memory"):
        cells = [row["key"]["case"], row["num_gaussians"], row["threads"], f"{row['limit'] / 1e6:.1f}"]
        cells += [f"{row['counted'] / 1e6:.1f}", f"{row['counted'] / row['limit']:.2f}"]
        rows.append([*cells, f"{row['resident'] / 1e6:.1f}", f"{row['psnr_db']:.2f}"])
    notes = "\n".join(f"- {line}" for line in journal.notes())
    how = f"Recipe `{recipe}`, {PIXELS_A_GAUSSIAN:.1f} pixels a Gaussian, whole fits, processor time. Pictures of every"
    how += " size are crops that cover one 2048 px mosaic of real pictures at their own scale (repeats mirrored)."
    limits = f"Limit: {BYTES_A_PIXEL} bytes a pixel + {BYTES_A_GAUSSIAN} bytes a Gaussian for each thread. The resident"
    limits += " set grows by what the allocator keeps as well; outputs are left out of both."
    parts = ["# splat2d.fit as pictures grow", notes, how, speed, "## Memory", limits, table(header, rows)]
    return "\n\n".join(parts) + "\n"


def flat(size: int) -> npt.NDArray[np.uint8]:
    """A grey ramp, on which Gaussians grow."""
    ramp = np.linspace(100, 140, size).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(ramp[:, None, None], (size, size, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of pictures, webdataset tars")
    parser.add_argument("--limit", type=int, default=24, help="at most so many pictures in the mosaic (default 24)")
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--recipe", choices=list(splat2d.RECIPES), default="default")
    parser.add_argument("--num-iters", type=int, default=100, help="iterations of each fit (default 100)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling_cpu", help="OUT.json and OUT.md")
    args = parser.parse_args()

    pictures = load(args.images, size=None, limit=args.limit)
    large = mosaic(pictures.images, max(args.sizes))
    origin: Row = {
        "pictures": f"{pictures.origin} in a mosaic (digest {pictures.digest})",
        "hardware": f"{processor()}, {args.threads} threads",
        "device": f"cpu ({splat2d.backend()})",
        "build": module_digest(),
        "fit": f"{args.recipe}, {args.num_iters} iterations",
    }
    journal, console = Journal(args.out.with_suffix(".json"), origin), Console(stderr=True)
    out = args.out.with_suffix(".md")
    for repeat in range(args.repeats):  # sizes take turns: the machine's speed changes
        for size in args.sizes:
            images = crops(large, size)
            images = images if len(images) >= args.threads else np.repeat(images, args.threads, axis=0)
            console.print(f"{size} px, {len(images)} pictures, run {repeat + 1} of {args.repeats}")
            journal.once(
                {"kind": "time", "size": size, "repeat": repeat},
                partial(timed, images, args.recipe, args.num_iters, args.threads),
            )
            out.write_text(markdown(journal, args.recipe))
    size = max(args.sizes)
    many = gaussians(size)
    cases: dict[str, tuple[npt.NDArray[np.uint8], int, int, Start | None]] = {
        f"mosaic, {size} px": (large[None], many, args.num_iters, None),
        f"mosaic, {size} px, {args.threads} at once": (np.repeat(large[None], args.threads, 0), many, 20, None),
        f"mosaic, {size} px, 64 Gaussians with sigma {size // 4} px": (
            large[None],
            1000,
            5,
            with_giants(size, 1000, 64),
        ),
        f"grey ramp, {size} px, on which Gaussians grow": (flat(size)[None], 4096, args.num_iters, None),
    }
    for case, (images, number, num_iters, start) in cases.items():
        console.print(case)
        journal.once(
            {"kind": "memory", "case": case, "num_iters": num_iters},
            partial(memory, images, number, args.recipe, num_iters, args.threads, start=start),
        )
        out.write_text(markdown(journal, args.recipe))
    console.print(f"written: {out}")


if __name__ == "__main__":
    main()
