"""Why there is no TLS with a host, where trying again would not help."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, SSLError

from components.errors import PermanentError


class NoTlsError(PermanentError):
    """A host's certificate is not trusted, or it does not speak TLS at all."""


class Retries(urllib3.Retry):
    """urllib3's, without further requests where TLS will not come to be; a Retry-After that cannot be read is none."""

    def parse_retry_after(self, retry_after: str) -> float:
        """See urllib3.Retry."""
        try:
            return super().parse_retry_after(retry_after)
        except (InvalidHeader, ValueError, OverflowError):  # thousands of digits; a date before all clocks
            return 0.0

    def increment(
        self, method: str | None = None, url: str | None = None, response: Any = None, error: Exception | None = None,
        _pool: Any = None, _stacktrace: Any = None,
    ) -> Retries:  # fmt: skip
        """See urllib3.Retry."""
        if error is not None and _reason(error):
            raise MaxRetryError(_pool, url or "", error) from error
        return super().increment(method, url, response, error, _pool, _stacktrace)


def _reason(error: BaseException | None) -> str:
    """What is wrong for good; empty where another try may do better."""
    cause = error.args[0] if isinstance(error, SSLError) and error.args else None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate is not trusted ({cause.verify_message})"
    return "no TLS" if "WRONG_VERSION_NUMBER" in str(cause) else ""


def no_tls(error: HTTPError, url: str, setting: str) -> NoTlsError | None:
    """What such an error of a request to `url` means for whoever calls; None where it is about something else.

    setting: what names the address, for the advice. A redirect may have led to another host: the error's own is named.
    """
    pool = error.pool if isinstance(error, MaxRetryError) else None
    reason = _reason(error.reason if isinstance(error, MaxRetryError) else error)
    if not reason:
        return None
    host = urlsplit(url).netloc if pool is None else f"{pool.host}:{pool.port}" if pool.port else pool.host
    if reason == "no TLS":
        return NoTlsError(f"{url}: {host} speaks http, not https; correct {setting}")
    return NoTlsError(
        f"{url}: the {reason}, that of {host}; name a file with its authority in SSL_CERT_FILE, or correct {setting}"
    )
