"""Recording runs in MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.errors import Interrupted
from components.operations import TrackingParams
from components.tracking_client import tracking_uri

if TYPE_CHECKING:
    from components import Step
    from components.report import Report


__all__ = ["RunInfo", "StepTracker", "close_run", "run_info", "status_of", "track_step", "tracking_uri"]


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The pipeline run that steps belong to. id: Kubeflow's, or one of our own; "" for a stage run by itself."""

    id: str
    params: TrackingParams


@dataclass
class StepTracker:
    """What a step tells the tracker."""

    tags: dict[str, str] = field(default_factory=dict)

    def finish(self, report: Report) -> None:
        """Record a finished stage."""

    def artifact(self, name: str, data: bytes) -> None:
        """Attach a file to the step's run and to its parent."""


def run_info(params: TrackingParams, run_id: str = "") -> RunInfo | None:
    """A new run's info (with an id of its own if none is given), or None where tracking is switched off."""
    return None


@contextmanager
def track_step(
    step: Step, section: Any, inputs: Mapping[str, str], store: str, info: RunInfo | None
) -> Iterator[StepTracker]:
    """Record a step for the length of the block."""
    yield StepTracker()


def status_of(error: BaseException) -> str:
    """MLflow's word for how a run ended that raised this."""
    return "KILLED" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "FAILED"


def close_run(info: RunInfo | None, store: str, status: str) -> None:
    """End the parent run."""
