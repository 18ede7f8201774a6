"""What a pipeline run came to, as MLflow has it, and the JSON that a webhook is told (docs/pipeline.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from components.operations import NotifyParams
from components.runs import ENDS, SPLATS
from components.tracking_client import connect, failures, reason, tracking_uri
from components.tracking_recorder import PIPELINE, RunInfo
from components.tracking_tree import PARENT, RUN_ID

if TYPE_CHECKING:
    from mlflow.entities import Run

FORMAT = 1
MESSAGE = 500  # characters of what Kubeflow says
MODEL = ("model", "version", "alias", "verdict")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run, read back. status: MLflow's word; failed_step: the first that did not finish; scores: value and interval.

    All of it is empty where MLflow is switched off or does not answer: `unread` says why.
    """

    name: str = ""
    status: str = ""
    failed_step: str = ""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: dict[str, str] = field(default_factory=dict)
    link: str = ""
    unread: str = ""


def read(info: RunInfo | None) -> Outcome:
    """The run of that info. Raises nothing of its own."""
    if info is None or not info.id:
        return Outcome(unread="tracking is switched off")
    try:
        client = connect(tracking_uri())
        experiment = client.get_experiment_by_name(info.experiment)
        if experiment is None:
            return Outcome(unread="the run is not recorded")
        place = [experiment.experiment_id]
        runs = client.search_runs(place, f"tags.`{RUN_ID}` = '{info.id}'")
        if not runs:
            return Outcome(unread="the run is not recorded")
        parent = runs[0]
        nested = client.search_runs(
            place, f"tags.`{PARENT}` = '{parent.info.run_id}'", order_by=["attributes.start_time ASC"]
        )
    except failures() as error:
        return Outcome(unread=f"no answer from MLflow ({reason(error)})")
    failed = [run.info.run_name for run in nested if run.info.status not in ("FINISHED", "RUNNING")]
    return Outcome(
        name=parent.info.run_name,
        status=parent.info.status,
        failed_step=failed[0] if failed else "",
        scores=_scores(parent),
        model={name: found for name in MODEL if (found := parent.data.tags.get(f"promote.{name}", ""))},
        link=_link(parent),
    )


def _scores(run: Run) -> dict[str, dict[str, Any]]:
    """The splats' headline figures, those that have an interval."""
    metrics = run.data.metrics
    found = {}
    for name, value in sorted(metrics.items()):
        interval = [metrics.get(f"{name}{end}", math.nan) for end in ENDS]
        if SPLATS.fullmatch(name) and all(map(math.isfinite, (value, *interval))):  # JSON has no others
            found[name] = {"value": value, "interval": interval}
    return found


def _link(run: Run) -> str:
    """MLflow's page of the run, where MLflow is a server; without a user or password."""
    parts = urlsplit(tracking_uri())
    if parts.scheme not in ("http", "https"):
        return ""
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    return f"{bare}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def body(
    event: str,
    run_id: str,
    outcome: Outcome,
    params: NotifyParams,
    *,
    environment: str,
    state: str = "",
    failed_step: str = "",
    message: str = "",
    model: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What the webhook is told. event: finished, champion or rollback; state: MLflow's word, the outcome's if empty."""
    known = state or outcome.status
    failed = failed_step or outcome.failed_step
    kubeflow = f"{params.kubeflow_url.rstrip('/')}/#/runs/details/{run_id}" if params.kubeflow_url and run_id else ""
    told = {
        "format": FORMAT,
        "event": event,
        "pipeline": PIPELINE,
        "environment": environment,
        "run_id": run_id,
        "name": outcome.name,
        "state": known,
        "failed_step": failed if known not in ("FINISHED", "RUNNING") else "",
        "message": message[:MESSAGE],
        "scores": outcome.scores,
        "model": dict(model if model is not None else outcome.model),
        "links": {"mlflow": outcome.link, "kubeflow": kubeflow},
    }
    return {"text": _text(told), **told}


def _text(told: Mapping[str, Any]) -> str:
    """One line for people; chat services show `text` and pass over the rest."""
    run = told["name"] or told["run_id"] or "a run"
    model = told["model"]
    named = f"{model.get('model', 'the model')} version {model.get('version', '?')}"
    figures = ", ".join(
        f"{name} {score['value']:.4f} [{score['interval'][0]:.4f}, {score['interval'][1]:.4f}]"
        for name, score in told["scores"].items()
    )
    if told["event"] == "champion":
        return f"SplatCLIP ({told['environment']}): {named} is champion{f': {figures}' if figures else ''} ({run})"
    if told["event"] == "rollback":
        return f"SplatCLIP ({told['environment']}): rolled back. {told['message']}"
    where = f" at {told['failed_step']}" if told["failed_step"] else ""
    return (
        f"SplatCLIP ({told['environment']}): {run} {told['state'] or 'ended'}{where}{f': {figures}' if figures else ''}"
    )
