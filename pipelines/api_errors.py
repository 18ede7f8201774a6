"""What went wrong with a request to the Kubeflow Pipelines API, by what to do about it."""

from __future__ import annotations

import errno
import json
import socket
import ssl
from contextlib import suppress
from typing import Any

from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, ProtocolError, SSLError

from components.errors import PermanentError, SplatClipError, TransientError
from pipelines.connection import CA_FILE, COOKIE, HOST, TOKEN, TOKEN_FILE, Connection

LONGEST = 300  # characters of a server's own words


class AlreadyThereError(PermanentError):
    """The server has one of that name."""


class NotThereError(PermanentError):
    """The server has none of that name."""


def not_kubeflow(connection: Connection, status: int, body: bytes) -> PermanentError:
    """For an answer in another language than the API's."""
    text = body[:400].decode("utf-8", "replace").strip().lower()
    if "<html" in text or text.startswith("<!doctype"):
        what = "a web page, perhaps one to log in on"
        remedy = f"give the API's own address in {connection.said}, and a token ({TOKEN}) or a session ({COOKIE})"
    else:
        what, remedy = f"HTTP {status} without the API's JSON", f"check {connection.said}"
    return PermanentError(f"{connection.host}: no Kubeflow Pipelines API there: it answers with {what}; {remedy}")


def _words(body: bytes) -> str | None:
    """What the server says: google.rpc.Status of the API, or the two fields of its uploads; None if it is neither."""
    with suppress(ValueError, AttributeError):
        said = json.loads(body)
        # the outermost message names all that went wrong on the way, the innermost last
        text = said.get("message") or said.get("error_message") or said.get("error_details") or said.get("error")
        return " ".join(str(text).split())[:LONGEST] if text else None
    return None


def answered(connection: Connection, status: int, body: bytes, location: str) -> SplatClipError:
    """The error for an answer that is no success."""
    words = _words(body)
    said = connection.hidden(words or "")
    host = connection.host
    tail = f": {said}" if said else ""
    if 300 <= status < 400:
        return PermanentError(
            f"{host}: sends on to {connection.hidden(location) or 'elsewhere'} (HTTP {status}), perhaps to log in; "
            f"give a token ({TOKEN}) or a session ({COOKIE}), and check {connection.said}"
        )
    if status == 401:
        have = "does not accept the token" if connection.secret() or connection.cookie else "wants a token"
        return PermanentError(
            f"{host}: {have} (HTTP 401){tail}; put a valid one into {TOKEN}, or its file's name into {TOKEN_FILE[0]}"
        )
    if status == 403:
        where = f"namespace {connection.namespace!r}" if connection.namespace else "your namespace (--namespace)"
        return PermanentError(
            f"{host}: not allowed (HTTP 403){tail}; ask for a role that may do this in {where}, or use another token"
        )
    if status == 404 and words is not None:
        return NotThereError(f"{host}: not there (HTTP 404){tail}")
    if status == 409:
        return AlreadyThereError(f"{host}: there already (HTTP 409){tail}")
    if status == 413:
        return PermanentError(f"{host}: too large for the server (HTTP 413){tail}")
    if status >= 500 or status == 429:
        return TransientError(f"{host}: the API cannot answer now (HTTP {status}){tail}; try again later")
    if words is None:
        return not_kubeflow(connection, status, body)
    return PermanentError(f"{host}: the API refuses (HTTP {status}){tail}")


def unanswered(connection: Connection, error: Exception) -> SplatClipError:
    """The error for a request without an answer, or without a whole one."""
    host, said = connection.host, connection.said
    below = [arg for arg in error.args if isinstance(arg, Exception)]
    cause: Any = below[0] if below else error.__cause__
    if isinstance(error, SSLError):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return PermanentError(
                f"{host}: its certificate is not trusted ({cause.verify_message}); name the file with its authority "
                f"in --ca-file or {CA_FILE}, or correct {said}"
            )
        if "WRONG_VERSION_NUMBER" in str(cause):
            return PermanentError(f"{host}: speaks http, not https; write http:// in {said}")
        return TransientError(f"{host}: no TLS with it ({cause}); check {said}, or try again")
    if isinstance(error, NameResolutionError):
        unknown = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
        kind = PermanentError if unknown else TransientError
        what = "does not exist" if unknown else "cannot be looked up now"
        return kind(f"{host}: the host's name {what}; check {said} ({HOST[0]}) and DNS")
    if isinstance(error, NewConnectionError):
        refused = isinstance(cause, ConnectionRefusedError) or getattr(cause, "errno", 0) == errno.ECONNREFUSED
        what = "nothing listens there (connection refused)" if refused else f"no way there ({cause})"
        return TransientError(f"{host}: {what}; check {said}, and that the API or its port-forward runs")
    if isinstance(error, TimeoutError) or isinstance(cause, TimeoutError) or "timed out" in str(error).lower():
        return TransientError(f"{host}: no answer in time; try again later")
    if isinstance(error, ProtocolError) and "\\x15\\x03" in repr(cause):  # a TLS alert, read as if it were HTTP
        return PermanentError(f"{host}: speaks https; write https:// in {said}")
    what = type(cause or error).__name__ if isinstance(error, HTTPError) else str(error)
    return TransientError(f"{host}: no whole answer ({what}); try again, and check {said}")
