"""A stand-in of the part of the Kubernetes API that logs come from: pods of a run, and what their containers wrote."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml
from serving import serve

LOG_QUERIES = {"container", "follow", "timestamps", "sinceSeconds", "tailLines", "previous"}  # core/v1's


@dataclass
class Pod:
    """One pod. lines: (time, text); drops: after how many lines, counted from the log's begin, the stream breaks off;
    code: of its main container once it has ended, None while it runs; torn: the break is in the middle of a line
    ("torn"), and the stream ends as if it were whole ("cleanly"), or it does so at a line's end ("between").
    """

    name: str
    node: str
    run_id: str
    lines: list[tuple[str, str]] = field(default_factory=list)
    code: int | None = None
    drops: list[int] = field(default_factory=list)
    torn: str = ""
    waiting: str = ""
    reason: str = ""

    def write(self, *texts: str, at: str = "") -> None:
        for text in texts:
            now = at or f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"
            self.lines.append((now, text))

    def as_json(self) -> dict[str, Any]:
        if self.waiting:
            state: dict[str, Any] = {"waiting": {"reason": self.waiting, "message": "pull access denied"}}
        elif self.code is None:
            state = {"running": {"startedAt": "2026-11-29T07:00:00Z"}}
        else:
            state = {"terminated": {"exitCode": self.code, **({"reason": self.reason} if self.reason else {})}}
        phase = "Pending" if self.waiting else {None: "Running", 0: "Succeeded"}.get(self.code, "Failed")
        status = {"name": "main", "image": "i", "imageID": "i", "ready": True, "restartCount": 0, "state": state}
        return {
            "metadata": {
                "name": self.name,
                "labels": {"pipeline/runid": self.run_id},
                "annotations": {"workflows.argoproj.io/node-name": self.node} if self.node else {},
            },
            "spec": {"containers": [{"name": "main"}]},
            "status": {"phase": phase, "containerStatuses": [status]},
        }


@dataclass
class Cluster:
    """requests: paths with their queries; refuse: a status for every request."""

    url: str = ""
    pods: list[Pod] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    refuse: int = 0
    page: int = 100

    def kubeconfig(self, path: Path) -> Path:
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                    "clusters": [{"name": "k", "cluster": {"server": self.url}}],
                    "users": [{"name": "u", "user": {"token": "cluster-token"}}],
                }
            )
        )
        return path


def _handler(state: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            queries = dict(parse_qsl(parts.query))
            state.requests.append((parts.path, queries))
            match = re.fullmatch(r"/api/v1/namespaces/kubeflow/pods(?:/([^/]+)(/log)?)?", parts.path)
            if state.refuse or self.headers.get("authorization") != "Bearer cluster-token":
                self._json(state.refuse or 401, {"kind": "Status", "message": "Forbidden"})
            elif match is None:
                self._json(404, {"kind": "Status", "message": "not found"})
            elif match[1] is None:
                self._list(queries)
            else:
                pod = next((pod for pod in state.pods if pod.name == match[1]), None)
                if pod is None:
                    self._json(404, {"kind": "Status", "message": "not found"})
                elif match[2]:
                    self._log(pod, queries)
                else:
                    self._json(200, pod.as_json())

        def _list(self, queries: dict[str, str]) -> None:
            key, _, value = queries["labelSelector"].partition("=")
            assert key == "pipeline/runid"
            own = [pod for pod in state.pods if pod.run_id == value]
            start = int(queries.get("continue", "0"))
            page = own[start : start + state.page]
            more = {"continue": str(start + state.page)} if start + state.page < len(own) else {}
            self._json(200, {"kind": "PodList", "metadata": more, "items": [pod.as_json() for pod in page]})

        def _log(self, pod: Pod, queries: dict[str, str]) -> None:
            assert {*queries} <= LOG_QUERIES, queries
            assert queries["container"] == "main"
            if pod.waiting:
                self._json(400, {"kind": "Status", "message": 'container "main" is waiting to start'})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            since = float(queries.get("sinceSeconds", "inf"))
            sent = 0
            while True:
                for at, text in pod.lines[sent:]:
                    if pod.drops and sent == pod.drops[0]:
                        pod.drops.pop(0)
                        if pod.torn in ("torn", "cleanly"):
                            self._chunk(f"{at} {text[: len(text) // 2]}")
                        if pod.torn in ("cleanly", "between"):
                            self.wfile.write(b"0\r\n\r\n")
                        else:
                            self.close_connection = True  # without the last chunk
                        return
                    sent += 1
                    age = (datetime.now(UTC) - datetime.fromisoformat(at[:19]).replace(tzinfo=UTC)).total_seconds()
                    if age <= since:
                        self._chunk(f"{at} {text}\n")
                if queries.get("follow", "").lower() != "true" or pod.code is not None:
                    break
                time.sleep(0.01)
            self.wfile.write(b"0\r\n\r\n")

        def _chunk(self, text: str) -> None:
            data = text.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def _json(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster without pods."""
    state = Cluster()
    with serve(_handler(state)) as url:
        state.url = url
        yield state
