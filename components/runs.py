"""Recorded runs, as a table and against each other, read back from MLflow."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.errors import PermanentError, TransientError, UsageError
from components.fields import nearest
from components.tracking_client import connect, database_of, failures, is_permanent, reason, tracking_uri
from components.tracking_journal import leftovers

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

WIDTH = 170  # columns, where the output is no terminal
PAGE = 500
SPLATS = re.compile(r"(.+)_splats")
ENDS = ("_low", "_high")
OWN_TAGS = ("mlflow.", "splatclip.")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A pipeline run as MLflow has it. started: UTC, ISO 8601; steps: of each step status and what it took."""

    id: str
    name: str
    started: str
    status: str
    experiment: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]

    def interval(self, metric: str) -> tuple[float, float] | None:
        """A figure's 95 % interval, if it has one."""
        low, high = (self.metrics.get(f"{metric}{end}") for end in ENDS)
        return None if low is None or high is None else (low, high)

    @property
    def scores(self) -> list[str]:
        """The names of the splats' headline figures."""
        return [name for name in self.metrics if SPLATS.fullmatch(name) and self.interval(name)]


def _ask(work: Callable[[], T]) -> T:
    """Ask MLflow; what it raises becomes one of our errors."""
    try:
        return work()
    except failures() as error:
        if is_permanent(error):
            raise PermanentError(f"MLflow refuses the question: {reason(error)}") from None
        raise TransientError(f"no answer from the MLflow server ({reason(error)}); check MLFLOW_TRACKING_URI") from None


def _client() -> MlflowClient | None:
    """The client, or None where there is no database yet."""
    uri = tracking_uri()
    database = database_of(uri)
    if database is not None and not database.exists():
        return None
    return _ask(lambda: connect(uri))


def _recorded(run: Run, experiments: Mapping[str, str]) -> RecordedRun:
    return RecordedRun(
        id=run.info.run_id,
        name=run.info.run_name,
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
        status=run.info.status,
        experiment=experiments.get(run.info.experiment_id, ""),
        params=dict(sorted(run.data.params.items())),
        metrics=dict(sorted(run.data.metrics.items())),
        tags=dict(sorted(run.data.tags.items())),
    )


def _search(client: MlflowClient, text: str) -> list[RecordedRun]:
    experiments = {one.experiment_id: one.name for one in client.search_experiments()}
    found: list[RecordedRun] = []
    token = None
    while True:
        page = client.search_runs(list(experiments), text, max_results=PAGE, page_token=token)
        found += [_recorded(run, experiments) for run in page]
        token = page.token
        if not token:
            return found


def list_runs() -> list[RecordedRun]:
    """All recorded pipeline runs of all environments, the newest first. Raises TransientError without an answer."""
    client = _client()
    if client is None:
        return []
    found = _ask(lambda: _search(client, "tags.`splatclip.kind` = 'pipeline'"))
    return sorted(found, key=lambda run: (run.started, run.name, run.id), reverse=True)


def steps_of(run: RecordedRun) -> list[RecordedRun]:
    """A run's steps in the order that they were begun."""
    client = _client()
    if client is None:
        return []
    found = _ask(lambda: _search(client, f"tags.`mlflow.parentRunId` = '{run.id}'"))
    return sorted(found, key=lambda step: step.tags.get("splatclip.created_ns", ""))


def find_run(runs: Sequence[RecordedRun], wanted: str | None) -> RecordedRun:
    """The run of that name or id, or the only one that begins so; the newest if none is wanted. Raises UsageError."""
    if not runs:
        raise UsageError("no run is recorded yet; `splatclip run` records one (MLFLOW_TRACKING_URI says where)")
    if wanted is None:
        return runs[0]
    exact = [run for run in runs if wanted in (run.name, run.id)]
    found = exact or [run for run in runs if run.name.startswith(wanted) or run.id.startswith(wanted)]
    if not found:
        near = nearest(wanted, [run.name for run in runs])
        raise UsageError(f"no recorded run is called {wanted!r}, nor begins so{near}; `splatclip runs` lists them")
    if len(found) > 1:
        names = ", ".join(f"{run.name} ({run.id[:8]})" for run in found[:5])
        raise UsageError(f"{len(found)} runs begin with {wanted!r}: {names}; give more of the name or the id")
    return found[0]


def compare(run: RecordedRun, against: RecordedRun) -> dict[str, Any]:
    """What differs: params and tags as [run, against], metrics with the difference run - against.

    metrics: name -> {run, against, difference, percent} (percent of `against`, None where that is 0), with `overlap`
    where both have an interval: whether these have a value in common. None: only the other one has it.
    """

    def differing(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, list[str | None]]:
        names = sorted({*one, *other})
        return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}

    def own(tags: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in tags.items() if not name.startswith(OWN_TAGS)}

    metrics = {}
    for name in sorted({*run.metrics, *against.metrics}):
        bare = next((name.removesuffix(end) for end in ENDS if name.endswith(end)), "")
        if bare in run.metrics or bare in against.metrics:  # the end of an interval
            continue
        one, other = run.metrics.get(name), against.metrics.get(name)
        if one != other:
            metrics[name] = _difference(run, against, name)
    return {
        "run": {"name": run.name, "id": run.id},
        "against": {"name": against.name, "id": against.id},
        "params": differing(run.params, against.params),
        "tags": differing(own(run.tags), own(against.tags)),
        "metrics": metrics,
    }


