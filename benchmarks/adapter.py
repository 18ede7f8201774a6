"""Students, their fair control and their teacher on one image set: a grid of rows, made once, resumable.

    python benchmarks/adapter.py --images ../shared/data/cifar10 --grid final --seeds 0 1
    python benchmarks/adapter.py --images ../shared/data/cifar10 --grid ablation

Everything goes through the stages' own run(): what the store holds already is found by its hash. The control depends
neither on the stem nor on the number of Gaussians: one run a seed and policy trains it, for all students. All
students are trained before any of them sees the test split, which is scored for final rows only, once. Tables are
written after every row; a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from adapter_grid import GRIDS, Spec, control_fields
from adapter_report import markdown, packed
from records import Journal, Row, processor

from components import series
from components.config import Params, semantic
from components.download.stage import run as download
from components.errors import Interrupted, PermanentError, UsageError
from components.manifest import Artifact, open_artifact
from components.params import load_params
from components.splat_fit.stage import run as splat_fit
from components.store import open_store
from components.train_adapter.stage import run as train_adapter
from components.train_teacher.stage import run as train_teacher
from components.zero_shot_eval.stage import run as zero_shot_eval

ROOT = Path(__file__).resolve().parent.parent
CONTROLS = ("teacher", "control", "control_stage1")


def digest(*values: Any) -> str:
    """Twelve digits that stand for JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


