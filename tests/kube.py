"""A Kubernetes API for tests: Jobs with a controller, whose pods are processes of this machine, and ConfigMaps.

Bodies are checked against the client's own types and, where they decide, the API server's rules for Jobs. Indexes run
the container's command for real. Faults are asked for by attributes and methods of `Kube`.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from conftest import ROOT
from kubernetes import client

LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
MIN_PARALLELISM = "kueue.x-k8s.io/job-min-parallelism"
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Refused(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.body = {"kind": "Status", "code": status, "reason": reason, "message": message, "status": "Failure"}


def check_type(value: Any, kind: str, where: str) -> None:
    """A value against a type of the client's, recursively; unknown fields are refused, as --validate=strict does."""
    if kind.startswith("list["):
        assert isinstance(value, list), f"{where}: expected a list"
        for i, item in enumerate(value):
            check_type(item, kind[5:-1], f"{where}[{i}]")
    elif kind.startswith("dict("):
        assert isinstance(value, dict), f"{where}: expected a mapping"
        for key, item in value.items():
            check_type(item, kind[5:-1].split(", ")[1], f"{where}.{key}")
    elif kind in {"str", "int", "bool", "float", "object", "datetime"}:
        plain = {"str": str, "int": int, "bool": bool, "float": float, "object": object, "datetime": str}[kind]
        assert isinstance(value, plain), f"{where}: {value!r} is no {kind}"
        assert kind != "int" or not isinstance(value, bool), f"{where}: {value!r} is no int"
    else:
        model = getattr(client, kind)
        assert isinstance(value, dict), f"{where}: expected a {kind}"
        names = {name: attribute for attribute, name in model.attribute_map.items()}
        for name, item in value.items():
            assert name in names, f"{where}.{name}: unknown field of {kind}"
            check_type(item, model.openapi_types[names[name]], f"{where}.{name}")


def check_job(body: dict[str, Any]) -> None:
    """What an API server refuses."""
    check_type(body, "V1Job", "Job")
    assert NAME.fullmatch(body["metadata"]["name"]), body["metadata"]["name"]
    spec = body["spec"]
    pods = spec["template"]
    for labels in (body["metadata"].get("labels", {}), pods["metadata"].get("labels", {})):
        assert all(LABEL.fullmatch(value) for value in labels.values()), labels
    assert pods["spec"]["restartPolicy"] == "Never", "podFailurePolicy needs restartPolicy Never"
    assert spec["completionMode"] == "Indexed"
    assert 1 <= spec["parallelism"] <= 100_000
    assert spec["backoffLimitPerIndex"] >= 0
    assert 0 <= spec["maxFailedIndexes"] <= spec["completions"]
    if spec["completions"] > 100_000:
        assert spec["maxFailedIndexes"] <= 10_000
        assert spec["parallelism"] <= 10_000
    assert len(json.dumps(body)) < 1_500_000, "larger than etcd takes"
    least = body["metadata"].get("annotations", {}).get(MIN_PARALLELISM)
    assert least is None or 0 <= int(least) < spec["parallelism"], "Kueue's webhook"
    containers = {one["name"] for one in pods["spec"]["containers"]}
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in {"Ignore", "FailIndex", "FailJob", "Count"}
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        codes = rule.get("onExitCodes")
        assert codes is None or (codes["operator"] in {"In", "NotIn"} and 0 not in codes["values"])
        assert codes is None or codes.get("containerName") in {None, *containers}


def numbers(values: set[int]) -> str:
    """As Kubernetes writes completedIndexes."""
    runs: list[tuple[int, int]] = []
    for value in sorted(values):
        runs = [*runs[:-1], (runs[-1][0], value)] if runs and runs[-1][1] == value - 1 else [*runs, (value, value)]
    return ",".join(f"{a}" if a == b else f"{a}-{b}" if b - a > 1 else f"{a},{b}" for a, b in runs)


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


