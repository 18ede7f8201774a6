"""Requests to an S3 service, repeated while that may help and time is left.

A call of the store is one or many requests (`Call`); the minio client sends each through `Requests`, which is the one
place where a request is tried again, by a rule that bounds both their number and the time.
"""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from urllib3 import BaseHTTPResponse, HTTPResponse, PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError, InvalidHeader, NameResolutionError, NewConnectionError, SSLError

from components.s3_checks import NotS3Error, check_answer
from components.s3_deadline import SLOWEST_RATE, Limit, LimitedPool, deadline_s, limit_now

CONNECT_TIMEOUT_S = 10.0
RETRIES = 7  # of one request
RETRIES_UNREACHABLE = 3  # where nobody listens, or nobody knows the name: mostly a wrong address
MOST_AGE_S = 600.0  # of a signature that is sent again; services refuse one that is 900 s old
BACKOFF_S, LONGEST_BACKOFF_S = 0.2, 15.0  # doubled from one to the next; at least half of it, the rest is random
PARTS_AT_ONCE = 3  # of an upload: they share the line, and its slowest rate is that of all together
RETRIED = {408, 429, 500, 502, 503, 504}
# Beside them, errors of status 400 or 409 that another try may mend: sent too slowly, or damaged on the way there
_CODES = ("RequestTimeout", "OperationAborted", "BadDigest", "XAmzContentSHA256Mismatch")
# What a service of identities says with status 400 when it is asked too often, or is not ready
_BUSY = ("Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded", "IDPCommunicationError")
BUSY_CODES, RETRIED_CODES = (
    tuple(f"<Code>{code}</Code>".encode() for code in codes) for codes in (_BUSY, (*_CODES, *_BUSY))
)

Reader = Callable[[BaseHTTPResponse], None]


class Call:
    """One call of the store: where it goes, when it must be over, and how a body that is streamed is read.

    `reader` reads and checks the body of a GET within the attempt, so that a damaged one is asked for again like any
    other failure. It raises urllib3's errors for what may be tried again.
    """

    def __init__(
        self, where: str, num_bytes: int = 0, reader: Reader | None = None, *, wanted_abort: bool = False
    ) -> None:
        self.where, self.reader = where, reader
        self.wanted_abort = wanted_abort  # to take an upload back is what was asked for, not what follows an error
        self.base_s = deadline_s()
        self.start = time.monotonic()
        self.seconds = self.base_s + num_bytes / SLOWEST_RATE
        self.requests = 0
        self.completing = b""  # what was sent to complete an upload, if nobody heard that it was done

    def end(self, *, last: bool = False) -> float:
        """When a request must be over, of time.monotonic.

        A tenth of the deadline is left for the `last` request, which takes an unfinished upload back.
        """
        return self.start + self.seconds - (0.0 if last else self.base_s / 10)

    def allow(self, num_bytes: int) -> None:
        """Time for so many bytes to come."""
        self.seconds = max(self.seconds, self.base_s + num_bytes / SLOWEST_RATE)

    def limit(self, num_bytes: int, *, last: bool = False) -> Limit:
        """Of one attempt: a quarter of the deadline and the time for the bytes, so that another one fits."""
        end = time.monotonic() + self.base_s / 4 + num_bytes / SLOWEST_RATE
        return Limit(min(end, self.end(last=last)), self.base_s / 4)

    def left(self) -> Call:
        """A call in what time this one has left, or in a twentieth of the deadline."""
        found = Call(self.where)
        found.seconds = found.base_s = max(self.start + self.seconds - time.monotonic(), self.base_s / 20)
        return found

    def effort(self) -> str:
        """What was tried, for a message."""
        return f"{self.requests} request{'s' * (self.requests != 1)} in {time.monotonic() - self.start:.1f} s"


current: ContextVar[Call | None] = ContextVar("current", default=None)


def _retries_for(error: HTTPError) -> int:
    """How often to try again after such an error."""
    if isinstance(error, NotS3Error):
        return 0
    if isinstance(error, SSLError):
        cause = error.args[0] if error.args else None
        hopeless = isinstance(cause, ssl.SSLCertVerificationError) or "WRONG_VERSION_NUMBER" in str(cause)
        return 0 if hopeless else RETRIES_UNREACHABLE
    if isinstance(error, NameResolutionError):
        cause = error.__cause__
        unknown = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
        return 1 if unknown else RETRIES_UNREACHABLE
    return RETRIES_UNREACHABLE if isinstance(error, NewConnectionError) else RETRIES


