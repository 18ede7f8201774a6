"""The Jobs of a Kubernetes API for tests, with their controller: the pods of an index are processes of this machine."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import ROOT
from kube_rules import MIN_PARALLELISM, numbers


@dataclass
class Pod:
    index: int
    process: subprocess.Popen[bytes]
    log: Path
    tells: bool  # its log's end, where it fails
    disrupted: bool = False
    code: int | None = None


@dataclass
class State:
    """A Job and what its controller knows."""

    job: dict[str, Any]
    running: list[Pod] = field(default_factory=list)
    ended: list[Pod] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    failures: Counter[int] = field(default_factory=Counter)


class Controller:
    """Of Jobs by name. Faults: see the attributes."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.jobs: dict[str, State] = {}
        self.version = 100
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.env: dict[str, str] = {}  # of the pods
        self.exits: dict[int, list[int]] = {}  # codes that the first pods of an index end with, having done nothing
        self.hold = False  # no pod starts, as where there is no room
        self.refuse_pods = ""  # what admission says to every pod
        self.vanish = False  # a complete Job is deleted before anybody sees it, as by a launcher that was quicker
        self.kueue_after_s = 0.0
        self.kueue_quota = 1000  # pods; a Job that allows it begins with fewer than it asks for, and stays so
        self.closed = False
        self.scratch = Path(tempfile.mkdtemp(prefix="kube-"))
        threading.Thread(target=self._control, daemon=True).start()

    # what tests use

    def the_job(self) -> dict[str, Any]:
        with self.lock:
            (state,) = self.jobs.values()
            return copy.deepcopy(state.job)

    def preempt(self, index: int, number: signal.Signals = signal.SIGTERM, *, wait_s: float = 30) -> Pod:
        """Evict the pod of an index: the signal (SIGKILL: its node has ended), and the condition DisruptionTarget."""
        pod = self.pod(index, wait_s=wait_s)
        pod.disrupted = True
        pod.process.send_signal(number)
        return pod

    def pod(self, index: int, *, wait_s: float = 30) -> Pod:
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            with self.lock:
                for state in self.jobs.values():
                    for pod in state.running:
                        if pod.index == index and pod.process.poll() is None:
                            return pod
            time.sleep(0.02)
        raise AssertionError(f"index {index} does not run")

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.scratch.glob("*.log")))

    # its work

    def _control(self) -> None:
        while not self.closed:
            with self.lock:
                for state in list(self.jobs.values()):
                    self._reconcile(state)
            time.sleep(0.05)

    def _reconcile(self, state: State) -> None:
        spec, status = state.job["spec"], state.job["status"]
        before = json.dumps(status, sort_keys=True)
        for pod in [*state.running]:
            if (code := pod.process.poll()) is not None:
                state.running.remove(pod)
                state.ended.append(pod)
                pod.code = code if code >= 0 else 128 - code
                self._ended(state, pod)
        if any(one["type"] in {"Complete", "Failed"} for one in status["conditions"]):
            return
        if spec.get("suspend"):
            about = state.job["metadata"]
            label = "kueue.x-k8s.io/queue-name" in about["labels"]
            least = int(about.get("annotations", {}).get(MIN_PARALLELISM, spec["parallelism"]))
            if label and time.monotonic() - about["_made"] > self.kueue_after_s and self.kueue_quota >= least:
                spec |= {"suspend": False, "parallelism": min(spec["parallelism"], self.kueue_quota)}
                self._change("MODIFIED", state)
            return
        if len(state.failed) > spec["maxFailedIndexes"]:
            self._end(
                state,
                "Failed",
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            )
        elif len(state.done | state.failed) == spec["completions"]:
            if state.failed:
                self._end(state, "Failed", "FailedIndexes", "Job has failed indexes")
            elif self.vanish:
                del self.jobs[state.job["metadata"]["name"]]
                self._change("DELETED", state)
                return
            else:
                self._end(state, "Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        else:
            busy = {pod.index for pod in state.running}
            for index in range(spec["completions"]):
                if self.hold or self.refuse_pods or len(state.running) >= spec["parallelism"]:
                    break
                if index not in busy | state.done | state.failed:
                    self._run(state, index)
        status |= {
            "active": len(state.running), "ready": len(state.running), "succeeded": len(state.done),
            "completedIndexes": numbers(state.done), "failedIndexes": numbers(state.failed),
        }  # fmt: skip
        if self.hold:
            status |= {"active": min(spec["parallelism"], spec["completions"]), "ready": 0}
        if json.dumps(status, sort_keys=True) != before:
            self._change("MODIFIED", state)

    def _run(self, state: State, index: int) -> None:
        (container,) = state.job["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["splatclip"]
        log = self.scratch / f"{state.job['metadata']['uid']}-{index}-{len(state.ended)}.log"
        given = {one["name"]: one["value"] for one in container.get("env", []) if one["name"] != "HOME"}
        env = {
            **os.environ,
            **given,
            **self.env,
            "JOB_COMPLETION_INDEX": str(index),
        }
        command = ["-m", "components", *container["args"]]
        if self.exits.get(index):
            command = ["-c", f"raise SystemExit({self.exits[index].pop(0)})"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        tells = container.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        state.running.append(Pod(index, process, log, tells))

    def _ended(self, state: State, pod: Pod) -> None:
        if pod.code == 0:
            state.done.add(pod.index)
            return
        for rule in state.job["spec"]["podFailurePolicy"]["rules"]:
            wanted = rule.get("onPodConditions", [])
            hit = pod.disrupted and any(one["type"] == "DisruptionTarget" and one["status"] == "True" for one in wanted)
            codes = rule.get("onExitCodes")
            hit = hit or (codes is not None and (pod.code in codes["values"]) == (codes["operator"] == "In"))
            if hit and rule["action"] == "Ignore":
                return
            if hit and rule["action"] == "FailIndex":
                state.failed.add(pod.index)
                return
            if hit and rule["action"] == "FailJob":
                self._end(state, "Failed", "PodFailurePolicy", f"exit {pod.code} matching FailJob rule")
                return
        state.failures[pod.index] += 1
        if state.failures[pod.index] > state.job["spec"]["backoffLimitPerIndex"]:
            state.failed.add(pod.index)

    def _end(self, state: State, kind: str, reason: str, message: str) -> None:
        for pod in state.running:
            pod.process.send_signal(signal.SIGTERM)
        state.job["status"]["conditions"].append({"type": kind, "status": "True", "reason": reason, "message": message})
        state.job["status"] |= {"completedIndexes": numbers(state.done), "failedIndexes": numbers(state.failed)}
        self._change("MODIFIED", state)

    def _change(self, kind: str, state: State) -> None:
        self.version += 1
        state.job["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, kind, self._shown(state.job)))
        self.changed.notify_all()

    @staticmethod
    def _shown(job: dict[str, Any]) -> dict[str, Any]:
        shown = copy.deepcopy(job)
        shown["metadata"].pop("_made")
        return shown
