"""A Kubernetes API for tests: Jobs with a controller, whose pods are processes of this machine, and ConfigMaps.

Bodies are checked against the client's own types and, where they decide, the API server's rules for Jobs. Indexes run
the container's command for real. Faults are asked for by attributes and methods of `Kube`.
"""

from __future__ import annotations

import copy
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kube_controller import Controller, Pod, State
from kube_rules import check_job


class Refused(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.body = {"kind": "Status", "code": status, "reason": reason, "message": message, "status": "Failure"}


class Kube(Controller):
    """namespace -> ConfigMaps; Jobs of one namespace, "splatclip". Faults: see the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.config_maps: dict[str, dict[str, str]] = {}
        self.requests: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.forbidden: set[str] = set()  # "create jobs" ...
        self.fail_next: list[int] = []  # statuses of the next answers; 0: a cut connection
        self.lose_created = False  # the next create is done, its answer lost
        self.cut_watches = 0  # that end in the middle of a line
        self.gone_watches = 0  # that are answered with 410
        self.refuse_jobs = ""  # what admission says to every Job
        self.finalizer = ""  # of somebody who never takes it away: what is deleted stays
        self.token = "right"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

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
