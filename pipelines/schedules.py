"""Schedules on a cluster, made what the files say.

Kubeflow's recurring runs cannot be changed, and one that is deleted takes its run at work with it (kubeflow/pipelines
#7421, #12573). So a changed schedule is made anew, and the former one deleted once no run of it is at work. Every step
may be the last one before a crash: the next `apply` goes on from whatever it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import kfp_server_api

from components.errors import PermanentError, TransientError, UsageError
from pipelines import notes
from pipelines.api import Api, equals
from pipelines.api_errors import NotThereError
from pipelines.runs import ENDED, experiment_name, params_hash, reference
from pipelines.schedule_files import Schedule
from pipelines.steps import UNKNOWN
from pipelines.versions import experiment, upload

SPEC = "spec.hash"
ENABLED = "ENABLED"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Listed:
    """A schedule as it is there. state: ENABLED or DISABLED; commit: of its version; last_...: its newest run."""

    name: str
    id: str
    state: str
    trigger: str
    commit: str
    last_name: str = ""
    last_state: str = ""

    def as_json(self) -> dict[str, str]:
        """For scripts."""
        return asdict(self)


def _all(api: Api, **fields: str) -> list[Any]:
    """Recurring runs with these fields, in the order in which they were made."""
    listed = api.pages(
        api.schedules.recurring_run_service_list_recurring_runs,
        "recurring_runs",
        namespace=api.connection.namespace or None,
        filter=equals(**fields) if fields else None,
        sort_by="created_at",
    )
    return [one for one in listed if all(getattr(one, name) == value for name, value in fields.items())]


def _ours(one: Any) -> bool:
    return SPEC in notes.read(one.description)


def apply(api: Api, schedules: Iterable[Schedule], *, tell: Tell, dry_run: bool = False, prune: bool = False) -> bool:
    """Make the schedules there what these say; whether nothing is left to do.

    dry_run: only say what would be done; prune: also remove schedules of this program that are not among these.
    Raises PermanentError for a schedule of the same name that another program made, TransientError where another apply
    with other contents took its place at the same time, and as Api.call does.
    """
    wanted = list(schedules)
    complete = True
    for schedule in wanted:
        complete &= _Applied(api, schedule.full_name, tell, dry_run=dry_run).apply(schedule)
    if prune:
        names = {schedule.full_name for schedule in wanted}
        for name in sorted({str(one.display_name) for one in _all(api) if _ours(one)} - names):
            complete &= _Applied(api, name, tell, dry_run=dry_run).remove_all()
    return complete


class _Applied:
    """One schedule's steps; each is said, and with dry_run only said."""

    def __init__(self, api: Api, name: str, tell: Tell, *, dry_run: bool) -> None:
        self._api, self._name, self._dry = api, name, dry_run
        self._told, self._changed = tell, False

    def _tell(self, text: str) -> None:
        would = "would be " if self._dry and self._changed else ""
        self._told(f"{self._name}: {would}{text}")

    def apply(self, schedule: Schedule) -> bool:
        there = _all(self._api, display_name=self._name)
        for one in there:
            if not _ours(one):
                raise PermanentError(
                    f"{self._name}: a schedule of this name is there that another program made "
                    f"({one.recurring_run_id}); delete it or give yours another name"
                )
        own = _reusable(there, schedule.spec_hash)
        former = [one for one in there if one is not own]
        if own is not None:
            own_id, enabled = str(own.recurring_run_id), own.status == ENABLED
        else:
            own_id, enabled = self._create(schedule, former), False
        for one in former:
            if one.status == ENABLED:
                self._disable(one.recurring_run_id, ", the former one")
        if schedule.enabled and not enabled:
            self._done("enabled")
            if not self._dry:
                self._enable(own_id, {one.recurring_run_id for one in former}, schedule)
        elif enabled and not schedule.enabled:
            self._disable(own_id, "")
        complete = self._remove(former)
        if not self._changed and complete:
            self._tell("unchanged")
        return complete

    def remove_all(self) -> bool:
        there = list(filter(_ours, _all(self._api, display_name=self._name)))  # others may have made one of this name
        for one in there:
            if one.status == ENABLED:
                self._disable(one.recurring_run_id, "")
        return self._remove(there)

    def _create(self, schedule: Schedule, former: Iterable[Any]) -> str:
        self._done(f"created on version {schedule.package.version[:12]}, {schedule.when}")
        if self._dry:
            return ""
        api, package = self._api, schedule.package
        version = upload(api, package)
        tags = notes.brief({**package.tags, "params.hash": params_hash(schedule.params), SPEC: schedule.spec_hash})
        body = kfp_server_api.V2beta1RecurringRun(
            display_name=self._name,
            description=notes.written("By splatclip; change its file.", tags),
            experiment_id=experiment(api, experiment_name(schedule.params, package.name)),
            namespace=api.connection.namespace or None,
            pipeline_version_reference=reference(version),
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=schedule.arguments),
            service_account=schedule.service_account or None,
            max_concurrency="1",
            no_catchup=True,
            mode="DISABLE",
            trigger=_trigger(schedule),
        )

        before = {one.recurring_run_id for one in former}

        def find() -> Any:
            made = [one for one in _all(api, display_name=self._name) if one.recurring_run_id not in before]
            return next((one for one in made if notes.read(one.description).get(SPEC) == schedule.spec_hash), None)

        return str(
            api.create(api.schedules.recurring_run_service_create_recurring_run, body, find=find).recurring_run_id
        )

    def _enable(self, own: str, before: set[str], schedule: Schedule) -> None:
        """Enable it, unless another apply is about to: of those made at the same time the newest wins.

        Each apply looks before and after, so the one that ends last sees all and leaves one. before: those that were
        there at the begin, which this apply deals with.
        """
        for again in (False, True):
            mine = [one for one in _all(self._api, display_name=self._name) if _ours(one)]
            mine = sorted((one for one in mine if one.recurring_run_id not in before), key=_age)
            if not mine or mine[-1].recurring_run_id != own:
                self._lost([one for one in mine if one.recurring_run_id == own], mine[-1:], schedule)
                return
            for one in mine[:-1]:
                if one.status == ENABLED:
                    self._disable(one.recurring_run_id, ", which another apply made")
            if not again:
                with suppress(NotThereError):  # the next look tells
                    self._api.call(self._api.schedules.recurring_run_service_enable_recurring_run, own)

    def _lost(self, own: list[Any], winner: list[Any], schedule: Schedule) -> None:
        for one in own:
            self._disable(one.recurring_run_id, ", as another apply made a newer one")
        self._remove(own)
        if not winner or notes.read(winner[0].description)[SPEC] != schedule.spec_hash:
            raise TransientError(
                f"{self._name}: another apply took its place at the same time with other contents; apply once more if "
                "these are the ones that shall be"
            )

    def _disable(self, recurring_id: str, which: str) -> None:
        self._done(f"disabled{which}")
        if not self._dry:
            with suppress(NotThereError):  # another apply was faster
                self._api.call(self._api.schedules.recurring_run_service_disable_recurring_run, recurring_id)

    def _remove(self, former: Iterable[Any]) -> bool:
        complete = True
        for one in former:
            busy = at_work(self._api, one)
            if busy:
                self._tell(f"kept for now, disabled: {one.recurring_run_id}, whose run {busy} is at work")
                complete = False
                continue
            self._done(f"deleted: {one.recurring_run_id}")
            if not self._dry:
                _delete(self._api, one.recurring_run_id)
        return complete

    def _done(self, text: str) -> None:
        self._changed = True
        self._tell(text)


