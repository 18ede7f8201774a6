"""The steps of a Kubeflow run that make nothing: the champion announced, the run closed, a rollback; a webhook told."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from components import outcome, registry, webhook
from components.config import SECTIONS
from components.errors import SplatClipError
from components.kfp_base import ANNOUNCE, FINISH
from components.kfp_workers import info_of
from components.local_run import LocalRun
from components.params import section_from_dict
from components.tracking import close_run, note, status_of

if TYPE_CHECKING:
    from components.operations import NotifyParams, PromoteParams, TrackingParams
    from components.runner import Done

# Kubeflow's words for how the steps ended: those of older backends are ML Metadata's.
ENDS = dict.fromkeys(("SUCCEEDED", "COMPLETE", "CACHED"), "FINISHED")
ENDS |= dict.fromkeys(("CANCELED", "CANCELLED"), "KILLED")
ENDS |= dict.fromkeys(("FAILED", "ERROR"), "FAILED")


def gate(done: Done) -> tuple[str, int]:
    """What a promotion came to: the version's alias (champion, challenger or none) and number, 0 if not registered."""
    facts = done.report.facts
    return facts.get("alias", "none"), int(facts.get("version", "0"))


def close(
    state: str, message: str = "", *, store: str, tracking: dict[str, Any], notify: dict[str, Any], run_id: str
) -> None:
    """End the run in MLflow, then tell the webhook how it ended.

    state: Kubeflow's word for how the steps ended; with another one, the steps' runs tell. message: what it says of an
    error. A webhook that fails is said and nothing else.
    """
    local = LocalRun.current()
    failed = local.broken() if local else ""  # before this step is one of those that have begun
    with local.step(FINISH, always=True) if local else nullcontext():
        info = info_of(tracking, local.id if local else run_id)
        error = local.error() if local else None
        status = status_of(error) if error else ENDS.get(state.upper(), "")
        close_run(info, store, status)
        if webhook.configured():
            told = outcome.body(
                "finished",
                local.id if local else run_id,
                outcome.read(info),
                _notify(notify),
                environment=_tracking(tracking).environment,
                state=status,
                failed_step=failed,
                message=str(error) if error else message,
            )
            webhook.tell(told, _notify(notify))


def announce(
    version: int,
    *,
    store: str,
    params: dict[str, Any],
    tracking: dict[str, Any],
    notify: dict[str, Any],
    run_id: str,
) -> None:
    """Tell of a new champion, once a version, and record in MLflow that it was told.

    The model is promoted by then: what fails here is said, and the run goes on.
    """
    local = LocalRun.current()
    with local.step(ANNOUNCE) if local else nullcontext():
        name = _promote(params).model_name
        info = info_of(tracking, local.id if local else run_id)
        try:
            by = registry.announced(name, version)
            if by:
                print(f"{ANNOUNCE}: {name} version {version} was announced by run {by}", file=sys.stderr, flush=True)
                return
            told = not webhook.configured() or webhook.tell(
                outcome.body(
                    "champion",
                    local.id if local else run_id,
                    outcome.read(info),
                    _notify(notify),
                    environment=_tracking(tracking).environment,
                    state="RUNNING",
                    model={"model": name, "version": str(version), "alias": "champion"},
                ),
                _notify(notify),
            )
            print(f"{ANNOUNCE}: {name} version {version} is champion", file=sys.stderr, flush=True)
            if told:
                registry.mark_announced(name, version, local.id if local else run_id)
            note(info, store, {"announce.model": name, "announce.version": str(version)})
        except SplatClipError as error:
            print(f"{ANNOUNCE}: not recorded: {error}", file=sys.stderr, flush=True)


def rollback(*, params: dict[str, Any], tracking: dict[str, Any], notify: dict[str, Any], run_id: str) -> str:
    """Make the former champion champion again, once a run however often its pod is started; returns what was done.

    An error of ours ends the process with its exit code, after it was said.
    """
    name = _promote(params).model_name
    try:
        line = registry.rollback(name, by=run_id)
    except SplatClipError as error:
        print(f"rollback: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    print(f"rollback: {line}", file=sys.stderr, flush=True)
    told = outcome.body(
        "rollback",
        run_id,
        outcome.Outcome(),
        _notify(notify),
        environment=_tracking(tracking).environment,
        state="FINISHED",
        message=line,
        model={"model": name},
    )
    webhook.tell(told, _notify(notify))
    return line


def _notify(values: dict[str, Any]) -> NotifyParams:
    section: NotifyParams = section_from_dict(SECTIONS["notify"], values, "notify")
    return section


def _tracking(values: dict[str, Any]) -> TrackingParams:
    section: TrackingParams = section_from_dict(SECTIONS["tracking"], values, "tracking")
    return section


def _promote(values: dict[str, Any]) -> PromoteParams:
    section: PromoteParams = section_from_dict(SECTIONS["promote"], values, "promote")
    return section