def _asked_to_wait_s(response: BaseHTTPResponse) -> float:
    """Retry-After in seconds; 0 where there is none that can be read."""
    value = response.headers.get("Retry-After")
    try:
        return Retry().parse_retry_after(value) if value else 0.0
    except (InvalidHeader, ValueError, OverflowError):  # thousands of digits; a date before all clocks
        return 0.0


class Requests(PoolManager):
    """What the minio client takes for its pool of connections: requests that are tried again within their call's time.

    The call is the one given, or `current` of this thread (the client uploads parts in threads of its own), or else
    each request is a call of its own.
    """

    def __init__(self, pool: LimitedPool, call: Call | None = None) -> None:
        super().__init__(num_pools=1)
        self._pool, self._call = pool, call

    def clear(self) -> None:
        """Nothing: the client does this when it is deleted, and the connections are shared."""

    def urlopen(self, method: str, url: str, redirect: bool = False, **more: Any) -> BaseHTTPResponse:  # type: ignore[override]
        """Send a request until it is answered; the last answer or error, whatever it is, when it is given up.

        Redirects are not followed: a signature holds for one host.
        """
        parts = urlsplit(url)
        call = self._call or current.get() or Call(f"{parts.scheme}://{parts.netloc}{parts.path}")
        if method == "DELETE" and "uploadId=" in parts.query and not call.wanted_abort:
            return self._take_back(call, url, more)
        return self._attempts(call, method, url, more)

    def _take_back(self, call: Call, url: str, more: dict[str, Any]) -> BaseHTTPResponse:
        """Abort an upload whose error is on its way to the caller; that one matters, not what happens here."""
        with suppress(HTTPError):
            self._attempts(call, "DELETE", url, more, last=True)
        return HTTPResponse(status=204)

    def _attempts(
        self, call: Call, method: str, url: str, more: dict[str, Any], *, last: bool = False
    ) -> BaseHTTPResponse:
        sent: bytes = more.get("body") or b""
        completes = method == "POST" and "uploadId=" in url
        on_the_line = len(sent) * (PARTS_AT_ONCE if "partNumber=" in url else 1)
        failures, signed = 0, time.monotonic()
        while True:
            limit = call.limit(on_the_line, last=last)
            response, error, wait_s = None, None, 0.0
            token = limit_now.set(limit)
            try:
                response = self._once(call, method, url, more, limit)
                if completes and response.status >= 500:
                    call.completing = sent  # a gateway's answer: behind it, it may have been done all the same
                if response.status not in RETRIED and not self._says(response, more, RETRIED_CODES):
                    return response
                wait_s, allowed = _asked_to_wait_s(response), RETRIES
            except HTTPError as failed:
                error, allowed = failed, _retries_for(failed)
                if completes:
                    call.completing = sent
            finally:
                limit_now.reset(token)
            backoff = min(BACKOFF_S * 2**failures, LONGEST_BACKOFF_S)
            wait_s = max(wait_s, backoff * random.uniform(0.5, 1.0))
            failures += 1
            again = time.monotonic() + wait_s
            if failures > allowed or again >= call.end(last=last) or again > signed + MOST_AGE_S:
                if error is not None:
                    raise error
                if response is not None and response.status == 400 and self._says(response, more, BUSY_CODES):
                    raise HTTPError("the service is asked too often")  # who asks for an identity looks at the status
                return response  # type: ignore[return-value]
            if response is not None:
                response.close()
                response.release_conn()
            time.sleep(wait_s)

    def _once(self, call: Call, method: str, url: str, more: dict[str, Any], limit: Limit) -> BaseHTTPResponse:
        call.requests += 1
        try:
            wait_s = limit.wait_s()
        except TimeoutError:
            raise HTTPError(f"the deadline of {call.seconds:.0f} s is over") from None
        response = self._pool.urlopen(
            method,
            url,
            redirect=False,
            retries=False,
            timeout=Timeout(connect=min(CONNECT_TIMEOUT_S, wait_s), read=wait_s),
            **more,
        )
        if response.status >= 300:
            return response
        if more.get("preload_content", True):
            check_answer(method, url, more.get("body") or b"", response)
            call.seconds += len(response.data) / SLOWEST_RATE  # a listing's pages
        elif call.reader is not None:
            num_bytes = int(response.headers.get("Content-Length") or 0)
            call.allow(num_bytes)
            limit.end = call.limit(num_bytes).end
            call.reader(response)
        return response

    @staticmethod
    def _says(response: BaseHTTPResponse, more: dict[str, Any], codes: tuple[bytes, ...]) -> bool:
        whole = more.get("preload_content", True) and response.status >= 400
        return whole and any(code in response.data for code in codes)
