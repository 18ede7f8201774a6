"""Schedules: applied once, changed without harm to a run at work, paused, resumed, deleted."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from applied_schedules import NAME, apply, changes, given
from kfp_worlds import SHA, STORE, package, params
from kubeflow import Kubeflow

from components.errors import PermanentError, TransientError, UsageError
from pipelines import notes, runs, schedules
from pipelines.api import Api
from pipelines.connection import Connection


def test_it_is_made_once(server: Kubeflow, api: Api) -> None:
    complete, said = apply(api, given())
    assert complete
    assert said == [f"{NAME}: created on version {SHA[:12]}, 0 0 2 * * *", f"{NAME}: enabled"]
    (one,) = server.recurring.values()
    assert (one["display_name"], one["status"], one["max_concurrency"], one["no_catchup"]) == (
        NAME, "ENABLED", "1", True
    )  # fmt: skip
    assert one["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * *"}}
    assert one["runtime_config"]["parameters"]["git_sha"] == SHA
    assert notes.read(one["description"])["params.hash"] == runs.params_hash(params())[:16]
    before = len(changes(server))
    assert apply(api, given()) == (True, [f"{NAME}: unchanged"])
    assert len(changes(server)) == before


def test_a_dry_run_only_says(server: Kubeflow, api: Api) -> None:
    assert apply(api, given(), dry_run=True)[1] == [
        f"{NAME}: would be created on version {SHA[:12]}, 0 0 2 * * *", f"{NAME}: would be enabled"
    ]  # fmt: skip
    apply(api, given())
    before = len(changes(server))
    (recurring_id,) = server.recurring
    _, said = apply(api, given(interval_s=3600), dry_run=True, prune=True)
    assert said[1:] == [
        f"{NAME}: would be disabled, the former one", f"{NAME}: would be enabled",
        f"{NAME}: would be deleted: {recurring_id}",
    ]  # fmt: skip
    assert len(changes(server)) == before


def test_a_changed_one_takes_the_formers_place(server: Kubeflow, api: Api) -> None:
    apply(api, given())
    (former,) = server.recurring
    assert apply(api, given(interval_s=7200))[0]
    (one,) = server.recurring.values()
    assert one["recurring_run_id"] != former
    assert one["trigger"] == {"periodic_schedule": {"interval_second": "7200"}}
    order = [path.rpartition("/")[2].rpartition(":")[2] for method, path in changes(server) if "recurring" in path]
    assert order[-4:] == ["recurringruns", "disable", "enable", former]
    for other in (given(3600), given(), given(more="splat_fit.num_gaussians=9"), given(more="download.num_test=9")):
        assert len(apply(api, other)[1]) > 1
    assert len(server.recurring) == 1


def test_of_two_equal_ones_the_enabled_one_stays(server: Kubeflow, api: Api) -> None:
    """A slow server may do what was asked of it after it was asked again."""
    apply(api, given())
    (own,) = server.recurring
    late = deepcopy(server.recurring[own]) | {
        "recurring_run_id": "0",
        "status": "DISABLED",
        "created_at": "2020-01-01T00:00:00Z",
    }
    server.recurring = {"0": late, own: server.recurring[own]}
    assert apply(api, given()) == (True, [f"{NAME}: deleted: 0"])
    assert {*server.recurring} == {own}


def test_a_run_at_work_keeps_its_schedule(server: Kubeflow, api: Api) -> None:
    """Deleted, the schedule would take it along (kubeflow/pipelines #7421)."""
    apply(api, given())
    (former,) = server.recurring
    finished = server.trigger(former, "SUCCEEDED")
    busy = server.trigger(former)
    complete, said = apply(api, given(interval_s=7200))
    assert not complete
    assert said[-1] == f"{NAME}: kept for now, disabled: {former}, whose run {busy} is at work"
    assert server.recurring[former]["status"] == "DISABLED"
    assert [one["status"] for key, one in server.recurring.items() if key != former] == ["ENABLED"]
    assert apply(api, given(interval_s=7200)) == (False, said[-1:])
    server.runs[busy]["state"] = "FAILED"
    assert apply(api, given(interval_s=7200)) == (True, [f"{NAME}: deleted: {former}"])
    assert not server.killed
    assert {finished, busy} <= {*server.runs}


def test_pause_resume_delete(server: Kubeflow, api: Api) -> None:
    apply(api, given())
    (one,) = server.recurring.values()
    assert schedules.pause(api, "nightly").startswith(f"{NAME}: paused; `apply` would enable it again")
    assert one["status"] == "DISABLED"
    assert schedules.pause(api, NAME) == f"{NAME}: paused already"
    assert schedules.resume(api, NAME) == f"{NAME}: enabled"
    assert schedules.resume(api, NAME) == f"{NAME}: enabled already"
    schedules.pause(api, NAME)
    assert apply(api, given())[1] == [f"{NAME}: enabled"], "the file says so"
    assert apply(api, given(enabled=False))[1] == [f"{NAME}: disabled"]
    busy = server.trigger(one["recurring_run_id"])
    with pytest.raises(TransientError, match=f"paused; its run {busy} is at work"):
        schedules.delete(api, NAME)
    server.runs[busy]["state"] = "CANCELED"
    assert schedules.delete(api, NAME) == f"{NAME}: deleted"
    for action in (schedules.pause, schedules.resume, schedules.delete):
        with pytest.raises(PermanentError, match="there is no schedule 'nightly'"):
            action(api, "nightly")


def test_resume_takes_what_apply_chose_last(server: Kubeflow, api: Api) -> None:
    """Also where that was there before, and both have runs at work."""

    def enabled() -> list[dict[str, Any]]:
        return [one for one in server.recurring.values() if one["status"] == "ENABLED"]

    for interval_s in (0, 7200, 0):
        apply(api, given(interval_s=interval_s))
        server.trigger(enabled()[0]["recurring_run_id"])
    (current,) = enabled()
    assert current["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * *"}}
    before = len(changes(server))
    assert schedules.resume(api, NAME) == f"{NAME}: enabled already"
    assert len(changes(server)) == before
    schedules.pause(api, NAME)
    assert schedules.resume(api, NAME) == f"{NAME}: enabled"
    assert enabled() == [current]
    schedules.pause(api, NAME)
    for one in server.recurring.values():
        one["created_at"] = current["created_at"]
    with pytest.raises(UsageError, match=r"made at the same time.*`apply` its file"):
        schedules.resume(api, NAME)


