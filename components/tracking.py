"""Recording runs in MLflow: a parent run a pipeline run, a nested run a step (docs/tracking.md).

Everything is written to a journal first, and a thread of its own delivers it: the work never waits for the tracking
server, never fails by it, and loses nothing while it is away.
"""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components import tracking_figures
from components.config import semantic
from components.errors import Interrupted, SplatClipError
from components.manifest import canonical, sha256_bytes
from components.operations import TrackingParams
from components.provenance import provenance
from components.series import listening
from components.tracking_client import fingerprint, tracking_uri
from components.tracking_journal import Journal, now_ms
from components.tracking_outbox import Outbox
from components.tracking_system import SystemMonitor, gpus_held, in_pod, peak_memory

if TYPE_CHECKING:
    from components import Step
    from components.report import Report

__all__ = [
    "RunInfo",
    "StepTracker",
    "close_run",
    "current_run_id",
    "run_info",
    "status_of",
    "track_step",
    "tracking_uri",
]
PIPELINE = "train-eval"
WAIT_S = 60.0
KILLED_WAIT_S = 5.0  # who stops a process gives it half a minute
SCORED = "zero_shot_eval"
ON_PARENT = (SCORED, "splat_fit", "splat_fit_eval")


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The pipeline run that steps belong to. id: Kubeflow's, or one of our own; "" for a stage run by itself.

    kubeflow: each step is a process of its own, under Kubeflow's run id; given: the run that MLFLOW_RUN_ID names;
    given_to: what that is: "step" (Kubeflow makes a run a step and hands it in) or "parent".
    """

    id: str
    params: TrackingParams
    kubeflow: bool = False
    given: str = ""
    given_to: str = "parent"

    @property
    def experiment(self) -> str:
        """Its experiment's name."""
        return f"splatclip/{self.params.environment}/{PIPELINE}"


@dataclass
class StepTracker:
    """What a step tells the tracker. tags: where its code, data and image come from."""

    tags: dict[str, str] = field(default_factory=dict)
    recorder: _Recorder | None = None

    def finish(self, report: Report) -> None:
        """Record a finished stage."""
        if report.stage == "download":
            self.tags["data.hash"] = report.manifest_sha256
        if self.recorder is not None:
            self.recorder.finish(report)

    def artifact(self, name: str, data: bytes) -> None:
        """Attach a file to the step's run and to its parent."""
        if self.recorder is not None:
            self.recorder.artifact(name, data)


_outboxes: dict[str, Outbox] = {}
_active: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)


def _outbox() -> Outbox:
    return _outboxes.setdefault(tracking_uri(), Outbox(tracking_uri()))


def run_info(params: TrackingParams, run_id: str = "") -> RunInfo | None:
    """A new run's info (with an id of its own if none is given), or None where tracking is switched off.

    run_id: of a Kubeflow run. SPLATCLIP_TRACKING=off switches tracking off.
    """
    if os.environ.get("SPLATCLIP_TRACKING", "").strip().lower() in ("off", "0", "false", "no"):
        return None
    given = os.environ.get("MLFLOW_RUN_ID", "").strip()
    return RunInfo(
        id=run_id or os.urandom(8).hex(),
        params=params,
        kubeflow=bool(run_id),
        given=given,
        given_to="step" if run_id and in_pod() else "parent",
    )


class _Recorder:
    """Writes one step's journal."""

    def __init__(self, step: Step, section: Any, store: str, info: RunInfo, tags: dict[str, str]) -> None:
        self.step, self.section, self.info, self.tags = step, section, info, tags
        self.outbox = _outbox()
        self.journal = Journal(store, fingerprint(self.outbox.uri))
        self.nested = bool(info.id)
        self.report: Report | None = None
        self.told: set[tuple[str, int]] = set()
        self.started = time.monotonic()

    def open(self, dataset: dict[str, str] | None) -> None:
        """The runs, their parameters and data."""
        _open_runs(self.journal, self.info, self.tags, self.step.name)
        params = tracking_figures.params_of(self.section)
        self.journal.log("step", params=params, tags=self.tags)
        if self.nested:
            on_parent = {f"{self.step.section}.{name}": value for name, value in params.items()}
            self.journal.log("parent", params=on_parent)
        if dataset is not None:
            context = "evaluation" if self.step.name in tracking_figures.EVALUATIONS else "training"
            self.journal.add("inputs", to="step", datasets=[{**dataset, "context": context}])
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
        for phase, step, values in tracking_figures.curve(report, self.told):
            self.curve(phase, step, values)
        figures = tracking_figures.flat(report.metrics) | tracking_figures.intervals(report, self.journal.store)
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
            name = {"git": self.tags["git.sha"][:7], "data": report.manifest_sha256[:7]}
            self.journal.add("name", to="parent", **name)

    def artifact(self, name: str, data: bytes) -> None:
        """A file for the step's run and its parent."""
        text = base64.b64encode(data).decode()
        for to in ("step", "parent") if self.nested else ("step",):
            self.journal.add("artifact", to=to, name=name, data=text)

    def end(self, status: str) -> None:
        """What the step took; its run's end; delivery, if nobody comes later to wait for it."""
        seconds = time.monotonic() - self.started if self.report is None else self.report.seconds
        backend = "" if self.report is None else str(self.report.metrics.get("backend", ""))
        gpu_seconds = seconds * gpus_held(getattr(self.section, "device", ""), backend)
        cost = gpu_seconds * self.info.params.gpu_hour_price / 3600
        took = {"seconds": seconds, "gpu_seconds": gpu_seconds, "cost": cost}
        self.metrics("step", took | peak_memory())
        if self.nested:
            self.metrics("parent", {f"{self.step.name}/{name}": value for name, value in took.items()})
            self.journal.add("gather", to="parent")
        self.journal.add("end", to="step", status=status, time=now_ms())
        self.journal.closed = True
        if self.journal.ready or self.report is None or not self.report.cached:
            self.begin()
            if self.info.kubeflow or not self.nested:
                _settle(self.outbox, status)


