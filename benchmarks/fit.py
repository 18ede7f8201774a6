"""Speed and quality of `splat2d.fit` on a folder of pictures, beside a plain PyTorch baseline.

    python benchmarks/fit.py --images ../shared/data/kodak --size 224 --num-gaussians 400 900 --recipe paper default \
        --json fit.json

Writes a list of rows; `ratio_to_torch` compares iterations a second with benchmarks/torch_fit.py, measured in the same
run with the same threads, pictures and Gaussians.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import splat2d
from rich.console import Console
from rich.table import Table
from torch_fit import iterations_per_second

from components.images import decode_rgb, fit_square
from components.progress import progress
from components.splats import Splats

RATE_ITERS = 100  # iterations of one run of `best_rate`


def load(folder: Path, size: int, limit: int) -> npt.NDArray[np.uint8]:
    """The folder's pictures, shortest side scaled to `size` and cropped to a square [B, size, size, 3]."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not files:
        raise SystemExit(f"{folder} holds no .png, .jpg or .webp files")
    return np.stack([fit_square(decode_rgb(p.read_bytes()), size) for p in files[: limit or None]])


def hardware(threads: int) -> str:
    """The processor's name and the threads used."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {threads} threads"


def commit() -> str:
    """The checkout's commit, "+" behind it where files differ from it."""
    here = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty=+"]
    run = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def best_rate(images: npt.NDArray[np.uint8], number: int, recipe: str, args: argparse.Namespace) -> float:
    """Picture-iterations a second, measured as the baseline is: few pictures, short runs, the best one, no start."""
    few = images[:4]

    def seconds(num_iters: int) -> float:
        start = time.perf_counter()
        splat2d.fit(few, number, recipe=recipe, num_iters=num_iters, threads=args.threads, device=args.device)
        return time.perf_counter() - start

    start_only = min(seconds(0) for _ in range(5))
    return len(few) * RATE_ITERS / (min(seconds(RATE_ITERS) for _ in range(5)) - start_only)


def measure(
    images: npt.NDArray[np.uint8], number: int, recipe: str, args: argparse.Namespace
) -> dict[str, str | int | float]:
    """Fit all pictures once; the PSNR reported is that of the .gs2d files, and must be near the one that `fit` says."""
    with progress(f"{recipe}, N = {number}", total=len(images), unit="images") as bar:
        start, start_cpu = time.perf_counter(), time.process_time()
        result = splat2d.fit(
            images,
            number,
            recipe=recipe,
            num_iters=args.num_iters,
            threads=args.threads,
            device=args.device,
            progress=lambda done: bar.advance(done - bar.done),
        )
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    shown = np.array([through_file(result, i, image) for i, image in enumerate(images)])
    if np.abs(shown - result.psnr).max() > 0.1:
        raise RuntimeError(f"fit reports {result.psnr.mean():.3f} dB, its files show {shown.mean():.3f} dB")
    return {
        "recipe": recipe,
        "num_gaussians": number,
        "num_iters": result.num_iters,
        "num_images": len(images),
        "psnr_db_mean": round(float(shown.mean()), 3),
        "images_per_s": round(len(images) / seconds, 2),
        "images_per_cpu_s": round(len(images) / cpu_seconds, 2),
        "iterations_per_s": round(best_rate(images, number, recipe, args), 1),
    }


def through_file(result: splat2d.FitResult, index: int, image: npt.NDArray[np.uint8]) -> float:
    """PSNR in dB of one picture after the round trip through its .gs2d file."""
    count, (height, width) = result.counts[index], image.shape[:2]
    parts = (result.means[index, :count], result.cholesky[index, :count], result.colors[index, :count])
    data, _ = splat2d.encode(*parts, width, height)
    return float(splat2d.psnr(Splats.unpack(data).render()[None], image[None])[0])


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows for people."""
    table = Table(
        "recipe", "N", "its", "PSNR dB", "images/s", "a CPU s", "its/s", "torch its/s", "ratio", title="splat2d.fit"
    )
    for row in rows:
        keys = (
            "recipe",
            "num_gaussians",
            "num_iters",
            "psnr_db_mean",
            "images_per_s",
            "images_per_cpu_s",
            "iterations_per_s",
        )
        table.add_row(*(str(row[key]) for key in keys), str(row["torch_iterations_per_s"]), str(row["ratio_to_torch"]))
    return table


def markdown_of(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, with what made them."""
    keys = [key for key in rows[0] if key not in ("device", "size", "hardware", "commit", "command", "date")]
    lines = [f"- {key}: {rows[0][key]}" for key in ("device", "size", "hardware", "commit", "date")]
    lines += [f"- command: `{rows[0]['command']}`", ""]
    lines += ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    return "# splat2d.fit\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of .png, .jpg, .webp pictures")
    parser.add_argument("--size", type=int, default=224, help="side of the square pictures (default 224)")
    parser.add_argument("--num-gaussians", type=int, nargs="+", default=[400, 900, 1600, 3136])
    parser.add_argument("--recipe", nargs="+", choices=list(splat2d.RECIPES), default=["paper", "default"])
    parser.add_argument("--num-iters", type=int, help="override the recipes' iterations")
    parser.add_argument("--limit", type=int, default=0, help="use only the first pictures (0: all)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the fit and of torch (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--torch-iters", type=int, default=5, help="iterations of the baseline (0: leave it out)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--markdown", type=Path, help="write them as a table to this file too")
    args = parser.parse_args()

    images = load(args.images, args.size, args.limit)
    common = {
        "device": args.device if args.device == "cuda" else f"cpu ({splat2d.backend()})",
        "size": args.size,
        "hardware": hardware(args.threads),
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    rows = []
    for number in args.num_gaussians:
        torch_rate = None
        if args.torch_iters:
            torch_rate = iterations_per_second(images, number, num_iters=args.torch_iters, threads=args.threads)
        for recipe in args.recipe:
            row = measure(images, number, recipe, args)
            ratio = round(float(row["iterations_per_s"]) / torch_rate, 1) if torch_rate else None
            rate = round(torch_rate, 1) if torch_rate else None
            rows.append(row | common | {"torch_iterations_per_s": rate, "ratio_to_torch": ratio})
            if args.json:
                args.json.write_text(json.dumps(rows, indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown_of(rows))
    Console().print(table_of(rows))


if __name__ == "__main__":
    main()