def _reusable(there: Iterable[Any], spec_hash: str) -> Any:
    """The one that is as wanted already: the enabled one, or else the newest; None where it has to be made.

    One that was replaced is not taken up again but made anew: the newest is always the current one, which `resume`
    goes by, as nothing else of a recurring run can carry a mark once it is made.
    """
    found = None
    for one in sorted(there, key=_age):
        if notes.read(one.description)[SPEC] != spec_hash:
            found = None
        elif found is None or found.status != ENABLED:
            found = one
    return found


def _age(one: Any) -> tuple[Any, str]:
    return one.created_at, str(one.recurring_run_id)


def _trigger(schedule: Schedule) -> Any:
    if schedule.cron:
        return kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=schedule.cron))
    return kfp_server_api.V2beta1Trigger(
        periodic_schedule=kfp_server_api.V2beta1PeriodicSchedule(interval_second=str(schedule.interval_s))
    )


def _runs_of(api: Api, one: Any) -> Iterable[Any]:
    """The schedule's runs, newest first."""
    return api.pages(
        api.runs.run_service_list_runs,
        "runs",
        experiment_id=one.experiment_id,
        filter=equals(recurring_run_id=one.recurring_run_id),
        sort_by="created_at desc",
    )


def at_work(api: Api, one: Any) -> str:
    """The id of a run of the schedule that has not ended; "" where there is none."""
    return next((str(run.run_id) for run in _runs_of(api, one) if run.state not in ENDED), "")


