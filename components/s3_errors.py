"""What a failure of the S3 client means: one line that says what is wrong, where, and what to do about it."""

from __future__ import annotations

import errno
import re
import socket
import ssl
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from minio.error import InvalidResponseError, S3Error, ServerError
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from components.errors import AccessError, PermanentError, SplatClipError, TransientError
from components.s3_checks import DamagedError, NotS3Error
from components.s3_deadline import DEADLINE_ENV

CLOCK_TOLERANCE_S = 300.0  # a difference worth saying; AWS refuses from 900 s on
PASSING = {408, 429}  # statuses below 500 that another try may not meet
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem"}
_TRANSIENT = {
    "BadDigest",
    "InternalError",
    "NoSuchUpload",  # somebody removed it, or its name was damaged on the way: the next run makes another
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
    "XMinioServerNotInitialized",
}
_BAD_KEYS = {
    "ExpiredToken": "the session token has expired; get a new one (AWS_SESSION_TOKEN, with its keys)",
    "TokenRefreshRequired": "the session token has expired; get a new one (AWS_SESSION_TOKEN, with its keys)",
    "InvalidAccessKeyId": "it does not know the access key id; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "InvalidToken": "the session token is none of this service; check AWS_SESSION_TOKEN, or unset it",
    "SignatureDoesNotMatch": "the secret is not that of this access key id; check AWS_SECRET_ACCESS_KEY",
}


def clock_difference_s(date: str | None) -> float | None:
    """Seconds by which the clock here is ahead of the service's, by an answer's Date header; None if there is none."""
    try:
        there = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return time.time() - there.replace(tzinfo=there.tzinfo or UTC).timestamp()


def clock_text(difference_s: float) -> str:
    """Such as: this machine's clock is 25 min behind the service's."""
    size = abs(difference_s)
    amount = f"{size:.0f} s" if size < 120 else f"{size / 60:.0f} min" if size < 7200 else f"{size / 3600:.1f} h"
    return f"this machine's clock is {amount} {'ahead of' if difference_s > 0 else 'behind'} the service's"


def s3_error(url: str, error: Exception, source: str = "", effort: str = "") -> SplatClipError:
    """The error to raise for `error` of the client, without any credential in it.

    `source` says where the credentials came from, `effort` what was tried.
    """
    if isinstance(error, S3Error):
        found = _answered(url, error, source)
    elif isinstance(error, ServerError):
        found = _by_status(url, error.status_code, "")
    elif isinstance(error, InvalidResponseError):
        found = _by_status(url, int(getattr(error, "_code", 0) or 0), str(getattr(error, "_body", "") or ""))
    elif isinstance(error, NotS3Error):
        found = _no_s3(url, str(error))
    elif isinstance(error, DamagedError):
        found = TransientError(f"{url}: every answer came damaged: {error}; try again, or check what lies in between")
    elif isinstance(error, HTTPError):
        found = _unanswered(url, error)
    elif isinstance(error, OSError):
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        remedy = "free some space, or set TMPDIR to where there is some" if full else "check the files on this machine"
        found = TransientError(f"{url}: {error.strerror or error}; {remedy}")
    else:  # the client could not make sense of what it was sent
        found = _no_s3(url, f"{type(error).__name__}: {str(error)[:100]}")
    if effort and isinstance(found, TransientError):
        return TransientError(f"{found} ({effort})")
    return found


def _no_s3(url: str, what: str) -> AccessError:
    return AccessError(f"{url}: the endpoint's answer ({what}) is not S3's; check AWS_ENDPOINT_URL")


def _by_status(url: str, status: int, body: str) -> SplatClipError:
    if "https server" in body.lower() or "https port" in body.lower():
        return AccessError(f"{url}: the endpoint speaks https; write https:// in AWS_ENDPOINT_URL")
    if status >= 500 or status in PASSING:
        return TransientError(f"{url}: the S3 service failed (HTTP {status}); try again later")
    return _no_s3(url, f"HTTP {status}")


def _other_region(error: S3Error) -> str:
    """The region that the service says the bucket is in."""
    header = str(error.response.headers.get("x-amz-bucket-region") or "")
    data = bytes(getattr(error.response, "data", b"") or b"").decode(errors="replace")
    match = re.search(r"<Region>([\w-]+)</Region>", data) or re.search(r"expecting '([\w-]+)'", data)
    return header or (match[1] if match else "")