def _open_runs(journal: Journal, info: RunInfo, tags: Mapping[str, str], step: str = "") -> None:
    """The journal's runs: "parent", "step", or both."""
    start, common = now_ms(), {"mlflow.source.name": "splatclip", "mlflow.source.git.commit": tags["git.sha"]}
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


def _settle(outbox: Outbox, status: str) -> None:
    """Wait for delivery, not for long; what is left goes into the store."""
    longest = KILLED_WAIT_S if status == "KILLED" else float("inf")
    try:
        delivered = outbox.wait(min(longest, _patience()))
    except KeyboardInterrupt:
        outbox.leave()
        raise
    if not delivered:
        outbox.leave()


def _patience() -> float:
    """SPLATCLIP_TRACKING_WAIT: seconds that delivery may take at the end."""
    try:
        return max(0.0, float(os.environ.get("SPLATCLIP_TRACKING_WAIT", WAIT_S)))
    except ValueError:
        return WAIT_S


@contextmanager
def track_step(
    step: Step, section: Any, inputs: Mapping[str, str], store: str, info: RunInfo | None
) -> Iterator[StepTracker]:
    """Record a step for the length of the block. Raises nothing of its own, however the tracking server fares."""
    data_hash, dataset = "", None
    with contextlib.suppress(SplatClipError):  # the stage opens its inputs as well, and says what is wrong with them
        data_hash, dataset = tracking_figures.images_of(inputs, store)
    kfp_run_id = info.id if info is not None and info.kubeflow else ""
    params_hash = sha256_bytes(canonical(semantic(section)))
    tags = provenance(kfp_run_id=kfp_run_id, data_hash=data_hash, params_hash=params_hash)
    if info is None:
        yield StepTracker(tags)
        return
    recorder = _Recorder(step, section, store, info, tags)
    recorder.open(dataset)
    monitor = SystemMonitor(lambda at, values: recorder.metrics("step", values, at))
    monitor.start()
    token = _active.set(recorder)
    status = "FAILED"
    try:
        with listening(recorder.emitted):
            yield StepTracker(tags, recorder)
        status = "FINISHED"
    except BaseException as error:
        status = status_of(error)
        raise
    finally:
        _active.reset(token)
        monitor.stop()
        recorder.end(status)


def status_of(error: BaseException) -> str:
    """MLflow's word for how a run ended that raised this."""
    return "KILLED" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "FAILED"


def current_run_id(wait_s: float) -> str | None:
    """MLflow's id of the run of the step that is being recorded, once it is delivered; None after so long, or if none.

    A stage run by itself is recorded from here on, even if it turns out to have nothing to do.
    """
    recorder = _active.get()
    if recorder is None:
        return None
    recorder.begin()
    return recorder.outbox.wait_run(recorder.journal, "step", wait_s)


def close_run(info: RunInfo | None, store: str, status: str) -> None:
    """End the parent run with MLflow's word `status`, and what a kill left running below it; wait for delivery."""
    if info is None or not info.id:
        return
    outbox = _outbox()
    journal = Journal(store, fingerprint(outbox.uri))
    tags = provenance(kfp_run_id=info.id if info.kubeflow else "")
    _open_runs(journal, info, tags)
    journal.add("close", to="parent", status=status, time=now_ms())
    journal.ready = journal.closed = True
    outbox.add(journal)
    _settle(outbox, status)
