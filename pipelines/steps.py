"""What the steps of a run are at, out of what Kubeflow tells of Argo's nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
    """What the run's steps are at, by when they began; without what is Kubeflow's own.

    Of several tries of one node the last one counts. A step that a loop starts several times is as its worst one.
    """
    details = (run.run_details.task_details if run.run_details else None) or []
    parents = {child.task_id: task.task_id for task in details for child in task.child_tasks or [] if child.task_id}
    nodes: dict[tuple[str, str], StepState] = {}
    for task in details:
        key, tries = re.subn(r"\(\d+\)$", "", task.display_name or "")
        if key not in names and (not key or names or _NO_STEP.fullmatch(key)):
            continue
        error = task.error.message if task.error else ""
        step = StepState(
            names.get(key, key), task.state or UNKNOWN, time_of(task.start_time), time_of(task.end_time), error
        )
        node = (parents.get(task.task_id) or task.parent_task_id) if tries else task.task_id
        before = nodes.get((step.name, node or ""))
        if before is None or (step.started or _EARLY) >= (before.started or _EARLY):
            nodes[step.name, node or ""] = step
    found: dict[str, list[StepState]] = {}
    for step in nodes.values():
        found.setdefault(step.name, []).append(step)
    steps = [_of_all(several) for several in found.values()]
    return sorted(steps, key=lambda step: (step.started or _LATE, step.name))


def _of_all(several: list[StepState]) -> StepState:
    """The iterations of one step as one: its worst state, from the first's begin to the last's end."""
    worst = max(several, key=lambda step: _BAD.get(step.state, _AT_WORK))
    ends = [step.ended for step in several if step.ended is not None]
    begun = min((step.started for step in several if step.started is not None), default=None)
    return replace(worst, started=begun, ended=max(ends) if len(ends) == len(several) else None)


_BAD = {"SKIPPED": 0, "SUCCEEDED": 1, "CANCELED": 2, "FAILED": 4}
_AT_WORK = 3
_EARLY, _LATE = datetime(1971, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


def time_of(value: datetime | None) -> datetime | None:
    """KFP writes 1970 where nothing has happened yet."""
    return value if value is not None and value > _EARLY else None
