"""A webhook on this machine: answers as it is told, and remembers what it was told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HIDDEN = "T0KEN-0f-the-channel"  # in its address, which is a secret


class Hook(ThreadingHTTPServer):
    """answers: what each request gets, the last one for ever; seen: paths and bodies."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[int | Callable[[BaseHTTPRequestHandler], None]] = [200]
        self.seen: list[tuple[str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/{HIDDEN}"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        self.server.seen.append((self.path, json.loads(body)))
        answer = self.server.answers[min(len(self.server.seen), len(self.server.answers)) - 1]
        if callable(answer):
            answer(self)
            return
        self.send_response(answer)
        if answer in (302, 307):
            self.send_header("Location", f"/elsewhere/{HIDDEN}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.seen.append((self.path, {}))

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def listening() -> Iterator[Hook]:
    """One that listens for the length of the block."""
    with Hook() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
