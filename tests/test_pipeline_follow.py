"""Following runs: states, the pods' logs with every line once, the exit code, and stopping."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Pod, cluster
from conftest import ROOT
from kfp_worlds import STORE, package, params, point_to, to
from kubeflow import Fault, Kubeflow

from components.__main__ import main
from pipelines import runs
from pipelines.api import Api
from pipelines.connection import Connection
from pipelines.follow import exit_code
from pipelines.pod_log import LONGEST, Seen, lines
from pipelines.steps import step_states


@pytest.fixture
def pods(server: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    with cluster() as state:
        point_to(monkeypatch, state.kubeconfig(tmp_path / "kubeconfig"))
        yield state


def submitted(server: Kubeflow, *script: Any) -> str:
    server.default_script = list(script)
    return runs.submit(Api(Connection(server.url)), package(), params(), STORE).run_id


def follow(run_id: str, *more: str) -> int:
    return main(["pipeline", "logs", run_id, "--follow", "--poll", "0.02", *more])


def test_success(server: Kubeflow, pods: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = submitted(server)
    pod = Pod("p-download", "train-eval-x.root.exit-handler-1.download-2.executor", run_id)
    driver = Pod("p-driver", "train-eval-x.root.exit-handler-1.download-2-driver", run_id, code=0)
    driver.write("words of Kubeflow's own")
    made = Pod("job-0-abc", "", run_id)  # a pod that a step has made
    made.write("words of a worker")
    other = Pod("p-other", "train-eval-y.root.download.executor", "another-run")
    other.write("words of another run")
    pods.pods = [driver, made, other, pod]
    pods.page = 1

    def say(*texts: str) -> Any:
        def change(run: dict[str, Any]) -> None:
            pod.write(*texts)
            to("RUNNING", download="SUCCEEDED", download_2="RUNNING")(run)

        return change

    def end(run: dict[str, Any]) -> None:
        pod.write("last, written at the end")
        pod.code = 0
        to("SUCCEEDED", download="SUCCEEDED", download_2="SUCCEEDED")(run)

    server.scripts[run_id] = [to("PENDING"), to("PENDING"), say("one", "two"), say("three"), end]
    assert follow(run_id) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        f"download_eval | {text}" for text in ("one", "two", "three", "last, written at the end")
    ]
    notes = [re.sub(r"^run \S+:", "run:", line) for line in shown.err.splitlines()]
    assert notes == [
        "run: PENDING",
        "run: RUNNING",
        "download: SUCCEEDED",
        "download_eval: RUNNING",
        "download_eval: SUCCEEDED",
        "run: SUCCEEDED",
    ]


@pytest.mark.parametrize("torn", ["", "torn", "cleanly", "between"])
def test_a_stream_that_breaks_off_loses_and_repeats_nothing(
    server: Kubeflow, pods: Cluster, capsys: pytest.CaptureFixture[str], torn: str
) -> None:
    run_id = submitted(server)
    pod = Pod("p", "x.root.splat-fit.executor", run_id, torn=torn, drops=[3, 7, 7, 40, 99])
    for n in range(100):  # tens of lines of the same time, as a burst has them; the same text several times
        pod.write(f"line {n // 2}", at=f"2026-11-29T07:{n // 30:02d}:00.{n // 10 % 3 * 5:09d}Z")
    pods.pods = [pod]

    def end(run: dict[str, Any]) -> None:
        pod.code = None if pod.drops else 0
        to("RUNNING" if pod.drops else "SUCCEEDED", splat_fit="RUNNING")(run)

    server.scripts[run_id] = [end] * 1000
    assert follow(run_id) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [f"splat_fit | line {n // 2}" for n in range(100)]
    reads = [queries for path, queries in pods.requests if path.endswith("/log")]
    assert len(reads) >= 6
    assert "sinceSeconds" not in reads[0]
    assert all(int(queries["sinceSeconds"]) > 0 for queries in reads[1:]), "not all of it is read again"


@pytest.mark.parametrize(
    ("status", "code", "ends"),
    [("exit status 42", 1, 42), ("exit status 75", 1, 75), ("exit status 2", 1, 42), ("no reason", 1, 1), ("", 75, 75)],
)
def test_the_exit_code_says_whether_to_try_again(
    server: Kubeflow, pods: Cluster, capsys: pytest.CaptureFixture[str], status: str, code: int, ends: int
) -> None:
    """The launcher ends with 1 whatever its step ended with, and says what that was in its last line."""
    run_id = submitted(server)
    pod = Pod("p", "x.root.splat-fit.executor", run_id, code=code)
    pod.write("words", f"F1129 main.go:49] failed to execute component: {status}")
    pods.pods = [pod]
    server.scripts[run_id] = [to("RUNNING", splat_fit="RUNNING"), to("FAILED", splat_fit="FAILED")]
    server.scripts[run_id].append(server.scripts[run_id][-1])
    assert follow(run_id) == ends
    assert "splat_fit: FAILED" in capsys.readouterr().err


def test_exit_codes() -> None:
    assert exit_code("SUCCEEDED", [75]) == 0
    assert exit_code("CANCELED", [42]) == 143
    assert exit_code("FAILED", [75, 42]) == 42
    assert exit_code("FAILED", [75, 143]) == 75
    assert exit_code("FAILED", [75, 1]) == 1
    assert exit_code("FAILED", []) == 1


@pytest.mark.parametrize("codes", [(42, 75), (75, 42), (42, 0), (0, 42)])
def test_of_a_loop_no_failure_is_lost(
    server: Kubeflow, pods: Cluster, capsys: pytest.CaptureFixture[str], codes: tuple[int, int]
) -> None:
    """All iterations of a task have its name; the last to begin is not the one that counts."""
    run_id = submitted(server)
    tasks = []
    for at, code in enumerate(codes):
        node = f"x.root.for-loop-1.iteration({at}:{at}).splat-fit.executor"
        for again in (0, 1):  # each is tried twice
            pods.pods.append(Pod(f"p-{at}-{1 - again}", f"{node}({again})", run_id, code=code if again else 75))
        state = "FAILED" if code else "SUCCEEDED"
        begun = {"start_time": f"2026-11-29T07:0{at}:00Z", "end_time": f"2026-11-29T08:0{at}:00Z"}
        tasks.append({"display_name": "splat-fit", "task_id": f"n-{at}", "state": state, **begun})

    def end(run: dict[str, Any]) -> None:
        to("FAILED")(run)
        run["run_details"]["task_details"] += tasks

    server.scripts[run_id] = [to("RUNNING"), end, end, end]
    assert follow(run_id) == 42
    told = capsys.readouterr().err.splitlines()
    assert "splat_fit: FAILED" in told
    assert sorted(line for line in told if "exit code" in line) == sorted(
        f"splat_fit: exit code {code}" for code in codes if code
    )
    assert main(["pipeline", "status", run_id, "--json"]) == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert (step["state"], step["started"], step["ended"]) == (
        "FAILED", "2026-11-29T07:00:00Z", "2026-11-29T08:01:00Z"
    )  # fmt: skip


def test_of_several_tries_of_a_node_the_last_counts(server: Kubeflow) -> None:
    run_id = submitted(server)
    server.runs[run_id]["run_details"] = {
        "task_details": [
            {"display_name": name, "task_id": task_id, "state": state, "start_time": f"2026-11-29T07:0{at}:00Z"}
            | ({"child_tasks": [{"task_id": f"{task_id}{n}"} for n in (0, 1)]} if "(" not in name else {})
            for at, (name, task_id, state) in enumerate(
                [
                    ("splat-fit", "a", "RUNNING"), ("splat-fit", "b", "SUCCEEDED"), ("splat-fit(0)", "a0", "FAILED"),
                    ("splat-fit(0)", "b0", "FAILED"), ("splat-fit(1)", "a1", "RUNNING"),
                    ("splat-fit(1)", "b1", "SUCCEEDED"),
                ]
            )
        ]
    }  # fmt: skip
    run = runs.find_run(Api(Connection(server.url)), run_id)
    (step,) = step_states(run, {"splat-fit": "splat_fit"})
    assert (step.state, step.ended) == ("RUNNING", None)


def test_canceled(server: Kubeflow, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = submitted(server, to("RUNNING"), to("CANCELING"), to("CANCELED"))
    assert follow(run_id) == 143
    assert capsys.readouterr().err.splitlines()[-1].endswith(": CANCELED")


def test_without_a_cluster_there_are_states_only(server: Kubeflow, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = submitted(server, to("RUNNING", download="RUNNING"), to("FAILED", download="FAILED"))
    server.runs[run_id]["error"] = {"code": 13, "message": "Workflow failed"}
    assert follow(run_id) == 1
    told = capsys.readouterr().err
    assert "no logs, states only: no access to a Kubernetes cluster" in told
    assert "download: FAILED" in told
    assert "Workflow failed" in told
    assert main(["pipeline", "logs", run_id]) == 42


def test_pods_that_may_not_be_read_are_told_once(
    server: Kubeflow, pods: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = submitted(server, *[to("RUNNING")] * 5, to("SUCCEEDED"))
    pods.refuse = 403
    assert follow(run_id) == 0
    assert capsys.readouterr().err.count("may not be listed (HTTP 403); ask for a role") == 1
    assert len(pods.requests) == 1
    assert main(["pipeline", "logs", run_id]) == 42


def test_why_a_pod_does_not_start_is_told(server: Kubeflow, pods: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = submitted(server, *[to("RUNNING")] * 6, to("FAILED"))
    pods.pods = [Pod("p", "x.root.download.executor", run_id, waiting="ImagePullBackOff")]
    assert follow(run_id) == 1
    told = capsys.readouterr().err
    assert told.count("download: its pod p cannot start: ImagePullBackOff: pull access denied") == 1


def test_what_the_memory_did_not_hold_is_told(
    server: Kubeflow, pods: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = submitted(server, *[to("RUNNING")] * 3, to("FAILED"))
    pods.pods = [Pod("p", "x.root.splat-fit.executor", run_id, code=137, reason="OOMKilled")]
    assert follow(run_id) == 1
    assert "splat_fit: killed for want of memory" in capsys.readouterr().err


def test_the_logs_so_far_and_of_one_step(server: Kubeflow, pods: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = submitted(server, *[to("RUNNING")] * 9)
    for step in ("download", "splat-fit"):
        pod = Pod(f"p-{step}", f"x.root.{step}.executor", run_id)  # still at work
        pod.write(f"words of {step}")
        pods.pods.append(pod)
    assert main(["pipeline", "logs", run_id]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "download | words of download",
        "splat_fit | words of splat-fit",
    ]
    assert main(["pipeline", "logs", run_id, "--step", "splat_fit"]) == 0
    assert capsys.readouterr().out.splitlines() == ["splat_fit | words of splat-fit"]
    assert main(["pipeline", "logs", run_id, "--step", "splat"]) == 2
    assert "download, download_eval" in capsys.readouterr().err


def test_the_exit_code_is_the_runs_whatever_step_is_told(
    server: Kubeflow, pods: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = submitted(server)
    for step, code in (("download", 0), ("splat-fit", 1)):
        pods.pods.append(Pod(f"p-{step}", f"x.root.{step}.executor", run_id, code=code))
        pods.pods[-1].write(f"words of {step}", "F1129 main.go:49] failed to execute component: exit status 42")
    server.scripts[run_id] = [to("RUNNING"), *[to("FAILED", download="SUCCEEDED", splat_fit="FAILED")] * 3]
    assert follow(run_id, "--step", "download") == 42
    assert "words of splat-fit" not in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--follow", "--poll", "0.1"]], ids=["so far", "followed"])
def test_a_reader_that_goes_away_ends_the_command(server: Kubeflow, pods: Cluster, more: list[str]) -> None:
    """As with `| head`: without a traceback of a thread, and not after the run."""
    run_id = submitted(server, *[to("RUNNING", download="RUNNING")] * 10_000)
    pods.pods = [Pod("p", "x.root.download.executor", run_id)]
    pods.pods[0].write(*["words"] * 20_000)  # more than a pipe holds
    command = [sys.executable, "-m", "components", "pipeline", "logs", run_id, *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    killer = threading.Timer(60, process.kill)
    killer.start()
    assert process.stdout.readline() == "download | words\n"
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGPIPE
    killer.cancel()
    assert "Traceback" not in told
    assert "BrokenPipe" not in told


def test_the_api_may_be_away_for_a_while(server: Kubeflow, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = submitted(server, to("RUNNING"), to("SUCCEEDED"))
    server.faults = [Fault("GET", f"/runs/{run_id}", 503, 2), Fault("GET", f"/runs/{run_id}", "lose", 1)]
    assert follow(run_id) == 0
    assert "SUCCEEDED" in capsys.readouterr().err


def test_the_api_may_be_away_for_longer_than_a_request_may_take(
    server: Kubeflow, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(_: Any) -> None:
        monkeypatch.setenv("SPLATCLIP_KFP_DEADLINE_S", "0.5")
        server.faults.append(Fault("GET", f"/runs/{run_id}", 503, times=15))  # some three requests with all their tries

    run_id = submitted(server, to("RUNNING"), leave, to("SUCCEEDED"))
    assert follow(run_id) == 0
    told = capsys.readouterr().err
    assert told.count("is out of sight, asking again for 30 min") == 1
    assert server.faults[0].times == 0


@pytest.mark.parametrize("how", [503, 401], ids=["away", "token ran out"])
def test_a_run_out_of_sight_has_not_failed(
    server: Kubeflow, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: int
) -> None:
    """With 75 or 42 a scheduler would submit it again, or tell of a failure, while it is at work."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("pipelines.follow.AWAY_S", 0.3)

    def leave(_: Any) -> None:
        monkeypatch.setenv("SPLATCLIP_KFP_DEADLINE_S", "0.2")
        server.faults.append(Fault("GET", "/runs/", how, 10**6))

    server.default_script = [to("RUNNING"), leave]
    assert main(["pipeline", "submit", "--store", STORE, "--follow", "--poll", "0.02", "--json"]) == 69
    shown = capsys.readouterr()
    (run_id,) = server.runs
    told = json.loads(shown.out)
    assert (told["run_id"], told["state"], told["exit_code"]) == (run_id, None, 69)
    assert f"HTTP {how}" in shown.err
    assert f"`splatclip pipeline logs {run_id} --follow` takes it up" in shown.err


