"""Every figure of the fit at one picture size: the control, how much faster and how much better the recipes are.

    python benchmarks/fit.py --images ../shared/data/kodak
    python benchmarks/fit.py --images ../shared/data/flickr8k-1k/0000[0-3].tar --every 42 --limit 24

Fits with the recipe `paper` (the control) and with the others on the same kernels, in turn, and writes rows (JSON) and
tables (Markdown). A second call with the same pictures, threads and build goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import splat2d
from choices import first_reaching, largest_within
from fit_report import LADDER_RECIPE, markdown, summary
from measure import complete, short_run_rate
from native import measured_peak, roofline
from pictures import Pictures, load
from records import Journal, Row, module_digest, processor
from rich.console import Console
from torch_fit import iterations_per_second

CONTROL = "paper"
RESULTS = Path(__file__).resolve().parent / "results"
LADDER = (20, 25, 30, 35, 40, 50, 60, 70, 80, 90, 100, 110, 120, 135, 150, 165, 180, 200, 230, 260, 300, 400, 600, 1000)
PARTS = ("time", "gain", "torch", "roofline")


class Session:
    """One call's pictures, settings and rows."""

    def __init__(self, pictures: Pictures, args: argparse.Namespace, journal: Journal) -> None:
        self.pictures, self.args, self.journal = pictures, args, journal
        self.batch = pictures.batch()

    def fitted(self, number: int, recipe: str, num_iters: int, repeat: int = 0) -> Row:
        """A complete fit of all pictures, kept as a row."""
        key: Row = {"kind": "fit", "N": number, "recipe": recipe, "num_iters": num_iters, "repeat": repeat}
        images, args = self.pictures.images, self.args
        return self.journal.once(
            key, lambda: complete(images, number, recipe, num_iters, threads=args.threads, device=args.device)
        )

    def control(self, number: int, repeat: int = 0) -> Row:
        return self.fitted(number, CONTROL, splat2d.RECIPES[CONTROL].num_iters, repeat)

    def peak(self, when: int | str) -> None:
        """Measured beside the fits: a machine's clock changes."""
        self.journal.once({"kind": "peak", "when": when}, lambda: measured_peak(self.args.threads))

    def reached(self, number: int) -> int | None:
        """The smallest budget of the ladder with which LADDER_RECIPE has the control's mean PSNR."""
        goal = mean_db(self.control(number))
        return first_reaching(
            self.args.ladder, goal, lambda num_iters: mean_db(self.fitted(number, LADDER_RECIPE, num_iters))
        )

    def third(self, number: int, recipe: str) -> int:
        """The iterations of `recipe` that take at most a third of the control's time."""
        limit = 1.0 / 3.0

        def share(num_iters: int) -> float:
            return float(self.fitted(number, recipe, num_iters)["cpu_s"] / self.control(number)["cpu_s"])

        def walls(num_iters: int) -> float:
            """Median over all repeats, control and candidate in turn."""
            shares = (
                self.fitted(number, recipe, num_iters, repeat)["wall_s"] / self.control(number, repeat)["wall_s"]
                for repeat in range(self.args.repeats)
            )
            return float(median(shares))

        num_iters = largest_within(share, limit, self.args.probes)
        for _ in range(3):  # processor time chose; wall time, over all repeats, decides
            if (found := walls(num_iters)) <= limit:
                break
            num_iters = max(1, int(num_iters * 0.99 * limit / found))
        else:
            walls(num_iters)  # the last reduction too is measured; the table gives its share, whatever it is
        return num_iters

    def measure(self, number: int) -> None:
        """All rows of one N, control and candidates in turn."""
        args = self.args
        self.control(number)
        chosen: dict[str, Any] = {"kind": "chosen", "N": number}
        reached = self.reached(number) if "time" in args.parts else None
        for repeat in range(args.repeats):
            self.control(number, repeat)
            if reached is not None:
                self.fitted(number, LADDER_RECIPE, reached, repeat)
        third = {recipe: self.third(number, recipe) for recipe in args.recipes} if "gain" in args.parts else {}
        key = {**chosen, "repeats": args.repeats, "reached": reached, "third": third}
        self.journal.once(key, dict)
        if "torch" in args.parts and args.torch_iters:
            self.torch(number)
        if "roofline" in args.parts and args.device == "cpu":
            self.peak(number)
            self.journal.once(
                {"kind": "roofline", "N": number},
                lambda: roofline(self.batch, number, LADDER_RECIPE, threads=args.threads),
            )

    def torch(self, number: int) -> None:
        """The PyTorch baseline and, beside it, short runs of the recipes on the same few pictures."""
        few, threads = self.batch[:4], self.args.threads

        def rates() -> Row:
            row: Row = {"torch": iterations_per_second(few, number, num_iters=self.args.torch_iters, threads=threads)}
            for recipe in (CONTROL, *self.args.recipes):
                row[recipe] = short_run_rate(few, number, recipe, threads=threads, device=self.args.device)
            return row

        self.journal.once({"kind": "rates", "N": number}, rates)


def mean_db(row: Row) -> float:
    return float(sum(row["psnr_db"]) / len(row["psnr_db"]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of pictures, webdataset tars")
    parser.add_argument("--size", type=int, default=224, help="side of the square pictures (default 224)")
    parser.add_argument("--limit", type=int, default=0, help="at most so many pictures (0: all)")
    parser.add_argument("--every", type=int, default=1, help="every k-th picture (default 1)")
    parser.add_argument("--num-gaussians", type=int, nargs="+", default=[400, 900, 1600, 3136])
    others = [name for name in splat2d.RECIPES if name != CONTROL]
    parser.add_argument("--recipes", nargs="*", choices=others, default=others, help="recipes that run a third as long")
    parser.add_argument("--ladder", type=int, nargs="+", default=list(LADDER), help="budgets on the way to the PSNR")
    parser.add_argument("--probes", type=int, nargs=2, default=(100, 400), help="iterations of the two first tries")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each pair that is timed (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the fit and of torch (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--torch-iters", type=int, default=5, help="iterations of the baseline (0: leave it out)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    parser.add_argument("--out", type=Path, help="OUT.json and OUT.md (default benchmarks/results/fit_DEVICE_NAME)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    pictures = load(args.images, size=args.size, limit=args.limit, every=args.every)
    name = args.images[0].resolve()
    out = args.out or RESULTS / f"fit_{args.device}_{name.name if name.is_dir() else name.parent.name}"
    origin: Row = {
        "pictures": f"{pictures.origin}, {args.size} x {args.size} px (digest {pictures.digest})",
        "hardware": f"{processor()}, {args.threads} threads",
        "device": args.device if args.device == "cuda" else f"cpu ({splat2d.backend()})",
        "build": module_digest(),
    }
    journal = Journal(out.with_suffix(".json"), origin)
    console = Console(stderr=True)
    if journal.resumed:
        console.print(f"{journal.path}: {journal.resumed} rows are there already and are kept")
    session = Session(pictures, args, journal)
    for number in args.num_gaussians:
        session.measure(number)
        out.with_suffix(".md").write_text(markdown(journal))
        console.print({key: value for key, value in summary(journal, number).items() if value is not None})
    console.print(f"written: {out.with_suffix('.md')}, {out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
