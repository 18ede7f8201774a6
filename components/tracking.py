"""Recording runs in MLflow: a parent run a pipeline run, a nested run a step (docs/tracking.md).

Everything is written to a journal first, and a thread of its own delivers it: the work never waits for the tracking
server, never fails by it, and loses nothing while it is away.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components import tracking_figures
from components.config import semantic
from components.errors import Interrupted, SplatClipError
from components.local_run import LocalRun
from components.manifest import canonical, sha256_bytes
from components.operations import TrackingParams
from components.provenance import origin, provenance
from components.series import listening
from components.tracking_client import fingerprint, tracking_uri
from components.tracking_journal import Journal, now_ms
from components.tracking_outbox import Outbox
from components.tracking_recorder import Recorder, RunInfo, open_runs
from components.tracking_system import SystemMonitor, forget_peak, in_pod

if TYPE_CHECKING:
    from components import Step
    from components.report import Report

__all__ = [
    "RunInfo",
    "StepTracker",
    "close_run",
    "current_run_id",
    "current_tags",
    "note",
    "run_info",
    "status_of",
    "track_step",
    "tracking_uri",
]
WAIT_S = 60.0
KILLED_WAIT_S = 5.0  # who stops a process gives it half a minute


@dataclass
class StepTracker:
    """What a step tells the tracker. tags: where its code, data and image come from."""

    tags: dict[str, str] = field(default_factory=dict)
    recorder: Recorder | None = None

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
_active: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def _outbox() -> Outbox:
    return _outboxes.setdefault(tracking_uri(), Outbox(tracking_uri()))


def run_info(params: TrackingParams, run_id: str = "") -> RunInfo | None:
    """A new run's info (with an id of its own if none is given), or None where tracking is switched off.

    run_id: of a Kubeflow run. SPLATCLIP_TRACKING=off switches tracking off.
    """
    if os.environ.get("SPLATCLIP_TRACKING", "").strip().lower() in ("off", "0", "false", "no"):
        return None
    given = os.environ.get("MLFLOW_RUN_ID", "").strip()
    local = LocalRun.current()
    return RunInfo(
        id=run_id or os.urandom(8).hex(),
        params=params,
        kubeflow=bool(run_id),
        given=given,
        given_to="step" if run_id and in_pod() and local is None else "parent",
        origin=local.origin if local else origin(),
    )


def _settle(outbox: Outbox, status: str) -> None:
    """Wait for delivery, not for long; what is left goes into the store."""
    longest = KILLED_WAIT_S if status == "KILLED" else float("inf")
    try:
        outbox.wait(min(longest, _patience()))
    finally:  # also by a signal
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
    begun = info.origin if info is not None else None
    tags = provenance(begun, kfp_run_id=kfp_run_id, data_hash=data_hash, params_hash=params_hash)
    if info is None:
        yield StepTracker(tags)
        return
    recorder = Recorder(step, section, store, info=info, tags=tags, outbox=_outbox())
    recorder.open(dataset)
    forget_peak()
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
        if recorder.journal.ready and (info.kubeflow or not info.id):  # otherwise close_run comes later, and waits
            _settle(recorder.outbox, status)


def status_of(error: BaseException) -> str:
    """MLflow's word for how a run ended that raised this."""
    return "KILLED" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "FAILED"


def current_tags() -> dict[str, str]:
    """Where code, data and image of the step that is being recorded come from; as found now where none is."""
    recorder = _active.get()
    return dict(recorder.tags) if recorder else provenance()


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
    """End the parent run with MLflow's word `status`, and what a kill left running below it; wait for delivery.

    status "": FINISHED if the flow's last step is, else FAILED.
    """
    if info is None or not info.id:
        return
    outbox = _outbox()
    journal = Journal(store, fingerprint(outbox.uri))
    tags = provenance(info.origin, kfp_run_id=info.id if info.kubeflow else "")
    open_runs(journal, info, tags)
    journal.add("close", to="parent", status=status, time=now_ms())
    journal.ready = journal.closed = True
    outbox.add(journal)
    _settle(outbox, status)


def note(info: RunInfo | None, store: str, tags: Mapping[str, str]) -> None:
    """Give the parent run tags, from a step that is no stage; waits for delivery."""
    if info is None or not info.id:
        return
    outbox = _outbox()
    journal = Journal(store, fingerprint(outbox.uri))
    open_runs(journal, info, provenance(info.origin, kfp_run_id=info.id if info.kubeflow else ""))
    journal.log("parent", tags=tags)
    journal.ready = journal.closed = True
    outbox.add(journal)
    _settle(outbox, "FINISHED")
