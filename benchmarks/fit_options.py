"""What the options of `splat2d.fit` gain: targets, plateaus, the fewest Gaussians, pruning, warm starts.

    python benchmarks/fit_options.py --images ../shared/data/flickr8k-1k/00001.tar --limit 24

Prints Markdown for docs/fitting.md. Times are of the processor, all threads together.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import splat2d
from pictures import Pixels, load
from records import commit, processor


def timed(images: Pixels, number: int, **options: Any) -> tuple[splat2d.FitResult, float]:
    """The fit and the processor's seconds."""
    begun = time.process_time()
    result = splat2d.fit(images, number, **options)
    return result, time.process_time() - begun


def table(title: str, head: str, rows: list[str]) -> None:
    """One table, its title above it."""
    print(f"\n{title}\n\n| {head} |\n|{'---|' * (head.count('|') + 1)}")
    for row in rows:
        print(f"| {row} |", flush=True)


def spread(values: npt.NDArray[np.float32]) -> str:
    """Mean and standard deviation."""
    return f"{values.mean():.2f} ± {values.std():.2f}"


def targets(images: Pixels, numbers: list[int]) -> None:
    """A fit that stops at a PSNR against one that was told beforehand how many iterations lead there."""
    rows = []
    for number in numbers:
        for budget in (100, 200):
            told, told_s = timed(images, number, num_iters=budget)
            parts = [
                timed(images[b], number, num_iters=1000, target_psnr=float(goal)) for b, goal in enumerate(told.psnr)
            ]
            iters = np.array([part.iters[0] for part, _ in parts])
            seconds = sum(part_s for _, part_s in parts)
            reached = sum(bool(part.reached[0]) for part, _ in parts)
            rows.append(
                f"{number} | {told.psnr.mean():.2f} | {budget}, {told_s:.2f} s | {iters.mean():.0f}"
                f" ({iters.min()} to {iters.max()}), {seconds:.2f} s | {reached} of {len(images)}"
            )
    head = "N | dB | told the number: iterations, seconds | target_psnr: iterations, seconds | reached"
    table("Each picture's own PSNR after a given number of iterations as its target", head, rows)


def fewest(images: Pixels, goals: list[float], most: int) -> None:
    """min_gaussians against one number for all pictures."""
    rows = []
    for goal in goals:
        own, own_s = timed(images, most, min_gaussians=32, target_psnr=goal)
        same = int(own.counts.max())
        fixed, fixed_s = timed(images, same, target_psnr=goal)
        mean = int(own.counts.mean())
        level, level_s = timed(images, mean)
        counts, kept = (f"{fit.counts.mean():.0f} ({fit.counts.min()} to {fit.counts.max()})" for fit in (own, fixed))
        rows += [
            f"{goal:g} | min_gaussians | {counts} | {spread(own.psnr)} | {own.reached.mean():.0%} | {own_s:.2f}",
            f" | num_gaussians={same} for all, target_psnr | {kept} | {spread(fixed.psnr)} |"
            f" {fixed.reached.mean():.0%} | {fixed_s:.2f}",
            f" | their mean for all, no target_psnr | {mean} | {spread(level.psnr)} |"
            f" {(level.psnr >= goal).mean():.0%} | {level_s:.2f}",
        ]
    table("One PSNR for all pictures", "target dB | | N | dB | reached | seconds", rows)


def plateaus(images: Pixels, numbers: list[int]) -> None:
    """Plateau against the same mean number of iterations for all."""
    rows = []
    for number in numbers:
        for gain in (0.4, 0.1):
            result = splat2d.fit(images, number, num_iters=1000, plateau=gain)
            same = splat2d.fit(images, number, num_iters=int(result.iters.mean()))
            rows.append(
                f"{number} | {gain} | {result.iters.mean():.0f} ({result.iters.min()} to {result.iters.max()}) |"
                f" {result.psnr.mean():.2f} | {same.psnr.mean():.2f}"
            )
    table("plateau", "N | plateau dB | iterations | dB | dB with their mean for all", rows)


def pruning(images: Pixels, numbers: list[int]) -> None:
    """Fitting N and pruning to a smaller M, by either score, against fitting M."""
    rows = []
    for number in numbers:
        left = number * 3 // 4
        direct = splat2d.fit(images, left).psnr.mean()
        pruned = [
            splat2d.fit(images, number, prune_to=left, prune_score=score).psnr.mean() for score in ("luminance", "loss")
        ]
        rows.append(f"{number} to {left} | {pruned[0]:.2f} | {pruned[1]:.2f} | {direct:.2f}")
    table("prune_to", "N | by luminance: dB | by loss: dB | fitted directly: dB", rows)


def warm_starts(images: Pixels, numbers: list[int]) -> None:
    """The result for N as the start for other numbers, and for the same picture moved."""
    rows = []
    for number in numbers:
        first = splat2d.fit(images, number)
        start = (first.means, first.cholesky, first.colors)
        cases = [(f"{m} Gaussians", images, m) for m in (number // 2, number * 5 // 4, number * 2)]
        cases.append(("its picture moved by one pixel", np.roll(images, 1, axis=2), number))
        for name, pictures, wanted in cases:
            warm = splat2d.fit(pictures, wanted, num_iters=60, start=start).psnr.mean()
            cold = [splat2d.fit(pictures, wanted, num_iters=k).psnr.mean() for k in (60, 200)]
            rows.append(f"{number} | {name} | {warm:.2f} | {cold[0]:.2f} | {cold[1]:.2f}")
    table("start", "from N | to | 60 iterations from it: dB | 60 from nothing | 200 from nothing", rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", nargs="+", type=Path, required=True, help="folders or tars of pictures")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--num-gaussians", nargs="+", type=int, default=[400, 1600, 3136])
    parser.add_argument("--targets", nargs="+", type=float, default=[28.0, 32.0], help="dB")
    args = parser.parse_args()
    pictures = load(args.images, size=args.size, limit=args.limit)
    images = pictures.batch()
    print(f"{pictures.origin}, {args.size} px; {processor()}, {splat2d.backend()}; commit {commit()}")
    targets(images, args.num_gaussians)
    fewest(images, args.targets, 6000)
    plateaus(images, args.num_gaussians)
    pruning(images, args.num_gaussians)
    warm_starts(images, args.num_gaussians)


if __name__ == "__main__":
    main()
