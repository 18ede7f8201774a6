"""Runs in MLflow: a parent a pipeline run and a nested run a step, each made once by whoever comes first.

MLflow has no "create unless there": everybody looks, creates, looks again, keeps the oldest and merges the others into
it, with all that they hold. Who writes to one of the others is told where it went.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from components import FLOW
from components.errors import TransientError
from components.manifest import canonical, sha256_bytes
from components.tracking_client import artifact_location, failures, is_permanent
from components.tracking_copy import MERGED, NAME, copy_run
from components.tracking_journal import Op

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

PARENT = "mlflow.parentRunId"
RUN_ID = "splatclip.run_id"
CREATED = "splatclip.created_ns"
PARAMS_HASH, GIT = "params.hash", "git.sha"
TOTALS = ("seconds", "gpu_seconds", "cost")
PAGE = 1000
KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages for training, not for chat


class RunTree:
    """Makes, finds, names and ends runs on one server. Raises what MLflow's client raises."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._uri = client, uri
        self._experiments: dict[str, str] = {}

    def run(self, op: Op, known: Mapping[str, str | None]) -> str | None:
        """MLflow's id of the run that a `run` operation makes or finds; None: it has no parent to be found."""
        if op.get("above"):
            below = known.get(op["above"])
            return None if below is None else self._client.get_run(below).data.tags.get(PARENT)
        parent = known.get(op["nested_in"]) if op.get("nested_in") else None
        tags = {**op["tags"], **({PARENT: parent} if parent else {})}
        if op.get("given"):
            self._mark(op["given"], {key: value for key, value in tags.items() if not key.startswith("mlflow.")})
            return str(op["given"])
        run_id = self._ensure(op, tags, self._client.get_run(parent).info.experiment_id if parent else None)
        while parent and (into := self.deleted(parent)[1]):  # merged after whoever did that looked what it holds
            self.relink(run_id, parent, into)
            parent = into
        return run_id

    def _mark(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        found = self._client.get_run(run_id)
        # what the first one said stays: later steps, and the end, may be of other code
        missing = [RunTag(*tag) for tag in tags.items() if tag[0] == PARENT or tag[0] not in found.data.tags]
        self._client.log_batch(run_id, tags=missing)

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    made: str = self._client.create_experiment(name, artifact_location(self._uri), KIND)
                    self._experiments[name] = made
                    return made
                except failures() as error:
                    found = self._client.get_experiment_by_name(name)
                    if found is None or not is_permanent(error):
                        raise
            if found.lifecycle_stage == "deleted":
                raise TransientError(f"experiment {name} is deleted; restore it with `mlflow experiments restore`")
            self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _find(self, experiment: str, tags: Mapping[str, str]) -> list[Run]:
        """The active runs with these tags, the oldest first."""
        text = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = list(self._client.search_runs([experiment], text, max_results=PAGE))
        return sorted(runs, key=lambda run: (int(run.data.tags.get(CREATED, "0")), run.info.run_id))

    def _ensure(self, op: Op, tags: Mapping[str, str], experiment: str | None) -> str:
        experiment = experiment or self._experiment(op["experiment"])
        while True:
            runs = self._find(experiment, op["find"])
            if not runs:
                marks = {**tags, **op["find"], CREATED: str(time.time_ns())}
                self._client.create_run(experiment, start_time=op["start"], tags=marks, run_name=op["name"])
                runs = self._find(experiment, op["find"])
            ids: list[str] = [run.info.run_id for run in runs]
            try:
                for other in ids[1:]:
                    self._merge(experiment, other, ids[0])
                self._mark(ids[0], tags)
                return ids[0]
            except failures() as error:
                # one that somebody else merged meanwhile: again, with those that are left
                if not is_permanent(error) or not any(self.deleted(one)[0] for one in ids):
                    raise

    def _merge(self, experiment: str, run_id: str, into: str) -> None:
        self._move(experiment, run_id, into)
        self._client.set_tag(run_id, MERGED, into)
        self._client.delete_run(run_id)
        self._move(experiment, run_id, into)  # what came meanwhile

    def _move(self, experiment: str, run_id: str, into: str) -> None:
        for nested in self._find(experiment, {PARENT: run_id}):
            self._client.set_tag(nested.info.run_id, PARENT, into)
        copy_run(self._client, run_id, into)

    def deleted(self, run_id: str) -> tuple[bool, str | None]:
        """Whether the run is deleted, and the run that it was merged into, if so."""
        try:
            run = self._client.get_run(run_id)
        except failures() as error:
            if not is_permanent(error):
                raise
            return True, None
        return run.info.lifecycle_stage == "deleted", run.data.tags.get(MERGED)

    def relink(self, run_id: str, parent: str, to: str) -> None:
        """Nest a run under another parent, where it is nested under `parent`."""
        if self._client.get_run(run_id).data.tags.get(PARENT) == parent:
            self._client.set_tag(run_id, PARENT, to)

    def name(self, run_id: str, data: str) -> None:
        """Give the parent its name: commit, data and the time that it began, in UTC."""
        run = self._client.get_run(run_id)
        began = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
        self._client.set_tag(run_id, NAME, f"{run.data.tags[GIT][:7]}-{data}-{began:%Y%m%dT%H%M%SZ}")

    def gather(self, run_id: str, time_ms: int) -> list[Run]:
        """Give the parent what all its steps make up: the hash of their parameters and the sums; returns the steps."""
        from mlflow.entities import Metric, RunTag

        parent = self._client.get_run(run_id)
        nested = self._find(parent.info.experiment_id, {PARENT: run_id})
        hashes = {run.info.run_name: run.data.tags[PARAMS_HASH] for run in nested if PARAMS_HASH in run.data.tags}
        parts = {total: [r.data.metrics[total] for r in nested if total in r.data.metrics] for total in TOTALS}
        metrics = [Metric(total, sum(found), time_ms, len(found)) for total, found in parts.items() if found]
        self._client.log_batch(run_id, metrics, tags=[RunTag(PARAMS_HASH, sha256_bytes(canonical(hashes)))])
        return nested

    def close(self, run_id: str, status: str, end: int, *, spare: str | None) -> None:
        """End the parent, and as KILLED what still runs below it (except `spare`).

        status: MLflow's word, or "" where nobody knows: FINISHED then, if the last step of the flow is.
        """
        nested = self.gather(run_id, end)
        if not status:
            ends = {run.info.run_name: run.info.status for run in nested}
            status = "FINISHED" if ends.get(FLOW[-1].name) == "FINISHED" else "FAILED"
        for run in nested:
            if run.info.status == "RUNNING" and run.info.run_id != spare:
                self._client.set_terminated(run.info.run_id, status="KILLED", end_time=end)
        self._client.set_terminated(run_id, status=status, end_time=end)
