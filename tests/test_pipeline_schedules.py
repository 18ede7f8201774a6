"""Schedules: files read strictly, applied once, changed without harm to a run at work, and mended after any crash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from kfp_worlds import DIGEST, SHA, STORE, no_cluster, package, params
from kubeflow import Fault, Kubeflow
from kubeflow_contract import cron_fields
from kubeflow_server import kubeflow

from components.__main__ import main
from components.errors import PermanentError, TransientError, UsageError
from pipelines import notes, runs, schedules
from pipelines.api import Api
from pipelines.connection import Connection
from pipelines.schedule_files import Schedule, cron, read_schedules

NAME = "train-eval/nightly"
BASE: dict[str, Any] = {
    "name": "nightly", "cron": "0 2 * * *", "params": str(ROOT / "params.yaml"), "store": STORE, "image": DIGEST
}  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubeflow]:
    no_cluster(monkeypatch, tmp_path)
    with kubeflow() as state:
        monkeypatch.setenv("SPLATCLIP_KFP_HOST", state.url)
        yield state


@pytest.fixture
def api(server: Kubeflow) -> Api:
    return Api(Connection(server.url, said="--host"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        folder = tmp_path / "schedules"
        folder.mkdir(exist_ok=True)
        values = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
        path = folder / f"{changes.get('name', 'nightly')}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


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


def test_the_commands(server: Kubeflow, write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = write().parent
    assert main(["pipeline", "schedule", "apply", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{NAME}: enabled"
    server.trigger(next(iter(server.recurring)), "FAILED")
    assert main(["pipeline", "schedule", "list"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["SCHEDULE", "STATE", "WHEN"]
    assert row.split()[:10] == [NAME, "ENABLED", "0", "0", "2", "*", "*", "*", SHA[:7], "FAILED"]
    assert main(["pipeline", "schedule", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["last_state"] == "FAILED"
    for action, status in (("pause", "DISABLED"), ("resume", "ENABLED")):
        assert main(["pipeline", "schedule", action, "nightly"]) == 0
        assert [one["status"] for one in server.recurring.values()] == [status]
    write(name="other", interval="24h", cron=None)
    (folder / "nightly.yaml").unlink()
    assert main(["pipeline", "schedule", "apply", str(folder), "--prune"]) == 0
    assert [one["display_name"] for one in server.recurring.values()] == ["train-eval/other"]
    assert main(["pipeline", "schedule", "delete", "other"]) == 0
    assert main(["pipeline", "schedule", "delete", "other"]) == 42
    server.recurring.clear()


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


def test_the_committed_example_is_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", SHA)
    (one,) = read_schedules(ROOT / "schedules")
    assert (one.full_name, one.cron, one.enabled) == (NAME, "0 0 2 * * *", False)
    assert one.params.tracking.environment == "staging"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"naem": "x"}, "unknown key 'naem' .did you mean 'name'"),
        ({"name": "Nightly!"}, "use lower-case"),
        ({"cron": None}, "give either cron"),
        ({"interval": "24h"}, "give either cron"),
        ({"cron": None, "interval": "5s"}, "a minute or more"),
        ({"cron": None, "interval": 60}, "interval is 60; expected str"),
        ({"cron": "0 2 * *"}, "has 4 fields"),
        ({"store": "runs/store"}, "nightly.yaml: store 'runs/store'"),
        ({"store": None}, "store is missing"),
        ({"enabled": "yes please"}, "expected bool"),
        ({"set": ["splat_fit.num_gausians=3"]}, "did you mean 'num_gaussians'"),
        ({"set": ["tracking.environment=prod"], "image": "a:b"}, "by its digest alone"),
        ({"params": "missing.yaml"}, "cannot read the parameters"),
    ],
)
def test_what_is_no_schedule_is_refused(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", SHA)
    with pytest.raises(UsageError, match=said):
        read_schedules(write(**wrong))


def test_two_of_one_name_and_empty_folders_are_refused(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", SHA)
    path = write()
    (path.parent / "second.yaml").write_text(path.read_text())
    with pytest.raises(UsageError, match=r"second\.yaml: .*nightly\.yaml has the same name"):
        read_schedules(path.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \*\.yaml file"):
        read_schedules(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0 2 * * *", "0 0 2 * * *"),  # Kubeflow alone would run it every hour
        ("30 0 2 * * *", "30 0 2 * * *"),
        ("*/15 8-18 1,15 * MON-FRI", "0 */15 8-18 1,15 * MON-FRI"),
        ("0 0 9 ? JAN 2", "0 0 9 ? JAN 2"),
        ("@daily", "@daily"),
    ],
)
def test_cron(text: str, meant: str) -> None:
    assert cron(text, "f") == meant
    assert len(cron_fields(meant)) in (1, 6)


@pytest.mark.parametrize(
    "text",
    ["", "60 2 * * *", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *", "0 0 * * 7", "a * * * *", "5-1 * * * *",
     "*/0 * * * *", "* * * * * * *", "@reboot", "1-2-3 * * * *"]
)  # fmt: skip
def test_no_cron(text: str) -> None:
    with pytest.raises(UsageError, match="f: cron"):
        cron(text, "f")
