"""Students, their fair control and their teacher on one image set: a grid of rows, made once, resumable.

    python benchmarks/adapter.py --images ../shared/data/cifar10 --grid final --seeds 0 1
    python benchmarks/adapter.py --images ../shared/data/cifar10 --grid ablation

Everything goes through the stages' own run(): what the store holds already is found by its hash. The control depends
neither on the stem nor on the number of Gaussians: one run a seed and policy trains it, for all students. A call trains
all its students before it scores one; the test split is for final rows alone. A row that was scored there is not
trained with other parameters, unless --again says why, and the report repeats it. Tables are written after every row; a
second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from adapter_clock import Clock
from adapter_grid import GRIDS, Spec, chosen, control_fields
from adapter_report import markdown, packed
from records import Journal, Row, processor

from components import series
from components.config import Params, semantic
from components.device import pick_device, precision
from components.download.stage import run as download
from components.errors import Interrupted, UsageError
from components.manifest import Artifact, open_artifact
from components.params import load_params
from components.splat_fit.stage import run as splat_fit
from components.store import open_store
from components.train_adapter.stage import run as train_adapter
from components.train_teacher.stage import run as train_teacher
from components.zero_shot_eval.stage import run as zero_shot_eval

ROOT = Path(__file__).resolve().parent.parent
CONTROLS = ("teacher", "control", "control_stage1")
STAGES = ("download", "train_teacher", "splat_fit", "train_adapter", "zero_shot_eval")


def digest(*values: Any) -> str:
    """Twelve digits that stand for JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


