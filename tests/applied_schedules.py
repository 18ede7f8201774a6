"""A schedule without a file, applied, and what was asked of the server for it."""

from __future__ import annotations

from kfp_worlds import STORE, package, params
from kubeflow import Kubeflow

from pipelines import schedules
from pipelines.api import Api
from pipelines.schedule_files import Schedule

NAME = "train-eval/nightly"


def given(interval_s: int = 0, enabled: bool = True, name: str = "nightly", more: str = "") -> Schedule:
    """A schedule without a file."""
    return Schedule(
        name=name,
        where="here",
        package=package(),
        params=params(*([more] if more else [])),
        store=STORE,
        cron="" if interval_s else "0 0 2 * * *",
        interval_s=interval_s,
        enabled=enabled,
        service_account="",
    )


def apply(api: Api, *wanted: Schedule, **more: bool) -> tuple[bool, list[str]]:
    said: list[str] = []
    complete = schedules.apply(api, wanted, tell=said.append, **more)
    return complete, said


def changes(server: Kubeflow) -> list[tuple[str, str]]:
    return [request for request in server.requests if request[0] != "GET"]
