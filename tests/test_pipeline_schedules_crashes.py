"""Schedules are mended after any crash and after two applies at the same time; what is lost is not made twice."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from applied_schedules import NAME, apply, given
from kubeflow import Fault, Kubeflow

from components.errors import TransientError
from pipelines import schedules
from pipelines.api import Api
from pipelines.connection import Connection


class _Killed(BaseException):
    pass


def _until(api: Api, number: int, *, done: bool, after: Callable[[], None]) -> None:
    """Have the process die at its request of this number: before it is sent, or once it is done."""
    rest = api.runs.api_client.rest_client
    send, count = rest.request, 0

    def request(method: str, *args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == number and not done:
            raise _Killed
        answer = send(method, *args, **more)
        after()
        if count == number:
            raise _Killed
        return answer

    rest.request = request


@pytest.mark.parametrize(("done", "busy"), [(False, False), (True, True)], ids=["before, idle", "after, at work"])
def test_an_apply_that_dies_at_any_request_is_mended_by_the_next(server: Kubeflow, done: bool, busy: bool) -> None:
    def enabled() -> list[str]:
        return [key for key, one in server.recurring.items() if one["status"] == "ENABLED"]

    def never_two() -> None:
        assert len(enabled()) <= 1

    apply(Api(Connection(server.url)), given())
    (former,) = server.recurring
    run = server.trigger(former) if busy else ""
    begin = deepcopy((server.recurring, server.runs))
    deaths = 0
    for number in range(1, 60):
        server.recurring, server.runs = deepcopy(begin)
        server.pipelines, server.versions, server.experiments = {}, {}, {}  # the change also uploads anew
        api = Api(Connection(server.url))
        _until(api, number, done=done, after=never_two)
        try:
            apply(api, given(interval_s=7200))
        except _Killed:
            deaths += 1
        else:
            break
        complete, _ = apply(Api(Connection(server.url)), given(interval_s=7200))
        (own,) = enabled()
        assert own != former
        assert server.recurring[own]["trigger"] == {"periodic_schedule": {"interval_second": "7200"}}
        assert complete != busy
        assert {*server.recurring} == ({own, former} if busy else {own})
        assert (run in server.runs) == busy
        assert not server.killed
    assert deaths == 13 + (not busy)


@pytest.mark.parametrize("number", range(1, 10))  # the tenth is after it has settled
@pytest.mark.parametrize("equal", [True, False], ids=["same contents", "other contents"])
def test_of_two_applies_at_the_same_time_one_wins(server: Kubeflow, number: int, equal: bool) -> None:
    """The second goes from its begin to its end between any two requests of the first."""
    apply(Api(Connection(server.url)), given())
    api, second = Api(Connection(server.url)), given(interval_s=7200 if equal else 3600)
    rest = api.runs.api_client.rest_client
    send, count = rest.request, 0

    def request(method: str, *args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            apply(Api(Connection(server.url)), second)
        return send(method, *args, **more)

    rest.request = request
    lost = ""
    try:
        apply(api, given(interval_s=7200))
    except TransientError as error:
        lost = str(error)
    assert count >= number
    enabled = [one for one in server.recurring.values() if one["status"] == "ENABLED"]
    assert [one["trigger"]["periodic_schedule"]["interval_second"] for one in enabled] == ["3600" if lost else "7200"]
    assert not lost or "apply once more" in lost
    assert not (equal and lost)
    assert apply(Api(Connection(server.url)), given(interval_s=7200))[0]
    assert [one["status"] for one in server.recurring.values()] == ["ENABLED"]


@pytest.mark.parametrize("how", ["drop", "lose", 503, 500])
def test_what_is_lost_on_the_way_is_not_made_twice(server: Kubeflow, api: Api, how: int | str) -> None:
    apply(api, given())
    server.faults = [
        Fault(method, path, how)
        for method, path in (("POST", "/recurringruns"), ("POST", ":enable"), ("POST", ":disable"), ("GET", "/runs"))
    ]
    assert apply(api, given(interval_s=7200))[0]
    assert [one["status"] for one in server.recurring.values()] == ["ENABLED"]


def test_a_deletion_whose_answer_is_lost_has_been_done(server: Kubeflow, api: Api) -> None:
    apply(api, given())
    server.faults = [Fault("DELETE", "/recurringruns", "lose")]
    assert schedules.delete(api, "nightly") == f"{NAME}: deleted"
    assert not server.recurring