def test_submit_and_resume_follow(
    server: Kubeflow, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    server.default_script = [to("RUNNING"), to("FAILED")]
    words = ["--follow", "--poll", "0.02", "--json"]
    assert main(["pipeline", "submit", "--store", STORE, *words]) == 1
    first = json.loads(capsys.readouterr().out)
    assert (first["state"], first["exit_code"]) == ("FAILED", 1)
    server.default_script = [to("SUCCEEDED")]
    assert main(["pipeline", "resume", first["run_id"], *words]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "SUCCEEDED"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_to_follow_leaves_the_run(server: Kubeflow, pods: Cluster, number: signal.Signals, code: int) -> None:
    run_id = submitted(server, *[to("RUNNING", download="RUNNING")] * 10_000)
    pods.pods = [Pod("p", "x.root.download.executor", run_id)]
    pods.pods[0].write("begun")
    command = [sys.executable, "-m", "components", "pipeline", "logs", run_id, "--follow", "--poll", "0.1"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    killer = threading.Timer(60, process.kill)
    killer.start()
    assert process.stdout.readline() == "download | begun\n"
    before = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate()
    killer.cancel()
    assert process.returncode == code
    assert time.monotonic() - before < 10
    assert f"`splatclip pipeline logs {run_id} --follow` takes it up" in told
    assert "Traceback" not in told
    assert server.runs[run_id]["state"] == "RUNNING"
    assert not [path for method, path in server.requests if method == "POST" and path.endswith(":terminate")]


def test_lines_of_a_stream() -> None:
    assert list(lines(iter([b"a\nb", b"c\n\n", b"d"]))) == [("a", True), ("bc", True), ("", True), ("d", False)]
    assert list(lines(iter([b"\xff\xc3", b"\xa4\n"]))) == [("\ufffd\u00e4", True)]
    (first, last) = lines(iter([b"x" * (LONGEST + 5), b"yyy\nz\n"]))
    assert (len(first[0]), last) == (LONGEST, ("z", True))


def test_a_log_read_again_is_told_from_where_it_broke_off() -> None:
    seen = Seen()
    log = [f"2026-11-29T07:00:0{n // 3}.5Z {n}" for n in range(9)]
    assert [seen.new(line) for line in log[:5]] == ["0", "1", "2", "3", "4"]
    seen.again()
    assert [seen.new(line) for line in log] == [None] * 5 + ["5", "6", "7", "8"]
    assert seen.new("2026-11-29T07:00:00.1Z late") == "late", "out of order, and yet new"
    assert seen.new("failed to watch file") == "failed to watch file"
    seen.again()
    assert seen.new("failed to watch file") is None
    short, long = "2026-11-29T07:00:09.1Z b", "2026-11-29T07:00:09.12Z c"  # Go leaves out zeros at the end
    assert [seen.new(short), seen.new(long)] == ["b", "c"]
    seen.again()
    assert [seen.new(short), seen.new(long)] == [None, None]
