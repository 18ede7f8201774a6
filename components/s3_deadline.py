"""Connections that end in time: no wait for the other side, and no dripping of it, outlasts the attempt's limit.

A socket's own timeout starts again with every byte. Here each send and receive may wait only as long as the attempt at
the request has left. Looking a name up is outside of this: the system's resolver has its own limits.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import time
from contextvars import ContextVar
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from components.errors import UsageError

DEADLINE_ENV = "SPLATCLIP_STORE_DEADLINE_S"
DEADLINE_S = 120.0  # of a call of the store, and on top of it the time that its bytes take at the slowest rate
SLOWEST_RATE = 256 << 10  # bytes a second
SEND_CHUNK = 256 << 10  # bytes; a stalled upload is noticed from one to the next


def deadline_s() -> float:
    """Seconds a call of the store may take, beside the time for its bytes; UsageError if the variable is no number."""
    text = os.environ.get(DEADLINE_ENV, "")
    if not text:
        return DEADLINE_S
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e7:
        raise UsageError(f"{DEADLINE_ENV}={text!r}: give a number of seconds above 0 (default: {DEADLINE_S:g})")
    return value


class Limit:
    """When an attempt at a request must be over (`end`, of time.monotonic), and how long one wait in it may be."""

    def __init__(self, end: float, longest_wait_s: float) -> None:
        self.end, self._longest_wait_s = end, longest_wait_s

    def wait_s(self) -> float:
        """How long to wait for the next bytes; TimeoutError if the time is over."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return min(left, self._longest_wait_s)


limit_now: ContextVar[Limit | None] = ContextVar("limit_now", default=None)


class _Raw(io.RawIOBase):
    """A socket's stream whose reads keep to the limit under which the request was sent."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, limit: Limit) -> None:
        self._raw, self._sock, self._limit = raw, sock, limit
        self.ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """See RawIOBase; TimeoutError when the limit is reached."""
        self._sock.settimeout(self._limit.wait_s())
        count = self._raw.readinto(buffer)
        self.ended = count == 0
        return count

    def close(self) -> None:
        """Close the socket's stream too."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        limit = limit_now.get()
        self._stream = None if limit is None else _Raw(self.fp.detach(), sock, limit)
        if self._stream is not None:
            self.fp = io.BufferedReader(self._stream)

    def begin(self) -> None:
        """Read the head; HTTPException if it is cut short, which http.client takes for its end."""
        super().begin()
        if self._stream is not None and self._stream.ended:
            raise http.client.HTTPException("the head of the answer was cut short")


class _Http(HTTPConnection):
    response_class = _Response

    def send(self, data: Any) -> None:
        """In chunks: the limit holds for the sending as well."""
        limit = limit_now.get()
        if limit is None or not isinstance(data, bytes):
            super().send(data)
            return
        if self.sock is None:
            self.connect()
        view = memoryview(data)
        for start in range(0, len(view), SEND_CHUNK):
            self.sock.settimeout(limit.wait_s())
            super().send(view[start : start + SEND_CHUNK])


class _Https(_Http, HTTPSConnection):
    """The same with TLS below it."""


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


class LimitedPool(PoolManager):
    """urllib3's pool of connections; a request sent while `limit_now` is set keeps to it, its body too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