class Grid:
    """Makes what rows need, and the rows."""

    def __init__(self, params: Params, store: str, journal: Journal, title: str, again: str = "") -> None:
        self.params, self.store, self.journal, self.title, self.again = params, store, journal, title, again
        self._went: set[tuple[int, int]] = set()
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
        reader = self._open(self.params.splat_fit.reader).manifest.sha256 if self.params.splat_fit.reader else ""
        read_by = [reader] if reader else []  # where it lies is no part of the parameters
        made = digest(wanted, fits, semantic(replace(self.params.train_teacher, seed=0)), *read_by)
        return {"row": spec.name, "N": spec.num_gaussians, "seed": seed, "params": made}

    def control_key(self, spec: Spec) -> str:
        """The same for students that share a control."""
        base = self.params.train_adapter
        wanted = control_fields(base, spec.params(base, 0))
        return digest(wanted, semantic(replace(self.params.train_teacher, seed=0)))

    def train(self, spec: Spec, seed: int) -> bool:
        """Train a student and keep its figures on validation; False where its own changes do not go.

        The first student of a seed and policy trains the control of all. An error in the inputs is raised, and so is
        one in the parameters before a row of this seed and number of Gaussians went: it may be the profile's.
        """
        name, place = f"{spec.name}, N {spec.num_gaussians}, seed {seed}", (seed, spec.num_gaussians)
        try:
            spec.params(self.params.train_adapter, seed)
        except UsageError as error:  # the profile alone was valid
            return self._leave_out(spec, seed, error)
        try:
            row = self._trained(spec, seed)
        except UsageError as error:
            if place not in self._went:
                raise
            return self._leave_out(spec, seed, error)
        self._went.add(place)
        self._keep_control(row, self.control_key(spec), seed)
        self.write()
        print(f"{name}: {row['student_val_accuracy']} on validation", flush=True)
        return True

    def _leave_out(self, spec: Spec, seed: int, error: UsageError) -> bool:
        key = {"kind": "left out", "row": spec.name, "N": spec.num_gaussians, "seed": seed}
        reason = str(error)
        self.journal.once({**key, "params": digest(semantic(self.params.train_adapter))}, lambda: {"reason": reason})
        print(f"{spec.name}, N {spec.num_gaussians}, seed {seed}: left out: {reason}", flush=True)
        self.write()
        return False

    def _trained(self, spec: Spec, seed: int) -> Row:
        """The row of a trained student."""
        own, control, base = self.key(spec, seed), self.control_key(spec), self.params.train_adapter
        hosts = self.journal.find({"kind": "control trained", "control": control, "seed": seed}) is None
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
                "control": control,
                "policy": spec.params(base, seed).freeze_policy,
                "final": spec.final,
                "artifact": self._path(url),
                "given": {name: self._path(one) for name, one in given.items()},
                **clock.of("stage1", "stage2"),
                **({"control_spent": clock.of("control_lr")} if hosts else {}),
                **({"again": self.again} if self.scored_before(spec, seed) else {}),
            }

        try:
            return self.journal.once({"kind": "trained", **own}, work)
        except Interrupted:
            stop = {"kind": "stopped", "stopped": own, "count": len(earlier)}
            self.journal.once(stop, lambda: {"spent": clock.spent})
            raise

    def _keep_control(self, trained: Row, control: str, seed: int) -> None:
        """The row of the control that a student's run trained, if it did; also after a kill between the two rows."""
        if trained["control"] != control:
            raise UsageError(
                f"{self.journal.path}: {trained['key']['row']!r}, seed {seed}, was trained beside another control than "
                "this call's (control_with_stage1 differs, or the journal is of an earlier version); give another --out"
            )
        key = {"kind": "control trained", "control": control, "seed": seed}
        if self.journal.find(key) is not None:
            return
        made = self._open(trained["artifact"])
        wanted = ["control", "control_stage1"] if self.params.train_adapter.control_with_stage1 else ["control"]
        if not all(made.has(f"{name}.safetensors") for name in wanted):
            return
        spent = trained.get("control_spent", {"seconds": None, "cpu_seconds": None})
        values = {f"{name}_val_accuracy": made.manifest.metrics.get(f"{name}_val_accuracy") for name in wanted}
        self.journal.once(key, lambda: {"by": trained["key"], **spent, **values})

    def scored_before(self, spec: Spec, seed: int) -> bool:
        """Whether a final row of this name, N and seed, but of other parameters, has been scored on the test split.

        Rows of other machines count: they saw the same pictures.
        """
        if not spec.final:
            return False
        own = self.key(spec, seed)
        return any(
            row["key"]["kind"] == "student"
            and row["key"]["split"] == "test"
            and row["origin"]["pictures"] == self.journal.origin["pictures"]
            and all(row["key"][name] == own[name] for name in ("row", "N", "seed"))
            and row["key"]["params"] != own["params"]
            for row in self.journal.everything()
        )

    def _check_again(self, specs: list[Spec], seeds: list[int]) -> None:
        """UsageError where a row would be trained anew after the test split had judged it, and nobody says why."""
        names = [
            f"{spec.name}, N {spec.num_gaussians}, seed {seed}"
            for seed in seeds
            for spec in specs
            if self.scored_before(spec, seed) and self.journal.find({"kind": "trained", **self.key(spec, seed)}) is None
        ]
        if names and not self.again:
            raise UsageError(
                f"{self.journal.path}: already scored on the test split, with other parameters: {'; '.join(names)}. "
                "Parameters are chosen on validation (--grid ablation); --again REASON trains them all the same, and "
                "the report prints the reason"
            )

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
        pictures = digest([line["key"] for line in answers])
        return {"n": len(answers), "num_classes": classes, "pictures": pictures, **figures}, hits

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
        self.journal.report(lambda: markdown(self.journal, self.title))

    def run(self, specs: list[Spec], seeds: list[int]) -> None:
        """All rows: students first, then scores."""
        self._check_again([spec for spec in specs if spec.final], seeds)
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
    parser.add_argument(
        "--num-gaussians", type=int, nargs="+", default=[], help="Gaussians a picture (default: the grid's own)"
    )
    parser.add_argument("--again", default="", metavar="REASON", help="train rows anew that the test split has judged")
    parser.add_argument("--store", default="runs/store", help="where artifacts are found and put (default runs/store)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "adapter_cifar10")
    return parser


def main() -> None:
    """Make the grid."""
    args = arguments().parse_args()
    params = load_params(args.params, [f"download.path={args.images}", *args.set])
    specs = chosen(args.grid, params.train_adapter, args.rows, args.num_gaussians)
    images = download(params.download, store=args.store)
    device = pick_device(params.train_adapter.device)
    origin = {
        "pictures": f"{params.download.dataset} (manifest {images.manifest_sha256[:12]})",
        "hardware": f"{processor()}, {params.train_adapter.threads or os.cpu_count()} threads, {precision(device)}",
        # A stage's version goes up where the same parameters give other results.
        "stages": ", ".join(f"{name} {import_module(f'components.{name}.stage').VERSION}" for name in STAGES),
    }
    journal = Journal(args.out.with_suffix(".json"), origin)
    title = f"Students and their control: {params.download.dataset}"
    Grid(params, args.store, journal, title, args.again).run(specs, args.seeds)
    print(f"written: {args.out.with_suffix('.md')}, {args.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