def _delete(api: Api, recurring_id: str) -> None:
    with suppress(NotThereError):  # the answer to an earlier try was lost
        # Should a run have begun between the look and now: a backend with kubeflow/pipelines #12574 leaves it alone.
        api.call(api.schedules.recurring_run_service_delete_recurring_run, recurring_id, propagation_policy="ORPHAN")


def listed(api: Api) -> list[Listed]:
    """All schedules of this program, each with its newest run."""
    found = []
    for one in sorted(filter(_ours, _all(api)), key=lambda one: str(one.display_name)):
        last = next(iter(_runs_of(api, one)), None)
        trigger = one.trigger
        when = (
            trigger.cron_schedule.cron
            if trigger.cron_schedule
            else f"every {trigger.periodic_schedule.interval_second} s"
        )
        found.append(
            Listed(
                name=one.display_name,
                id=one.recurring_run_id,
                state=one.status or UNKNOWN,
                trigger=when,
                commit=notes.read(one.description).get("git.sha", "-"),
                last_name=last.display_name if last else "",
                last_state=(last.state or UNKNOWN) if last else "-",
            )
        )
    return found


def _named(api: Api, name: str) -> list[Any]:
    """The schedule of a name, full or without the pipeline; before it what is kept of former ones."""
    found = [one for one in _all(api) if _ours(one) and name in (one.display_name, one.display_name.partition("/")[2])]
    names = sorted({one.display_name for one in found})
    if not names:
        raise PermanentError(f"there is no schedule {name!r}; `splatclip pipeline schedule list` shows what there is")
    if len(names) > 1:
        raise UsageError(f"schedule {name!r} is one of several: {', '.join(names)}; give the whole name")
    return found


def pause(api: Api, name: str) -> str:
    """Start no further runs; returns a line that says so."""
    found = _named(api, name)
    active = [one for one in found if one.status == ENABLED]
    for one in active:
        api.call(api.schedules.recurring_run_service_disable_recurring_run, one.recurring_run_id)
    state = "paused; `apply` would enable it again unless its file says enabled: false" if active else "paused already"
    return f"{found[0].display_name}: {state}"


def resume(api: Api, name: str) -> str:
    """Start runs again; returns a line that says so.

    Raises UsageError where two are as new as each other, so that it cannot be told which replaced which.
    """
    found = sorted(_named(api, name), key=_age)
    full, active = found[0].display_name, [one for one in found if one.status == ENABLED]
    if len(active) == 1:
        return f"{full}: enabled already"
    newest = (active or found)[-1]
    if not active and len(found) > 1 and found[-2].created_at == newest.created_at:
        raise UsageError(f"{full}: two were made at the same time, {newest.created_at}; `apply` its file instead")
    for one in active[:-1]:  # what interrupted applies left
        api.call(api.schedules.recurring_run_service_disable_recurring_run, one.recurring_run_id)
    if active:
        return f"{full}: enabled already"
    api.call(api.schedules.recurring_run_service_enable_recurring_run, newest.recurring_run_id)
    return f"{full}: enabled"


def delete(api: Api, name: str) -> str:
    """Remove a schedule; returns a line that says so.

    Raises TransientError, with the schedule paused, while a run of it is at work.
    """
    found = _named(api, name)
    full = found[0].display_name
    applied = _Applied(api, full, lambda _: None, dry_run=False)
    if not applied.remove_all():
        busy = next(filter(None, (at_work(api, one) for one in found)), "one of it")
        raise TransientError(f"{full}: paused; its run {busy} is at work, so delete it again when that has ended")
    return f"{full}: deleted"
