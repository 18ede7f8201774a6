"""What the steps of a run are at, out of what Kubeflow tells of Argo's nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.api import Api
from pipelines.api_errors import NotThereError

UNKNOWN = "UNKNOWN"
# What Argo's nodes are called that are no step of the pipeline
_NO_STEP = re.compile(
    r"root|(.*-)?executor|.+-driver|(exit-handler|condition|condition-branches|for-loop)-\d+|.*onExit"
)


@dataclass(frozen=True)
class StepState:
    """What a step is at. started, ended: None where it has not yet."""

    name: str
    state: str
    started: datetime | None
    ended: datetime | None
    error: str = ""


def step_names(api: Api, run: Any) -> dict[str, str]:
    """The steps' names by the names of their tasks in the graph; empty where the graph cannot be had."""
    spec = run.pipeline_spec
    version = run.pipeline_version_reference
    if not spec and version:
        try:
            spec = api.call(
                api.pipelines.pipeline_service_get_pipeline_version, version.pipeline_id, version.pipeline_version_id
            ).pipeline_spec
        except NotThereError:  # deleted since
            return {}
    return dict(_tasks((spec or {}).get("pipeline_spec", spec or {})))


def _tasks(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    components = spec.get("components", {})
    for group in (spec.get("root", {}), *components.values()):
        for key, task in group.get("dag", {}).get("tasks", {}).items():
            if "dag" not in components.get(task.get("componentRef", {}).get("name"), {}):  # no group, no condition
                yield key, task.get("taskInfo", {}).get("name", key)


def step_states(run: Any, names: Mapping[str, str]) -> list[StepState]:
    """What the run's steps are at, by when they began; without what is Kubeflow's own."""
    details = run.run_details.task_details if run.run_details else None
    found: dict[str, StepState] = {}
    for task in details or []:
        key = re.sub(r"\(\d+\)$", "", task.display_name or "")
        if key not in names and (not key or names or _NO_STEP.fullmatch(key)):
            continue
        error = task.error.message if task.error else ""
        step = StepState(
            names.get(key, key), task.state or UNKNOWN, time_of(task.start_time), time_of(task.end_time), error
        )
        before = found.get(step.name)
        if before is None or (step.started or _EARLY) >= (before.started or _EARLY):  # the last of several tries
            found[step.name] = step
    return sorted(found.values(), key=lambda step: (step.started or _LATE, step.name))


_EARLY, _LATE = datetime(1971, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


def time_of(value: datetime | None) -> datetime | None:
    """KFP writes 1970 where nothing has happened yet."""
    return value if value is not None and value > _EARLY else None
