"""What of a step goes into its journal: its runs, parameters, data, curves, figures, files, and what it took."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components import tracking_figures
from components.errors import SplatClipError
from components.operations import TrackingParams
from components.provenance import NONE
from components.redaction import redacted
from components.tracking_client import fingerprint
from components.tracking_journal import Journal, now_ms
from components.tracking_outbox import Outbox, tell
from components.tracking_system import gpus_held, peak_memory

if TYPE_CHECKING:
    from components import Step
    from components.report import Report

PIPELINE = "train-eval"
SCORED = "zero_shot_eval"
ON_PARENT = (SCORED, "splat_fit", "splat_fit_eval")


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The pipeline run that steps belong to. id: Kubeflow's, or one of our own; "" for a stage run by itself.

    kubeflow: each step is a process of its own, under Kubeflow's run id; given: the run that MLFLOW_RUN_ID names;
    given_to: what that is: "step" (Kubeflow makes a run a step and hands it in) or "parent"; origin: what the code was
    when the run began (provenance.origin).
    """

    id: str
    params: TrackingParams
    kubeflow: bool = False
    given: str = ""
    given_to: str = "parent"
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def experiment(self) -> str:
        """Its experiment's name."""
        return f"splatclip/{self.params.environment}/{PIPELINE}"


class Recorder:
    """Writes one step's journal."""

    def __init__(
        self, step: Step, section: Any, store: str, *, info: RunInfo, tags: dict[str, str], outbox: Outbox
    ) -> None:
        self.step, self.section, self.info, self.tags = step, section, info, tags
        self.outbox = outbox
        self.journal = Journal(store, fingerprint(self.outbox.uri))
        self.nested = bool(info.id)
        self.report: Report | None = None
        self.told: set[tuple[str, int]] = set()
        self.started = time.monotonic()

    def open(self, dataset: dict[str, str] | None) -> None:
        """The runs, their parameters and data."""
        open_runs(self.journal, self.info, self.tags, self.step.name)
        params = redacted(tracking_figures.params_of(self.section))
        self.journal.log("step", params=params, tags=self.tags)
        if self.nested:
            on_parent = {f"{self.step.section}.{name}": value for name, value in params.items()}
            self.journal.log("parent", params=on_parent | tracking_figures.params_of(self.info.params, "tracking."))
        if dataset is not None:
            context = "evaluation" if self.step.name in tracking_figures.EVALUATIONS else "training"
            for to in ("step", "parent") if self.nested else ("step",):
                self.journal.add("inputs", to=to, datasets=[{**dataset, "context": context}])
        if self.nested:
            self.begin()

    def begin(self) -> None:
        """Let delivery begin: at once for a step; for a stage by itself once it turns out to have work to do."""
        if not self.journal.ready:
            self.journal.ready = True
            self.outbox.add(self.journal)

    def emitted(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Values that the stage emits while it works."""
        self.told.add((phase, step))
        if "samples_per_s" not in values and "steps_per_s" in values and hasattr(self.section, "batch_size"):
            values = {**values, "samples_per_s": values["steps_per_s"] * self.section.batch_size}
        self.curve(phase, step, values)
        self.begin()

    def curve(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """A point of each value's curve."""
        self.metrics("step", {f"{phase}/{name}": value for name, value in values.items()}, step)

    def metrics(self, to: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log values, now."""
        now = now_ms()
        found = tracking_figures.finite(values)
        self.journal.log(to, metrics=[(tracking_figures.key(name), float(v), now, step) for name, v in found.items()])

    def finish(self, report: Report) -> None:
        """The stage's outcome: figures, curves that were not told live, where its output lies."""
        self.report = report
        figures = tracking_figures.flat(report.metrics)
        try:
            for phase, step, values in tracking_figures.curve(report, self.told):
                self.curve(phase, step, values)
            if report.stage == SCORED:
                figures |= tracking_figures.intervals(report)
        except SplatClipError as error:
            tell(f"{self.step.name} is recorded without its curves or intervals: {error}")
        self.metrics("step", figures | report.speeds)
        facts = {f"{report.stage}.{name}": value for name, value in report.facts.items()}
        done = {
            "artifact.url": report.url,
            "artifact.sha256": report.manifest_sha256,
            "cached": str(report.cached).lower(),
        }
        self.journal.log("step", tags={**self.tags, **done, **facts})
        if not self.nested:
            return
        if report.stage in ON_PARENT:
            prefix = "" if report.stage == SCORED else f"{self.step.name}/"
            self.metrics("parent", {f"{prefix}{name}": value for name, value in figures.items()})
        self.journal.log("parent", tags=facts)
        if self.step.name == "download":
            self.journal.log("parent", tags={"data.hash": report.manifest_sha256})
            if not self.info.given:
                self.journal.add("name", to="parent", data=report.manifest_sha256[:7])

    def artifact(self, name: str, data: bytes) -> None:
        """A file for the step's run and its parent."""
        text = base64.b64encode(data).decode()
        for to in ("step", "parent") if self.nested else ("step",):
            self.journal.add("artifact", to=to, name=name, data=text)

    def end(self, status: str) -> None:
        """What the step took; its run's end."""
        held = time.monotonic() - self.started  # with what was tried again
        seconds = held if self.report is None else self.report.seconds
        backend = "" if self.report is None else str(self.report.metrics.get("backend", ""))
        gpu_seconds = held * gpus_held(getattr(self.section, "device", ""), backend)
        cost = gpu_seconds * self.info.params.gpu_hour_price / 3600
        took = {"seconds": seconds, "gpu_seconds": gpu_seconds, "cost": cost}
        self.metrics("step", took | peak_memory())
        if self.nested:
            self.metrics("parent", {f"{self.step.name}/{name}": value for name, value in took.items()})
            self.journal.add("gather", to="parent", time=now_ms())
        self.journal.add("end", to="step", status=status, time=now_ms())
        self.journal.closed = True
        if self.journal.ready or self.report is None or not self.report.cached:
            self.begin()


def open_runs(journal: Journal, info: RunInfo, tags: Mapping[str, str], step: str = "") -> None:
    """The journal's runs: "parent", "step", or both."""
    start, common = now_ms(), {"mlflow.source.name": "splatclip"}
    if tags["git.sha"] != NONE:
        common["mlflow.source.git.commit"] = tags["git.sha"]
    given_step = info.given and (info.given_to == "step" or not info.id)
    place: dict[str, Any] = {"experiment": info.experiment, "start": start}
    parent_tags = {**common, **tags, "splatclip.kind": "pipeline", "splatclip.run_id": info.id}
    del parent_tags["params.hash"], parent_tags["data.hash"]  # known to the parent later than to its steps
    parent = {"as": "parent", **place, "name": f"{tags['git.sha'][:7]}-pending", "tags": parent_tags}
    own = {**common, "splatclip.kind": "step" if info.id else "stage", "splatclip.journal": journal.id}
    below = {"as": "step", **place, "name": step, "tags": own, "find": {"splatclip.journal": journal.id}}
    if given_step:
        journal.add("run", **{**below, "given": info.given})
        if info.id:
            journal.add("run", **{**parent, "above": "step"})
        return
    if info.id:
        given = {"given": info.given} if info.given else {"find": {"splatclip.run_id": info.id}}
        journal.add("run", **parent, **given)
    if step:
        journal.add("run", **below, nested_in="parent" if info.id else "")
