"""Runs, steps and schedules as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines import notes

if TYPE_CHECKING:
    from pipelines.schedules import Listed
    from pipelines.steps import StepState


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, two blanks apart."""
    whole = [[*head], *([*row] for row in rows)]
    widths = [max(len(row[column]) for row in whole) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in whole
    )


def _took(started: datetime | None, ended: datetime | None) -> str:
    if started is None:
        return "-"
    seconds = int(((ended or datetime.now(UTC)) - started).total_seconds())
    hours, rest = divmod(max(seconds, 0), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _at(value: datetime | None) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if value else "-"


def steps_table(steps: Iterable[StepState]) -> str:
    """A run's steps; times are UTC."""
    rows = [(step.name, step.state, _at(step.started), _took(step.started, step.ended), step.error) for step in steps]
    return table(("STEP", "STATE", "BEGAN (UTC)", "TOOK", ""), rows)


def runs_table(runs: Iterable[Any]) -> str:
    """Runs, a line each."""
    rows = []
    for run in runs:
        ended = run.finished_at if run.finished_at and run.finished_at.year > 1970 else None
        sha = notes.read(run.description).get("git.sha", "-")[:7]
        took = _took(run.created_at, ended)
        rows.append((run.display_name or "-", run.state or "UNKNOWN", _at(run.created_at), took, sha, run.run_id))
    return table(("RUN", "STATE", "CREATED (UTC)", "TOOK", "COMMIT", "ID"), rows)


def schedules_table(schedules: Iterable[Listed]) -> str:
    """Schedules, a line each."""
    rows = [(s.name, s.state, s.trigger, s.commit[:7], s.last_state, s.last_name, s.id) for s in schedules]
    return table(("SCHEDULE", "STATE", "WHEN", "COMMIT", "LAST RUN", "", "ID"), rows)
