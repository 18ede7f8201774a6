"""Telling somebody's webhook, in JSON: three tries, and nothing but words where it fails.

Its address is a secret as a whole (chat services put a token into the path): it comes from the environment alone and
is never logged; only its host is.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from components.operations import NotifyParams
from components.redaction import redacted

VARIABLE = "SPLATCLIP_WEBHOOK_URL"
TRIES = 3
FIRST_WAIT_S = 2.0


def configured() -> bool:
    """Whether there is somebody to tell."""
    return bool(os.environ.get(VARIABLE, "").strip())


def tell(body: Mapping[str, Any], params: NotifyParams) -> bool:
    """POST the body, without secrets in its addresses; whether it was taken. No webhook: False.

    What goes wrong is said on stderr, never raised.
    """
    address = os.environ.get(VARIABLE, "").strip()
    if not address:
        return False
    refusal = _unusable(address, params)
    if refusal:
        _say(refusal)
        return False
    host = urlsplit(address).hostname
    data = json.dumps(redacted(body), ensure_ascii=False, allow_nan=False).encode()
    for attempt in range(1, TRIES + 1):
        problem, again = _post(address, data, params.timeout_s)
        if not problem:
            return True
        if not again or attempt == TRIES:
            _say(f"the webhook at {host} was not told: {problem}")
            return False
        wait = FIRST_WAIT_S * 3 ** (attempt - 1)
        _say(f"the webhook at {host}: {problem}; try {attempt + 1} of {TRIES} in {wait:.0f} s")
        time.sleep(wait)
    return False


def _unusable(address: str, params: NotifyParams) -> str:
    """Why an address is not used; empty: it is."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if not host or parts.scheme not in ("https", "http"):
        return f"{VARIABLE} is no https address; nobody was told"
    if parts.scheme == "http" and not params.allow_http:
        return (
            f"{VARIABLE} is an http address, which everybody on the way could read; nobody was told. Give an https "
            "one, or set notify.allow_http"
        )
    return ""


def _post(address: str, data: bytes, timeout_s: float) -> tuple[str, bool]:
    """One try: what went wrong, empty if nothing, and whether another try may help."""
    import urllib3
    from urllib3.exceptions import HTTPError

    deadline = urllib3.Timeout(total=timeout_s)
    headers = {"Content-Type": "application/json", "User-Agent": "splatclip"}
    try:
        with urllib3.PoolManager(retries=False, timeout=deadline) as pool:
            answer = pool.request(
                "POST", address, body=data, headers=headers, redirect=False, preload_content=False, decode_content=False
            )
            status = answer.status
            answer.close()  # what else it says is of no use, and may take its time
    except (HTTPError, OSError, ValueError) as error:
        return _reason(error), not isinstance(error, ValueError)
    if 200 <= status < 300:
        return "", False
    if 300 <= status < 400:
        return f"it answered {status}: it leads elsewhere, which is not followed", False
    return f"it answered {status}", status >= 500 or status in (408, 425, 429)


def _reason(error: BaseException) -> str:
    """The kind of failure; urllib3's own texts hold the address."""
    cause: BaseException = error
    while isinstance(getattr(cause, "reason", None), BaseException):
        cause = cause.reason  # type: ignore[attr-defined]
    return type(cause).__name__


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