def _difference(run: RecordedRun, against: RecordedRun, name: str) -> dict[str, Any]:
    one, other = run.metrics.get(name), against.metrics.get(name)
    found: dict[str, Any] = {"run": one, "against": other, "difference": None, "percent": None}
    if one is not None and other is not None:
        found["difference"] = one - other
        found["percent"] = 100 * (one - other) / abs(other) if other else None
    ours, theirs = run.interval(name), against.interval(name)
    if ours and theirs:
        found |= {"run_interval": ours, "against_interval": theirs}
        found["overlap"] = ours[0] <= theirs[1] and theirs[0] <= ours[1]
    return found


def sync(store: str) -> int:
    """Deliver what earlier processes had to leave in the store; how many journals. TransientError without an answer."""
    from components.tracking_delivery import Delivery
    from components.tracking_outbox import sweep

    count, failed = _ask(lambda: sweep(Delivery(tracking_uri()), store, None))
    if failed:
        raise TransientError(f"{count} journals delivered, but not all that lie in {store}/_tracking ({failed})")
    return count


def print_runs(run: str | None, against: str | None, as_json: bool, sync_store: str | None) -> None:
    """Print all runs, one run and its steps, or a run against another, as tables or as JSON.

    run, against: name, id, or the beginning of one; sync_store: first deliver what lies in that store.
    """
    if sync_store is not None and not sync(sync_store) and not leftovers(sync_store):
        print(f"nothing to deliver in {sync_store}", file=sys.stderr)
    runs = list_runs()
    if run is None and against is None:
        _print(_whole(runs) if not as_json else None, [asdict(one) for one in runs])
        return
    chosen = find_run(runs, run)
    if against is None:
        steps = steps_of(chosen)
        _print(None if as_json else _single(chosen, steps), {**asdict(chosen), "steps": [asdict(s) for s in steps]})
        return
    found = compare(chosen, find_run(runs, against))
    _print(None if as_json else _differences(found), found)


def _print(tables: Sequence[Table | Text] | None, values: Any) -> None:
    if tables is None:
        print(json.dumps(values, indent=1))
        return
    plain = Console(file=sys.stdout)
    console = Console(file=sys.stdout, width=None if plain.is_terminal else WIDTH, highlight=False)
    for table in tables:
        console.print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10_000 or value == int(value) else f"{value:.4g}"


def _score(run: RecordedRun, metric: str) -> str:
    low, high = run.interval(metric) or (float("nan"), float("nan"))
    return f"{100 * run.metrics[metric]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _title(metric: str) -> str:
    return metric.removesuffix("_splats").replace("_retrieval_recall_at_", " recall@")


def _whole(runs: Sequence[RecordedRun]) -> list[Table | Text]:
    if not runs:
        return [Text("no run is recorded yet; `splatclip run` records one")]
    scores = list(dict.fromkeys(_title(metric) for run in runs for metric in run.scores)) or ["score"]
    numbers = [*(f"{name} of splats, %" for name in scores), "to control", "PSNR", "bytes", "seconds"]
    table = _table("run", "began (UTC)", "status", "data", "params", *numbers, right=numbers)
    for run in runs:
        by_title = {_title(metric): metric for metric in run.scores}
        ratios = [run.metrics.get(f"{metric}_ratio_to_control") for metric in run.scores]
        psnr_db = run.metrics.get("psnr_db_mean")
        table.add_row(
            run.name,
            run.started[:19].replace("T", " "),
            run.status,
            run.tags.get("data.hash", "-")[:7],
            run.tags.get("params.hash", "-")[:7],
            *(_score(run, by_title[name]) if name in by_title else "-" for name in scores),
            " / ".join("-" if ratio is None else f"{ratio:.3f}" for ratio in ratios) or "-",
            "-" if psnr_db is None else f"{psnr_db:.2f}",
            *(_number(run.metrics.get(name)) for name in ("bytes_gs2d", "seconds")),
        )
    return [table]


def _single(run: RecordedRun, steps: Sequence[RecordedRun]) -> list[Table | Text]:
    numbers = ("seconds", "gpu_seconds", "cost", "peak_memory_megabytes")
    table = _table("step", "status", "found", *numbers, right=numbers)
    for step in steps:
        found = "yes" if step.tags.get("cached") == "true" else "no"
        table.add_row(step.name, step.status, found, *(_number(step.metrics.get(name)) for name in numbers))
    return [*_whole([run]), Text(f"id {run.id}, experiment {run.experiment}"), table]


def _differences(found: Mapping[str, Any]) -> list[Table | Text]:
    one, other = found["run"]["name"], found["against"]["name"]
    shown: list[Table | Text] = [
        Text(f"{one} ({found['run']['id'][:8]}) against {other} ({found['against']['id'][:8]})")
    ]
    for kind in ("params", "tags"):
        table = _table(kind, "run", "against")
        for name, values in found[kind].items():
            table.add_row(name, *("-" if value is None else value for value in values))
        shown.append(table if found[kind] else Text(f"{kind}: no difference"))
    numbers = ("run", "against", "difference", "%")
    table = _table("metrics", *numbers, "95 % intervals", right=numbers)
    for name, value in found["metrics"].items():
        overlap = ""
        if "overlap" in value:
            ours, theirs = (
                f"[{low:.3f}, {high:.3f}]" for low, high in (value["run_interval"], value["against_interval"])
            )
            overlap = f"{ours} and {theirs} {'overlap' if value['overlap'] else 'are apart'}"
        percent = "-" if value["percent"] is None else f"{value['percent']:+.1f}"
        change = "-" if value["difference"] is None else f"{value['difference']:+.4g}"
        table.add_row(name, _number(value["run"]), _number(value["against"]), change, percent, overlap)
    shown.append(table if found["metrics"] else Text("metrics: no difference"))
    return shown