def test_resume_leaves_the_one_that_is_enabled(server: Kubeflow, api: Api) -> None:
    """An apply that died before it changed over has left a newer one."""
    apply(api, given())
    (own,) = server.recurring
    late = deepcopy(server.recurring[own]) | {"recurring_run_id": "0", "status": "DISABLED", "created_at": server.now()}
    server.recurring["0"] = late
    assert schedules.resume(api, NAME) == f"{NAME}: enabled already"
    assert [one["status"] for one in server.recurring.values()] == ["ENABLED", "DISABLED"]


def test_others_schedules_are_left_alone(server: Kubeflow, api: Api) -> None:
    apply(api, given(), given(name="weekly"))
    (nightly, weekly) = server.recurring.values()
    nightly["description"] = "made by hand"
    with pytest.raises(PermanentError, match="that another program made"):
        apply(api, given())
    complete, said = apply(api, given(name="hourly"), prune=True)
    assert complete
    assert said[-1] == f"train-eval/weekly: deleted: {weekly['recurring_run_id']}"
    assert sorted(one["display_name"] for one in server.recurring.values()) == ["train-eval/hourly", NAME]
    with pytest.raises(PermanentError, match="no schedule"):
        schedules.delete(api, "nightly")


@pytest.mark.parametrize("prune", [False, True], ids=["delete", "prune"])
def test_another_programs_schedule_of_the_same_name_outlives_ours(server: Kubeflow, api: Api, prune: bool) -> None:
    apply(api, given())
    (own,) = server.recurring
    by_hand = deepcopy(server.recurring[own]) | {"recurring_run_id": "0", "description": "made by hand"}
    server.recurring["0"] = by_hand
    if prune:
        apply(api, prune=True)
    else:
        schedules.delete(api, "nightly")
    assert [*server.recurring.values()] == [by_hand | {"status": "ENABLED"}]


def test_everything_is_asked_for_in_the_namespace_of_ones_profile(server: Kubeflow) -> None:
    server.profile = "team"
    with pytest.raises(PermanentError, match="namespace is required"):
        apply(Api(Connection(server.url)), given())
    api = Api(Connection(server.url, namespace="team"))
    apply(api, given())
    assert apply(api, given(interval_s=7200), prune=True)[0]
    assert [one.state for one in schedules.listed(api)] == ["ENABLED"]
    made = runs.submit(api, package(), params(), STORE)
    server.runs[made.run_id]["state"] = "FAILED"
    again = runs.resume(api, made.name)
    assert [run.run_id for run in runs.recent(api, 9)] == [again.run_id, made.run_id]
    assert len(list(runs.recent(api, 9, experiment_named=made.experiment))) == 2