class Clock:
    """Wall and processor time by phase of training, from one thing told to the next."""

    def __init__(self, spent: Mapping[str, list[float]] | None = None) -> None:
        self.spent: dict[str, list[float]] = {phase: list(times) for phase, times in (spent or {}).items()}
        self._last = (time.perf_counter(), time.process_time())

    def __call__(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Count the time since the last call for this phase."""
        now = (time.perf_counter(), time.process_time())
        total = self.spent.setdefault(phase, [0.0, 0.0])
        for place in range(2):
            total[place] += now[place] - self._last[place]
        self._last = now

    def of(self, *starts: str) -> dict[str, float | None]:
        """Of phases whose names start so; None where nothing was measured, as all was found."""
        found = [spent for phase, spent in self.spent.items() if phase.startswith(starts)]
        wall, cpu = (sum(spent[place] for spent in found) if found else None for place in range(2))
        return {"seconds": wall, "cpu_seconds": cpu}


class Grid:
    """Makes what rows need, and the rows."""

    def __init__(self, params: Params, store: str, journal: Journal, title: str) -> None:
        self.params, self.store, self.journal, self.title = params, store, journal, title
        self.images = download(params.download, store=store).url

    def teacher(self, seed: int) -> str:
        """The teacher of a seed."""
        return train_teacher(replace(self.params.train_teacher, seed=seed), images=self.images, store=self.store).url

    def splats(self, number: int) -> str:
        """Fits of so many Gaussians."""
        wanted = replace(self.params.splat_fit, num_gaussians=number)
        return splat_fit(wanted, images=self.images, store=self.store).url

    def _open(self, path: str) -> Artifact:
        """What lies at a path of the store, or at an address."""
        root = open_store(self.store)
        return open_artifact(path if path.startswith(root.url) else root.sub(path).url, root)

    def _path(self, url: str) -> str:
        return url.removeprefix(open_store(self.store).url).lstrip("/")

    def key(self, spec: Spec, seed: int) -> Row:
        """What finds a student's row again; without the seed, rows of several seeds are one line."""
        wanted = semantic(spec.params(self.params.train_adapter, 0))
        fits = semantic(replace(self.params.splat_fit, num_gaussians=spec.num_gaussians))
        made = digest(wanted, fits, semantic(replace(self.params.train_teacher, seed=0)))
        return {"row": spec.name, "N": spec.num_gaussians, "seed": seed, "params": made}

    def control_key(self, spec: Spec) -> str:
        """The same for students that share a control."""
        wanted = control_fields(semantic(spec.params(self.params.train_adapter, 0)))
        return digest(wanted, semantic(replace(self.params.train_teacher, seed=0)))

    def train(self, spec: Spec, seed: int) -> bool:
        """Train a student and keep its figures on validation; False where this version cannot.

        The first student of a seed and policy trains the control of all.
        """
        own, control = self.key(spec, seed), {"control": self.control_key(spec), "seed": seed}
        key, base = {"kind": "trained", **own}, self.params.train_adapter
        hosts = self.journal.find(key) is None and self.journal.find({"kind": "control trained", **control}) is None
        given = {"images": self.images, "teacher": self.teacher(seed), "splats": self.splats(spec.num_gaussians)}
        changes: dict[str, Any] = {"control": True, "control_with_stage1": base.control_with_stage1} if hosts else {}
        earlier = [row["spent"] for row in self.journal.rows() if row["key"].get("stopped") == own]
        clock = Clock(earlier[-1] if earlier else {})

        def work() -> Row:
            with series.listening(clock):
                url = train_adapter(replace(spec.params(base, seed), **changes), **given, store=self.store).url
            metrics = self._open(url).manifest.metrics
            kept = ("trained", "trained_share", "trained_vision_share", "trained_all_share", "student_val_accuracy")
            return {
                **{name: metrics.get(name) for name in kept},
                "steps": metrics["stage1_steps"] + metrics["stage2_steps"],
                "learning_rate": metrics["student_learning_rate"],
                "control": control["control"],
                "policy": spec.params(base, seed).freeze_policy,
                "artifact": self._path(url),
                "given": {name: self._path(one) for name, one in given.items()},
                **clock.of("stage1", "stage2"),
            }

        name = f"{spec.name}, N {spec.num_gaussians}, seed {seed}"
        try:
            row = self.journal.once(key, work)
        except (UsageError, PermanentError) as error:
            reason = str(error)
            self.journal.once({"kind": "left out", **own}, lambda: {"reason": reason})
            print(f"{name}: left out: {error}", flush=True)
            return False
        except Interrupted:
            stop = {"kind": "stopped", "stopped": own, "count": len(earlier)}
            self.journal.once(stop, lambda: {"spent": clock.spent})
            raise
        if hosts:
            self.journal.once(
                {"kind": "control trained", **control}, lambda: {"by": row["key"], **clock.of("control_lr")}
            )
        print(f"{name}: {row['student_val_accuracy']} on validation", flush=True)
        return True

    def _answers(self, trained: Row, split: str) -> tuple[Row, dict[str, str]]:
        """Figures of an evaluation of what was trained, and hits by model, packed."""
        wanted = replace(self.params.zero_shot_eval, split=split)
        given = {name: self._open(path).url for name, path in trained["given"].items()}
        adapter = self._open(trained["artifact"]).url
        done = self._open(zero_shot_eval(wanted, **given, adapter=adapter, store=self.store).url)
        with done.local("predictions.csv") as path, path.open(newline="") as file:
            answers = list(csv.DictReader(file))
        models = [name.removeprefix("class_") for name in answers[0] if name.startswith("class_")]
        hits = {m: packed(np.array([line[f"class_{m}"] == line["class"] for line in answers])) for m in models}
        metrics = done.manifest.metrics
        figures = {"psnr_db": metrics["psnr_db_mean"], "compression": metrics["compression_paper"]}
        classes = int(self._open(self.images).manifest.metrics["num_classes"])
        return {"n": len(answers), "num_classes": classes, **figures}, hits

    def control(self, name: str, seed: int, split: str) -> None:
        """Score a control, once a split."""
        key = {"control": name, "seed": seed}

        def work() -> Row:
            made = self.journal.find({"kind": "control trained", **key})
            trained = self.journal.find(made["by"]) if made is not None else None
            if made is None or trained is None:
                raise UsageError(
                    f"{self.journal.path} names no control of seed {seed}; delete it, the store keeps the work"
                )
            figures, hits = self._answers(trained, split)
            metrics = self._open(trained["artifact"]).manifest.metrics
            kept = ("learning_rate", "val_accuracy", "trained", "trained_share")
            return {
                **figures,
                **{name: metrics.get(f"control_{name}") for name in kept},
                "stage1_val_accuracy": metrics.get("control_stage1_val_accuracy"),
                "steps": metrics["stage2_steps"],
                "seconds": made["seconds"],
                "cpu_seconds": made["cpu_seconds"],
                "hits": {name: hits[name] for name in CONTROLS if name in hits},
            }

        self.journal.once({"kind": "control", **key, "split": split}, work)

    def score(self, spec: Spec, seed: int) -> None:
        """Score a trained student and its control, on the test split where its row is final."""
        split, own = "test" if spec.final else "val", self.key(spec, seed)
        trained = self.journal.find({"kind": "trained", **own})
        if trained is None:
            raise RuntimeError(f"{spec.name} is not trained")
        self.control(trained["control"], seed, split)

        def work() -> Row:
            figures, hits = self._answers(trained, split)
            kept = {name: value for name, value in trained.items() if name not in ("key", "made", "origin")}
            models = {name: found for name, found in hits.items() if name not in CONTROLS}
            return {**kept, **figures, "hits": models}

        self.journal.once({"kind": "student", **own, "split": split}, work)
        self.write()

    def write(self) -> None:
        """The table of what there is."""
        if self.journal.path is not None:
            self.journal.path.with_suffix(".md").write_text(markdown(self.journal, self.title))

    def run(self, specs: list[Spec], seeds: list[int]) -> None:
        """All rows: students first, then scores."""
        ready = [(spec, seed) for seed in seeds for spec in specs if self.train(spec, seed)]
        for spec, seed in ready:
            self.score(spec, seed)
        self.write()


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="image set, as download.path")
    parser.add_argument("--params", default=str(ROOT / "params" / "cifar10.yaml"), help="profile (default: cifar10)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the profile")
    parser.add_argument("--grid", choices=sorted(GRIDS), default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", default=[], help="only rows whose name contains one of these")
    parser.add_argument("--num-gaussians", type=int, nargs="+", default=[], help="only rows of these budgets")
    parser.add_argument("--store", default="runs/store", help="where artifacts are found and put (default runs/store)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "adapter_cifar10")
    return parser


def chosen(args: argparse.Namespace, params: Params) -> list[Spec]:
    """The rows that are asked for; UsageError where there are none."""
    specs = [
        spec
        for spec in GRIDS[args.grid](params.train_adapter)
        if (not args.rows or any(part in spec.name for part in args.rows))
        and (not args.num_gaussians or spec.num_gaussians in args.num_gaussians)
    ]
    if not specs:
        names = sorted({spec.name for spec in GRIDS[args.grid](params.train_adapter)})
        raise UsageError(
            f"--rows, --num-gaussians: no row is left of the grid {args.grid!r}; it has: {', '.join(names)}"
        )
    return specs


def main() -> None:
    """Make the grid."""
    args = arguments().parse_args()
    params = load_params(args.params, [f"download.path={args.images}", *args.set])
    specs = chosen(args, params)
    images = download(params.download, store=args.store)
    origin = {
        "pictures": f"{params.download.dataset} (manifest {images.manifest_sha256[:12]})",
        "hardware": f"{processor()}, {params.train_adapter.threads or os.cpu_count()} threads",
    }
    journal = Journal(args.out.with_suffix(".json"), origin)
    title = f"Students and their control: {params.download.dataset}"
    Grid(params, args.store, journal, title).run(specs, args.seeds)
    print(f"written: {args.out.with_suffix('.md')}, {args.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
