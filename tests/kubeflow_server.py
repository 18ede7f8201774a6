"""The server before the stand-in of Kubeflow Pipelines: faults, errors as the API words them, HTTP."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kubeflow import Kubeflow
from kubeflow_contract import Refused
from serving import serve

CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 503: 14}


def _handler(state: Kubeflow) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with state.lock:
                state.requests.append((self.command, parts.path))
                fault = next(
                    (f for f in state.faults if f.times and f.method == self.command and f.path in parts.path), None
                )
                if fault:
                    fault.times -= 1
            how = fault.how if fault else ""
            if how == "drop":
                self.close_connection = True
                return
            if how == "slow":
                time.sleep(3)
            elif how == "html":
                self._send(200, b"<!DOCTYPE html><html><body>Log in</body></html>", "text/html; charset=utf-8")
                return
            elif how == "to":
                self._send(302, b"", "text/html", Location="https://login.example/oauth?state=1")
                return
            elif how == "garbage":
                self._send(200, b'{"runs": [{"created_at": "yesterday"}]}', "application/json")
                return
            elif isinstance(how, int):
                self._refuse(Refused(how, f"fault {how}"))
                return
            try:
                if state.token and self.headers.get("authorization") != f"Bearer {state.token}":
                    raise Refused(401, "Request header error: there is no user identity header")
                if state.forbidden:
                    raise Refused(403, "User 'x' is not authorized to list runs in namespace 'team'")
                queries = parse_qsl(parts.query, keep_blank_values=True)
                assert len({*dict(queries)}) == len(queries), "a query given twice"
                with state.lock:
                    answer = state.answer(
                        self.command, parts.path, dict(queries), body, self.headers.get("Content-Type", "")
                    )
                    data = json.dumps(answer).encode()
            except Refused as error:
                self._refuse(error, upload="/upload" in parts.path)
                return
            if how == "lose":
                self.close_connection = True
                return
            self._send(200, data, "application/json")

        def _refuse(self, error: Refused, *, upload: bool = False) -> None:
            if upload:
                said: dict[str, Any] = {"error_message": error.message, "error_details": error.message}
            else:
                code = CODES.get(error.status, 2)
                inner = {"@type": "type.googleapis.com/google.rpc.Status", "code": code, "message": error.message}
                said = {"error": error.message, "code": code, "message": error.message, "details": [inner]}
            self._send(error.status, json.dumps(said).encode(), "application/json")

        def _send(self, status: int, data: bytes, kind: str, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _serve

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def kubeflow(tls: ssl.SSLContext | None = None) -> Iterator[Kubeflow]:
    """A server with nothing in it."""
    state = Kubeflow()
    with serve(_handler(state), tls) as url:
        state.url = url
        yield state