def _answered(url: str, error: S3Error, source: str) -> SplatClipError:
    """What the service itself says."""
    code, status = error.code or "unknown", getattr(error.response, "status", 0)
    whose = f" (credentials from {source})" if source else ""
    if code == "NoSuchBucket":
        return AccessError(f"{url}: there is no such bucket; create it, or correct the address")
    difference = clock_difference_s(error.response.headers.get("Date")) if status in {400, 403} else None
    agree = difference is not None and abs(difference) <= CLOCK_TOLERANCE_S
    if code == "RequestTimeTooSkewed" and agree:
        return TransientError(
            f"{url}: the request was too long on its way ({code}), while the clocks agree; try again, and look at what "
            "lies in between"
        )
    if code == "RequestTimeTooSkewed" or (difference is not None and not agree):
        told = "the clocks differ" if difference is None else clock_text(difference)
        return AccessError(f"{url}: the service refuses the request's time ({code}): {told}; set the clock")
    elsewhere = code in {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
    if elsewhere or status == 301 or (status == 400 and _other_region(error)):
        region = _other_region(error)
        remedy = f"set AWS_REGION={region}" if region else "set AWS_REGION to the bucket's region"
        return AccessError(f"{url}: the bucket is in another region ({code}); {remedy}, and check AWS_ENDPOINT_URL")
    if code in _BAD_KEYS:
        return AccessError(f"{url}: the service refuses the credentials ({code}): {_BAD_KEYS[code]}{whose}")
    if code in _DENIED:
        return AccessError(f"{url}: access denied; give this access key the right to list, read and write there{whose}")
    if code in _TRANSIENT or status >= 500 or status in PASSING:
        return TransientError(f"{url}: the S3 service is not able to answer now ({code}); try again later")
    kind = AccessError if status in {401, 403} else PermanentError
    return kind(f"{url}: the S3 service answered {code} (HTTP {status}): {error.message}")


def _cause(error: HTTPError) -> Any:
    """The exception below urllib3's."""
    below = [arg for arg in error.args if isinstance(arg, Exception)]
    return below[0] if below else error.__cause__


def _unanswered(url: str, error: HTTPError) -> SplatClipError:
    """Why there was no answer at all, or no whole one."""
    cause = _cause(error)
    if isinstance(error, SSLError):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return AccessError(
                f"{url}: the endpoint's certificate is not trusted ({cause.verify_message}); name the file with its "
                "authority in AWS_CA_BUNDLE, or correct the host in AWS_ENDPOINT_URL"
            )
        if "WRONG_VERSION_NUMBER" in str(cause):
            return AccessError(f"{url}: the endpoint speaks http, not https; write http:// in AWS_ENDPOINT_URL")
        return TransientError(f"{url}: no TLS with the endpoint ({cause}); check AWS_ENDPOINT_URL or try again")
    if isinstance(error, NameResolutionError):
        unknown = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
        kind = AccessError if unknown else TransientError
        what = "does not exist" if unknown else "cannot be looked up now"
        return kind(f"{url}: no answer from the S3 endpoint: the host's name {what}; check AWS_ENDPOINT_URL and DNS")
    if isinstance(error, NewConnectionError):
        refused = isinstance(cause, ConnectionRefusedError) or getattr(cause, "errno", 0) == errno.ECONNREFUSED
        what = "nothing listens there (connection refused)" if refused else f"no way there ({cause})"
        return TransientError(
            f"{url}: no answer from the S3 endpoint: {what}; check AWS_ENDPOINT_URL, and that the service runs"
        )
    if isinstance(error, (ConnectTimeoutError, ReadTimeoutError)) or isinstance(cause, TimeoutError):
        return TransientError(
            f"{url}: no answer from the S3 endpoint in time; try again, or give it longer ({DEADLINE_ENV})"
        )
    if isinstance(error, ProtocolError) and "\\x15\\x03" in repr(cause):  # a TLS alert, read as if it were HTTP
        return AccessError(f"{url}: the endpoint speaks https; write https:// in AWS_ENDPOINT_URL")
    if isinstance(error, ProtocolError):
        return TransientError(
            f"{url}: no whole answer from the S3 endpoint ({type(cause or error).__name__}); try again, and check "
            "AWS_ENDPOINT_URL (https?)"
        )
    return TransientError(
        f"{url}: no answer from the S3 endpoint ({type(error).__name__}: {error}); check AWS_ENDPOINT_URL or try again"
    )
