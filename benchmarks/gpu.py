"""What benchmarks/gpu.sh runs once the module is built: tests, then measurements, most important first.

Each section has a share of the time and says what it left out; rows are written as they are made.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import splat2d
import torch
from choices import first_reaching, pairs_inside
from device import MemoryWatch, kernel_share
from gpu_gsplat import iterations_per_second as gsplat_rate
from gpu_report import markdown
from measure import shown_db
from native import OPERATIONS, compiled_cuda, measured_peak, run, sorted_fit
from pictures import Pictures, cycled, load, procedural
from records import Journal, Row, module_digest, processor
from torch_fit import iterations_per_second

ROOT = Path(__file__).resolve().parent.parent
LADDER = (20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 135, 150, 165, 180, 200, 230, 260, 300, 400, 600)
# Seconds a section may end after the start, if the whole may take 500.
SECTIONS = {
    "tests": 190, "control": 340, "batches": 380, "stage": 400,
    "sorted": 420, "torch": 440, "adapter": 490, "gsplat": 500,
}  # fmt: skip


ADAPTER_CPU = "components/train_teacher/models/vit_32.json"  # the model of --cpu


def figures(row: Row) -> str:
    """A row in one line."""
    shown = {name: value for name, value in row.items() if name not in ("key", "made", "origin", "psnr_db")}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )


class Bench:
    """One run: pictures, rows, clock."""

    def __init__(self, args: argparse.Namespace, pictures: Pictures, journal: Journal) -> None:
        self.args, self.journal = args, journal
        self.images = cycled(pictures, max(args.batches))
        self.device = "cpu" if args.cpu else "cuda"
        self.section, self.ends = "", 0.0

    def begin(self, section: str) -> None:
        """Start a section: it may last until its share of the time is gone."""
        self.section = section
        self.ends = self.args.started + SECTIONS[section] * self.args.seconds / 500
        left = self.ends - time.time()
        print(f"== {section}: {left:.0f} s left for it", flush=True)

    def once(self, key: Row, work: Callable[[], Row], expected_s: float = 0.0) -> Row | None:
        """Measure and keep; where the section's time does not suffice, keep a note instead."""
        found = self.journal.find(key)
        if found is not None:
            return found
        left = self.ends - time.time()
        row: Row | None = None
        reason = ""
        if left < expected_s or left <= 0:
            reason = f"about {expected_s:.0f} s, {max(left, 0):.0f} s left of its section"
            self.journal.once({"kind": "left out", "what": key}, lambda: {"reason": reason})
        else:
            try:
                row = self.journal.once(key, work)
            except (RuntimeError, ImportError, OSError, ValueError) as error:  # one failure does not end the run
                reason = str(error)[-800:] or type(error).__name__
                self.journal.once({"kind": "left out", "what": key}, lambda: {"reason": reason})
        shown = f"left out: {reason}" if row is None else figures(row)
        print(f"{figures(key)}: {shown}", flush=True)
        self.write()
        return row

    def write(self) -> None:
        out = self.journal.path
        if out is not None:
            out.with_suffix(".md").write_text(markdown(self.journal))

    def fitted(self, number: int, recipe: str, num_iters: int, batch: int, share: bool = False) -> Row:
        """One fit of `batch` pictures from host arrays to host arrays; short ones are run five times (the median)."""
        images = self.images[:batch]
        watch = MemoryWatch() if self.device == "cuda" else None

        def fit(its: int = num_iters) -> splat2d.FitResult:
            return splat2d.fit(
                images,
                number,
                recipe=recipe,
                num_iters=its,
                device=self.device,
                progress=lambda _: watch.look() if watch else None,
            )

        fit(min(num_iters, 50))  # warms up
        walls: list[float] = []
        while not walls or (len(walls) < 5 and sum(walls) < 1.0):
            start = time.perf_counter()
            result = fit()
            walls.append(time.perf_counter() - start)
        wall = median(walls)
        height, width = images.shape[1:3]
        few = range(0, batch, max(1, batch // 16))
        pairs = fmean(pairs_inside(result.means[i], result.cholesky[i], height, width) for i in few)
        row: Row = {
            "wall_s": wall,
            "images_per_s": batch / wall,
            "iterations_per_s": batch * num_iters / wall,
            "psnr_db_mean": float(result.psnr.mean()),
            "pairs_mean": pairs,
        }
        if splat2d.RECIPES[recipe].start_share == 1.0:  # otherwise most iterations have fewer pairs than the last one
            row["gflops"] = 1e-9 * OPERATIONS * pairs * batch * num_iters / wall
        if watch is not None:
            row |= {"memory_bytes": watch.most} if watch.most > 0 else {}
            row |= kernel_share(fit) if share else {}
        kept = result.counts[0]
        parts = (result.means[0, :kept], result.cholesky[0, :kept], result.colors[0, :kept])
        file, _ = splat2d.encode(*parts, width, height)
        row["file_loss_db"] = float(result.psnr[0]) - shown_db(splat2d.decode(file), images[0])
        return row

    def fit_row(self, number: int, recipe: str, num_iters: int, batch: int, expected_s: float = 0.0) -> Row | None:
        """The kept row of such a fit."""
        key: Row = {"kind": "fit", "N": number, "recipe": recipe, "num_iters": num_iters, "batch": batch}
        return self.once(key, partial(self.fitted, number, recipe, num_iters, batch), expected_s)

    def tests(self) -> None:
        self.begin("tests")
        left = max(10.0, self.ends - time.time())

        def work() -> Row:
            if importlib.util.find_spec("pytest") is None:
                raise RuntimeError("no pytest here")
            # No project settings: they ask for plugins that may be missing.
            options = ["-q", "-c", os.devnull, "--rootdir", str(ROOT), "-m", "not full", "-p", "no:cacheprovider"]
            files = sorted(str(path) for path in ROOT.glob(self.args.tests))
            command = [sys.executable, "-S", "-m", "pytest", *options, *files]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=left)
            print(done.stdout[-3000:], flush=True)
            return {"passed": done.returncode == 0, "said": done.stdout.strip().splitlines()[-1:]}

        def in_time() -> Row:
            try:
                return work()
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"the tests were stopped after {left:.0f} s") from None

        self.once({"kind": "tests"}, in_time)

    def control(self) -> None:
        """Images a second at the control's PSNR, by N."""
        self.begin("control")
        num_iters, most = self.args.control_iters, self.args.most
        for done, number in enumerate(self.args.num_gaussians):
            short = self.fit_row(number, "paper", 100, most, 5.0)
            if short is None:
                continue
            seconds = (self.ends - time.time()) / (2 * (len(self.args.num_gaussians) - done))
            batch = 2 ** int(np.log2(max(8.0, short["iterations_per_s"] * seconds / num_iters)))
            batch = min(batch, most)
            expected = batch * num_iters / short["iterations_per_s"]
            control = self.fit_row(number, "paper", num_iters, batch, expected)
            if control is None:
                continue

            missing: list[int] = []

            def db(its: int, n: int = number, b: int = batch, missing: list[int] = missing) -> float:
                row = self.fit_row(n, "default", its, b)
                if row is None:
                    missing.append(its)
                return math.inf if row is None else float(row["psnr_db_mean"])  # infinite: nothing more is tried

            reached = first_reaching(LADDER, control["psnr_db_mean"], db)
            note = "the ladder's largest budget is below it"
            if missing:
                reached, note = None, f"not known: {missing[0]} iterations were left out"
            key: Row = {"kind": "reached", "N": number, "num_iters": reached, "batch": batch, "control": num_iters}
            self.once(key, partial(dict, {} if reached else {"note": note}))
            if reached is not None and self.device == "cuda":
                key = {"kind": "profiled", "N": number, "recipe": "default", "num_iters": reached, "batch": most}
                self.once(key, partial(self.fitted, number, "default", reached, most, share=True))

    def reached(self, number: int) -> int:
        """Iterations that the later sections use for `default`: those found, or the recipe's own."""
        found = [row["key"] for row in self.journal.rows() if row["key"]["kind"] == "reached"]
        its = [key["num_iters"] for key in found if key["N"] == number and key["num_iters"]]
        return its[-1] if its else splat2d.RECIPES["default"].num_iters

    def batches(self) -> None:
        self.begin("batches")
        for number in (self.args.num_gaussians[0], max(self.args.num_gaussians)):
            rate = math.inf
            for batch in self.args.batches:
                row = self.fit_row(number, "default", self.reached(number), batch, 1.5 * batch / rate)
                rate = rate if row is None else float(row["images_per_s"])

    def stage(self) -> None:
        """Pictures a second of the whole stage, for which splat_fit's packages are needed."""
        self.begin("stage")
        for number in (self.args.num_gaussians[0], max(self.args.num_gaussians)):
            num_iters = self.reached(number)

            def work(number: int = number, num_iters: int = num_iters) -> Row:
                from gpu_stage import measured

                from components.errors import SplatClipError

                try:
                    return measured(list(self.images[: self.args.most]), number, num_iters, self.device)
                except SplatClipError as error:
                    raise RuntimeError(str(error)) from error

            self.once({"kind": "stage", "N": number, "num_iters": num_iters}, work)

    def sorted(self, program: Future[Path] | None) -> None:
        """The sort-based rasteriser, one picture at a time, and this project's fit of one picture."""
        self.begin("sorted")
        for number in self.args.num_gaussians:
            self.fit_row(number, "paper", 300, 1)
            self.once({"kind": "sorted", "N": number}, partial(self.sorted_row, program, number, 300))

    def sorted_row(self, program: Future[Path] | None, number: int, num_iters: int) -> Row:
        if program is None:
            raise RuntimeError("it runs on a GPU alone")
        images = self.images[:2]
        row = sorted_fit(program.result(), images, number, num_iters)
        ours = splat2d.fit(images, number, recipe="paper", num_iters=num_iters, device=self.device)
        row["psnr_db_mean"] = float(np.mean(row["psnr_db"]))
        if abs(row["psnr_db_mean"] - float(ours.psnr.mean())) > 0.2:
            raise RuntimeError(f"it ends at {row['psnr_db_mean']:.2f} dB, the fit at {ours.psnr.mean():.2f} dB")
        return row | {"iterations_per_s": len(images) * num_iters / row["seconds"]}

    def torch(self) -> None:
        self.begin("torch")
        images = self.images[: 64 if self.device == "cuda" else 4]
        for number in self.args.num_gaussians:

            def rate(n: int = number) -> Row:
                its, batches = (20, (1, 4, 16, 64)) if self.device == "cuda" else (2, (1, 4))
                threads = os.cpu_count() or 1 if self.device == "cuda" else 1
                options: dict[str, Any] = {"num_iters": its, "threads": threads, "batches": batches}
                return {"iterations_per_s": iterations_per_second(images, n, device=self.device, **options)}

            self.once({"kind": "torch", "N": number}, rate)

    def adapter(self) -> None:
        """Stage 2's training step with splats read by a ViT-B-16, and the control's on pictures."""
        self.begin("adapter")
        model, batch, steps = ("ViT-B-16", 128, 10) if self.device == "cuda" else (ADAPTER_CPU, 2, 1)

        def work(stem: str, number: int) -> Row:
            from gpu_adapter import measured  # needs open_clip

            if self.device == "cuda":
                torch.cuda.empty_cache()
            return measured(model, stem, number, batch, self.device, steps=steps)

        for stem, number in (("", 0), *((stem, n) for stem in ("splat", "paper") for n in self.args.adapter)):
            key: Row = {"kind": "adapter", "model": Path(model).stem, "stem": stem, "N": number, "batch": batch}
            self.once(key, partial(work, stem, number))

    def gsplat(self) -> None:
        """Where that package is installed: its 2D part renders one picture, forward and backward."""
        self.begin("gsplat")
        for number in self.args.num_gaussians:
            self.once({"kind": "gsplat", "N": number}, partial(gsplat_rate, self.images[0], number))


