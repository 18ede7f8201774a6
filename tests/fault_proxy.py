"""A proxy that stands before an S3 server and does wrong by rule; it counts what it is asked.

A rule says which requests (method, a pattern of path and query, how many of them, or a probability) and what happens to
them. Chance comes from a seed, so that a run can be had again: FAULT_SEED=<number> in the environment.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CODES = {
    404: "NoSuchUpload", 500: "InternalError", 502: "BadGateway", 503: "SlowDown", 504: "GatewayTimeout",
    429: "TooManyRequests", 403: "AccessDenied",
}  # fmt: skip
DRIP_S = 0.05  # between bytes


@dataclass
class Rule:
    """Requests of `method` whose path and query match `pattern` meet `fault`.

    Only the first `times` of them, or each with `probability`. `headers` go with an answer of an error's status.
    """

    fault: str
    method: str = ""
    pattern: str = ""
    times: int = 1 << 30
    probability: float = 1.0
    headers: dict[str, str] = field(default_factory=dict)
    met: int = 0


def flipped(body: bytes) -> bytes:
    """Another byte in the middle, or first where there is markup, whose middle may be in a text that nobody checks."""
    where = 0 if body[:1] == b"<" else len(body) // 2
    return body[:where] + bytes([body[where] ^ 1]) + body[where + 1 :] if body else body


class Proxy:
    """Runs in threads of this process between entering and leaving it."""

    def __init__(self, target: str, seed: int | None = None) -> None:
        self.target = urlsplit(target)
        self.rules: list[Rule] = []
        self.seen: list[str] = []
        given = os.environ.get("FAULT_SEED")
        self.seed = seed if seed is not None else int(given) if given else secrets.randbelow(1 << 30)
        self.checks_sums = True  # as services do; moto does not
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            proxy = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def requests(self) -> int:
        """How many came."""
        return len(self.seen)

    def reset(self, *rules: Rule) -> None:
        """Other rules; nothing counted."""
        with self._lock:
            self.rules, self.seen = [*rules], []

    def fault_for(self, method: str, path: str) -> Rule | None:
        """What is to happen to this request."""
        with self._lock:
            self.seen.append(f"{method} {path}")
            for rule in self.rules:
                if rule.method not in {"", method} or not re.search(rule.pattern, path):
                    continue
                if rule.met < rule.times and self._random.random() < rule.probability:
                    rule.met += 1
                    return rule
        return None

    def __enter__(self) -> Proxy:
        print(f"FAULT_SEED={self.seed}")  # pytest shows it where a test fails
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes
    proxy: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        rule = self.proxy.fault_for(self.command, self.path)
        fault = rule.fault if rule else ""
        if fault.startswith("done "):  # as a gateway that does not wait for the answer
            self._ask(body)
            fault = fault.removeprefix("done ")
        if rule and fault.isdecimal():
            text = f"<Error><Code>{CODES[int(fault)]}</Code><Message>by rule</Message></Error>".encode()
            self._answer(int(fault), {"Content-Type": "application/xml", **rule.headers}, text, "")
            return
        if fault == "reset":
            self._reset()
            return
        if fault == "flip" and self.command == "PUT":
            body = flipped(body)  # on the way up
            signed = self.headers.get("x-amz-content-sha256", "")
            if self.proxy.checks_sums and re.fullmatch("[0-9a-f]{64}", signed) and sha256(body).hexdigest() != signed:
                text = b"<Error><Code>XAmzContentSHA256Mismatch</Code><Message>by rule</Message></Error>"
                self._answer(400, {"Content-Type": "application/xml"}, text, "")
                return
        if fault == "stall" and self.command != "GET":  # it is done, and nobody hears of it
            self._ask(body)
            self.proxy.closing.wait(30)
            self.close_connection = True
            return
        self._answer(*self._ask(body), fault)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        target = self.proxy.target
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)
        try:
            headers = dict(self.headers.items())
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
            if self.command == "HEAD" and (length := answer.getheader("Content-Length")):
                kept["Content-Length"] = length
            return answer.status, kept, content
        finally:
            connection.close()

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()  # with unread and lingering data: a RST

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: str) -> None:
        if fault == "short" and not body:  # nothing to cut but the head
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
            self.close_connection = True
            return
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "flip" and self.command != "PUT":
            body = flipped(body)
        with suppress(ConnectionError):
            if fault in {"short", "stall"}:
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                if fault == "stall":
                    self.wfile.flush()
                    self.proxy.closing.wait(30)
            elif fault == "drip":
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(DRIP_S)
            else:
                self.wfile.write(body)

    def handle(self) -> None:
        """Clients hang up on what is done wrong to them."""
        with suppress(ConnectionError, ValueError, OSError):
            super().handle()

    def finish(self) -> None:
        """See handle."""
        with suppress(ConnectionError, ValueError, OSError):
            super().finish()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@contextmanager
def fault_proxy(target: str, seed: int | None = None) -> Iterator[Proxy]:
    """A proxy before `target`."""
    with Proxy(target, seed) as proxy:
        yield proxy
