"""All that a run in MLflow holds, copied into another one: of two that were made for the same."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NAME = "mlflow.runName"
MERGED = "splatclip.merged_into"
UNNAMED = "-pending"  # ends the name of a parent whose data are not known yet
METRICS, TEXTS = 800, 90  # in one request; MLflow takes 1000 and 100


def copy_run(client: MlflowClient, source: str, target: str) -> None:
    """Copy params, metrics with their history, tags, inputs, artifacts and the end; what `target` has already stays.

    Raises what MLflow's client raises. Doing it twice changes nothing.
    """
    from mlflow.entities import Param, RunTag

    run, into = client.get_run(source), client.get_run(target)
    for key in run.data.metrics:
        points = list(client.get_metric_history(source, key))
        for start in range(0, len(points), METRICS):
            client.log_batch(target, metrics=points[start : start + METRICS])
    params = [Param(*pair) for pair in run.data.params.items() if pair[0] not in into.data.params]
    for start in range(0, len(params), TEXTS):
        client.log_batch(target, params=params[start : start + TEXTS])
    have = {**into.data.tags, MERGED: ""}
    if into.data.tags.get(NAME, UNNAMED).endswith(UNNAMED):
        have.pop(NAME, None)
    tags = [RunTag(*pair) for pair in run.data.tags.items() if pair[0] not in have]
    for start in range(0, len(tags), TEXTS):
        client.log_batch(target, tags=tags[start : start + TEXTS])
    if run.inputs is not None and run.inputs.dataset_inputs:
        client.log_inputs(target, run.inputs.dataset_inputs)
    _copy_artifacts(client, source, target, "")
    if into.info.status == "RUNNING" and run.info.end_time:
        client.set_terminated(target, status=run.info.status, end_time=run.info.end_time)


def _copy_artifacts(client: MlflowClient, source: str, target: str, folder: str) -> None:
    for found in client.list_artifacts(source, folder or None):
        if found.is_dir:
            _copy_artifacts(client, source, target, found.path)
            continue
        with tempfile.TemporaryDirectory(prefix="splatclip-") as scratch:
            path = client.download_artifacts(source, found.path, scratch)
            parent = PurePosixPath(found.path).parent.as_posix()
            client.log_artifact(target, str(Path(path)), None if parent == "." else parent)