def chosen_pictures(args: argparse.Namespace) -> Pictures:
    """The given pictures, those of ../shared/data or shared/data, or procedural ones."""
    sources: list[Path] = args.images or []
    for folder in (ROOT.parent / "shared" / "data", ROOT / "shared" / "data"):
        sources = (
            sources or sorted((folder / "flickr8k-1k").glob("*.tar")) or [p for p in [folder / "kodak"] if p.is_dir()]
        )
    if not sources:
        return procedural(16 if args.cpu else 64, args.size)
    return load(sources, size=args.size, limit=args.most, every=8 if args.cpu else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="small sizes on the CPU: proves the script")
    parser.add_argument("--images", type=Path, nargs="+", help="folders, tars (default: ../shared/data, or procedural)")
    parser.add_argument("--seconds", type=float, default=500, help="for everything, the build included (default 500)")
    parser.add_argument("--tests", default="tests/test_splat2d_*.py", help="files to test with, '' for none")
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    parser.add_argument("--package", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--command", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    module = Path(splat2d._core.__file__ or "")
    if args.package is not None and args.package.resolve() not in module.resolve().parents:
        raise SystemExit(f"gpu.sh built {args.package}, but {module} was imported")
    if not args.cpu and not splat2d.has_cuda():
        raise SystemExit("no CUDA device (nvidia-smi says more); gpu.sh --cpu proves the script without one")
    args.size, args.most, args.control_iters = (
        (32, 16, 200) if args.cpu else (224, 1024, splat2d.RECIPES["paper"].num_iters)
    )
    args.num_gaussians = [16, 40] if args.cpu else [400, 3136, 900, 1600]
    args.adapter = [16, 40] if args.cpu else [400, 3136]
    args.batches = [1, 4, 16] if args.cpu else [1, 4, 16, 64, 256, 1024, 4096]

    name = "cpu" if args.cpu else torch.cuda.get_device_name(0)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-").removeprefix("nvidia-")
    pictures = chosen_pictures(args)
    origin: Row = {
        "pictures": f"{pictures.origin}, {args.size} x {args.size} px (digest {pictures.digest})",
        "hardware": name if not args.cpu else processor(),
        "host": f"{processor()}, {os.cpu_count()} processors",
        "build": module_digest(),
    }
    out = Path(os.environ.get("OUT", ROOT / "benchmarks" / "results"))
    out /= f"fit_{slug}_{datetime.now(UTC):%Y-%m-%d}.json"
    bench = Bench(args, pictures, Journal(out, origin, args.command))
    with ThreadPoolExecutor(2) as pool:
        program = None
        if not args.cpu:
            program = pool.submit(compiled_cuda, "sorted_fit", _architecture())
        if args.tests:
            bench.tests()
        bench.begin("control")
        bench.once({"kind": "peak"}, partial(measured_peak, os.cpu_count() or 1) if args.cpu else _device_peak)
        bench.control()
        bench.batches()
        bench.stage()
        bench.sorted(program)
        bench.torch()
        bench.adapter()
        bench.gsplat()
    bench.write()
    print(f"written: {out.with_suffix('.md')}, {out} ({time.time() - args.started:.0f} s in all)")


def _architecture() -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(0))


def _device_peak() -> Row:
    peak: Row = json.loads(run([compiled_cuda("peak", _architecture())]))
    return {"gflops": peak["gflops"], "isa": peak["name"]}


if __name__ == "__main__":
    main()