class Kube:
    """namespace -> ConfigMaps; Jobs of one namespace, "splatclip". Faults: see the attributes."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.jobs: dict[str, State] = {}
        self.config_maps: dict[str, dict[str, str]] = {}
        self.version = 100
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.requests: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.forbidden: set[str] = set()  # "create jobs" ...
        self.fail_next: list[int] = []  # statuses of the next answers; 0: a cut connection
        self.lose_created = False  # the next create is done, its answer lost
        self.cut_watches = 0  # that end in the middle of a line
        self.gone_watches = 0  # that are answered with 410
        self.env: dict[str, str] = {}  # of the pods
        self.exits: dict[int, list[int]] = {}  # codes that the first pods of an index end with, having done nothing
        self.hold = False  # no pod starts, as where there is no room
        self.refuse_jobs = ""  # what admission says to every Job
        self.refuse_pods = ""  # what admission says to every pod
        self.vanish = False  # a complete Job is deleted before anybody sees it, as by a launcher that was quicker
        self.finalizer = ""  # of somebody who never takes it away: what is deleted stays
        self.kueue_after_s = 0.0
        self.kueue_quota = 1000  # pods; a Job that allows it begins with fewer than it asks for, and stays so
        self.token = "right"
        self.closed = False
        self.scratch = Path(tempfile.mkdtemp(prefix="kube-"))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        threading.Thread(target=self._control, daemon=True).start()

    # what tests use

    def kubeconfig(self, path: Path, namespace: str = "splatclip", token: str = "right") -> Path:
        url = f"http://127.0.0.1:{self._server.server_port}"
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        }))  # fmt: skip
        return path

    def the_job(self) -> dict[str, Any]:
        with self.lock:
            (state,) = self.jobs.values()
            return copy.deepcopy(state.job)

    def preempt(self, index: int, *, wait_s: float = 30) -> None:
        """Evict the pod of an index: SIGTERM, and the condition DisruptionTarget."""
        pod = self.pod(index, wait_s=wait_s)
        pod.disrupted = True
        pod.process.send_signal(signal.SIGTERM)

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

    def close(self) -> None:
        self.closed = True
        with self.lock:
            for state in self.jobs.values():
                for pod in state.running:
                    pod.process.kill()
                    pod.process.wait()
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    # the controller

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

    # the API

    def answer(self, verb: str, path: str, query: dict[str, str], body: Any) -> Any:
        kinds = "jobs|configmaps|pods|events"
        found = re.fullmatch(rf"/(?:api/v1|apis/batch/v1)/namespaces/([^/]+)/({kinds})(?:/([^/]+))?", path)
        assert found, f"no such path: {path}"
        namespace, kind, name = found.groups()
        verb = {"POST": "create", "DELETE": "delete"}.get(verb) or (
            "watch" if query.get("watch") in {"True", "true"} else "get" if name else "list"
        )
        if f"{verb} {kind}" in self.forbidden or namespace != "splatclip":
            who = f'User "system:serviceaccount:{namespace}:default" cannot {verb} resource "{kind}"'
            raise Refused(
                403, "Forbidden", f'{kind} is forbidden: {who} in API group "batch" in the namespace {namespace}'
            )
        with self.lock:
            if kind == "configmaps":
                if name not in self.config_maps:
                    raise Refused(404, "NotFound", f'configmaps "{name}" not found')
                return {"kind": "ConfigMap", "data": self.config_maps[name]}
            if kind == "events":
                return {"items": self._job_events(query["fieldSelector"])}
            if kind == "pods":
                wanted = query["labelSelector"].partition("=")[2]
                state = self.jobs.get(wanted)
                return {
                    "items": [self._pod(pod) for pod in (state.ended + state.running if state else [])]
                    + self._held(state)
                }
            if verb == "create":
                return self._create(body)
            if name not in self.jobs:
                raise Refused(404, "NotFound", f'jobs.batch "{name}" not found')
            state = self.jobs[name]
            if verb == "delete":
                uid = ((body or {}).get("preconditions") or {}).get("uid")
                if uid not in {None, state.job["metadata"]["uid"]}:
                    raise Refused(409, "Conflict", "the UID in the precondition does not match")
                assert body["propagationPolicy"] == "Background", "else its pods stay"
                if self.finalizer:
                    about = {"finalizers": [self.finalizer], "deletionTimestamp": "2026-01-01T00:00:00Z"}
                    state.job["metadata"] |= about
                    self._change("MODIFIED", state)
                    return self._shown(state.job)
                del self.jobs[name]
                for pod in state.running:
                    pod.process.send_signal(signal.SIGTERM)
                self._change("DELETED", state)
                return {"kind": "Status", "status": "Success"}
            return self._shown(state.job)

    def _pod(self, pod: Pod) -> dict[str, Any]:
        said = pod.log.read_text()[-2048:] if pod.tells else ""
        end = {"exitCode": pod.code, "reason": "Error", "message": said}
        ended = {"terminated": end} if pod.code is not None else {"running": {}}
        notes = {"batch.kubernetes.io/job-completion-index": str(pod.index)}
        return {"metadata": {"annotations": notes}, "status": {"containerStatuses": [{"state": ended}]}}

    def _job_events(self, selector: str) -> list[dict[str, Any]]:
        """Of the Job's controller, whose tries to make a pod are refused; with each try's name, as it has them."""
        wanted = dict(one.split("=") for one in selector.split(","))
        assert wanted.keys() == {"involvedObject.uid", "reason"}
        if not self.refuse_pods or wanted["reason"] != "FailedCreate":
            return []
        return [
            {
                "lastTimestamp": f"2026-01-01T00:00:0{second}Z",
                "message": f'Error creating: pods "{name}-0-{second}xyz" is forbidden: {self.refuse_pods}',
            }
            for name, state in self.jobs.items()
            if state.job["metadata"]["uid"] == wanted["involvedObject.uid"]
            for second in (2, 1)
        ]

    def _held(self, state: State | None) -> list[dict[str, Any]]:
        waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
        held = {"metadata": {}, "status": {"containerStatuses": [{"state": {"waiting": waiting}}]}}
        return [held] if self.hold and state else []

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.refuse_jobs:
            raise Refused(403, "Forbidden", self.refuse_jobs)
        try:
            check_job(body)
        except AssertionError as error:
            raise Refused(422, "Invalid", f"Job is invalid: {error}") from None
        name = body["metadata"]["name"]
        if name in self.jobs:
            raise Refused(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
        self.created.append(copy.deepcopy(body))
        job = copy.deepcopy(body)
        job["metadata"] |= {"uid": f"uid-{len(self.created)}", "namespace": "splatclip", "_made": time.monotonic()}
        job["status"] = {"conditions": []}
        state = self.jobs[name] = State(job)
        self._change("ADDED", state)
        return self._shown(job)

    def watch(self, query: dict[str, str]) -> Iterator[dict[str, Any] | None]:
        """Events after a version; None where the connection is to be cut."""
        name = query["fieldSelector"].partition("=")[2]
        seen, until = int(query["resourceVersion"]), time.monotonic() + float(query["timeoutSeconds"])
        if self.gone_watches:
            self.gone_watches -= 1
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            yield {"type": "ERROR", "object": status}
            return
        if self.cut_watches:
            self.cut_watches -= 1
            yield None
            return
        with self.lock:
            while not self.closed and (left := until - time.monotonic()) > 0:
                for version, kind, job in self.events:
                    if version > seen and job["metadata"]["name"] == name:
                        yield {"type": kind, "object": job}
                seen = self.version
                self.changed.wait(min(left, 0.5))

    def _handler(kube) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def _json(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _serve(self) -> None:
                parts = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
                kube.requests.append(f"{self.command} {parts.path}{' watch' * ('watch' in query)}")
                if kube.fail_next:
                    status = kube.fail_next.pop(0)
                    if status == 0:
                        self.close_connection = True
                        return
                    self._json(status, {"code": status, "message": "for now"})
                    return
                if self.headers.get("Authorization") != f"Bearer {kube.token}":
                    self._json(401, {"code": 401, "message": "Unauthorized"})
                    return
                try:
                    if query.get("watch") in {"True", "true"} and "watch jobs" not in kube.forbidden:
                        self._watch(query)
                        return
                    found = kube.answer(self.command, parts.path, query, body)
                except Refused as error:
                    self._json(error.body["code"], error.body)
                    return
                if self.command == "POST" and kube.lose_created:
                    kube.lose_created = False
                    self.close_connection = True
                    return
                self._json(201 if self.command == "POST" else 200, found)

            def _watch(self, query: dict[str, str]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.close_connection = True
                with suppress(OSError):
                    for event in kube.watch(query):
                        if event is None:
                            self.wfile.write(b"40\r\n" + b'{"type": "MODIF')
                            return
                        line = json.dumps(event).encode() + b"\n"
                        for piece in (line[:30], line[30:]):  # lines and chunks are not the same
                            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                            self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST = do_DELETE = _serve

        return Handler


@contextmanager
def a_cluster() -> Iterator[Kube]:
    kube = Kube()
    try:
        yield kube
    finally:
        kube.close()
