"""PSNR and seconds at the pictures' own size, beside published figures for Kodak with 10,000 Gaussians.

    python benchmarks/full_size.py --images ../shared/data/kodak

Pictures of one size are fitted together. A second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import splat2d
from measure import complete
from pictures import Pictures, load
from records import Journal, Row, module_digest, processor, table
from rich.console import Console

RESULTS = Path(__file__).resolve().parent / "results"
PUBLISHED = """\
Published for Kodak at 768 x 512 with 10,000 Gaussians, each in minutes a picture on a GPU: GaussianImage 32.5 dB,
GaussianImage++ 35.4 dB, LocoADC 36.2 dB (their own settings, losses and parameters a Gaussian)."""


def measure(pictures: Pictures, number: int, recipe: str, num_iters: int, args: argparse.Namespace) -> Row:
    """Complete fits of all pictures, size by size: seconds added up, PSNR [B] in the pictures' order."""
    total: Row = {"wall_s": 0.0, "cpu_s": 0.0, "num_images": len(pictures.images)}
    psnr = [0.0] * len(pictures.images)
    for group in pictures.by_shape():
        images = [pictures.images[index] for index in group]
        height, width = images[0].shape[:2]
        label = f"{recipe}, {num_iters} its, {width} x {height}"
        one = complete(images, number, recipe, num_iters, threads=args.threads, device=args.device, label=label)
        for index, value in zip(group, one["psnr_db"], strict=True):
            psnr[index] = value
        for field in ("wall_s", "cpu_s"):
            total[field] += one[field]
    return total | {"psnr_db": psnr}


def markdown(journal: Journal) -> str:
    header = ["N", "recipe", "iterations", "mean dB", "lowest, highest", "wall s a picture", "CPU s a picture"]
    rows: list[list[Any]] = []
    for row in sorted(journal.rows(), key=lambda r: (r["key"]["N"], r["key"]["recipe"], r["key"]["num_iters"])):
        key, values, count = row["key"], row["psnr_db"], row["num_images"]
        cells = [key["N"], f"`{key['recipe']}`", key["num_iters"], f"{fmean(values):.2f}"]
        cells += [
            f"{min(values):.2f}, {max(values):.2f}",
            f"{row['wall_s'] / count:.2f}",
            f"{row['cpu_s'] / count:.2f}",
        ]
        rows.append(cells)
    notes = "\n".join(f"- {line}" for line in journal.notes())
    how = "Wall seconds a picture: those of the whole set, on all threads, by the number of pictures; start and .gs2d"
    how += " round trip included. PSNR of the files, float render, not clamped."
    return "\n\n".join(["# splat2d.fit at full size", notes, how, table(header, rows), PUBLISHED]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of pictures, webdataset tars")
    parser.add_argument("--limit", type=int, default=0, help="at most so many pictures (0: all)")
    parser.add_argument("--every", type=int, default=1, help="every k-th picture (default 1)")
    parser.add_argument("--num-gaussians", type=int, default=10000)
    others = [name for name in splat2d.RECIPES if name != "paper"]
    parser.add_argument("--recipes", nargs="+", choices=list(splat2d.RECIPES), default=others)
    parser.add_argument("--budgets", type=int, nargs="+", default=[1000, 3000], help="besides each recipe's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="OUT.json and OUT.md (default benchmarks/results/full_size_DEVICE)")
    args = parser.parse_args()

    pictures = load(args.images, size=None, limit=args.limit, every=args.every)
    out = args.out or RESULTS / f"full_size_{args.device}"
    origin: Row = {
        "pictures": f"{pictures.origin}, own size (digest {pictures.digest})",
        "hardware": f"{processor()}, {args.threads} threads",
        "device": args.device if args.device == "cuda" else f"cpu ({splat2d.backend()})",
        "build": module_digest(),
    }
    journal = Journal(out.with_suffix(".json"), origin)
    budgets = {recipe: sorted({splat2d.RECIPES[recipe].num_iters, *args.budgets}) for recipe in args.recipes}
    for recipe, num_iters in sorted(((r, n) for r in args.recipes for n in budgets[r]), key=lambda pair: pair[1]):
        key: Row = {"kind": "full", "N": args.num_gaussians, "recipe": recipe, "num_iters": num_iters}
        journal.once(key, partial(measure, pictures, args.num_gaussians, recipe, num_iters, args))
        out.with_suffix(".md").write_text(markdown(journal))
    Console(stderr=True).print(f"written: {out.with_suffix('.md')}, {out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
