"""Requests to the Kubeflow Pipelines API: tried again while that may help and time is left; what fails is said.

Paths, fields and types are those of the API's own Python client (kfp_server_api), which sends everything through
`_Rest`. kfp.Client is not used: it keeps its namespace in a file, prints, and waits without end.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlencode

import certifi
import kfp_server_api
from kfp_server_api import rest
from urllib3 import HTTPHeaderDict, Timeout
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError, SSLError

from components.errors import PermanentError, SplatClipError, TransientError, UsageError
from components.s3_deadline import Limit, LimitedPool, limit_now
from pipelines.api_errors import AlreadyThereError, answered, not_kubeflow, unanswered
from pipelines.connection import Connection

T = TypeVar("T")
DEADLINE_ENV = "SPLATCLIP_KFP_DEADLINE_S"
DEADLINE_S = 120.0  # of one call with all its tries
CONNECT_S = 10.0
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 10.0  # doubled from one to the next; at least half of it, the rest is random
RETRIES_UNREACHABLE = 3  # where nobody listens, or nobody knows the name: mostly a wrong address
RETRIED = {429, 500, 502, 503, 504}
UNTOUCHED = {429}  # the server has not begun with the request
PAGE = 100


def deadline_s() -> float:
    """Seconds that a call may take; UsageError if the variable is no number."""
    text = os.environ.get(DEADLINE_ENV, "")
    with suppress(ValueError):
        if not text:
            return DEADLINE_S
        if 0 < float(text) < 1e7:
            return float(text)
    raise UsageError(f"{DEADLINE_ENV}={text!r}: give a number of seconds above 0 (default: {DEADLINE_S:g})")


class _Failed(Exception):
    """An attempt that another one may mend. untouched: the server surely has not done what was asked."""

    def __init__(self, error: SplatClipError, *, untouched: bool, wait_s: float = 0.0, few: bool = False) -> None:
        super().__init__(str(error))
        self.error, self.untouched, self.wait_s, self.few = error, untouched, wait_s, few


class _Rest(rest.RESTClientObject):  # type: ignore[misc]
    """How the generated client sends a request: once, within a time, without following redirections."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pool_manager = LimitedPool(
            cert_reqs="CERT_REQUIRED",
            ca_certs=connection.ca_file or certifi.where(),
            cert_file=connection.cert_file or None,
            key_file=connection.key_file or None,
            retries=False,
        )

    def request(  # noqa: PLR0917 - as the generated client calls it
        self,
        method: str,
        url: str,
        query_params: Any = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        post_params: Any = None,
        _preload_content: bool = True,
        _request_timeout: Any = None,
    ) -> rest.RESTResponse:
        """Send it; raises _Failed, or what another try would not mend."""
        del _preload_content, _request_timeout
        if query_params:
            url += "?" + urlencode(query_params)
        sent = HTTPHeaderDict(headers or {})
        if self.connection.secret():
            sent["authorization"] = f"Bearer {self.connection.secret()}"
        if self.connection.cookie:
            sent["Cookie"] = self.connection.cookie
        more: dict[str, Any] = {}
        if post_params:
            sent.discard("Content-Type")  # the one with the boundary takes its place
            more = {"fields": post_params, "encode_multipart": True}
        elif body is not None:
            more = {"body": json.dumps(body).encode()}
        try:
            limit = limit_now.get()
            wait_s = limit.wait_s() if limit else CONNECT_S
            answer = self.pool_manager.request(
                method,
                url,
                headers=sent,
                timeout=Timeout(connect=min(CONNECT_S, wait_s), read=wait_s),
                redirect=False,
                **more,
            )
        except (HTTPError, TimeoutError) as error:
            lost = isinstance(error, (NewConnectionError, NameResolutionError))
            found = unanswered(self.connection, error)
            if isinstance(found, PermanentError) or isinstance(error, SSLError):
                raise found from None
            raise _Failed(found, untouched=lost or isinstance(error, ConnectTimeoutError), few=lost) from None
        return self._checked(answer)

    def _checked(self, answer: Any) -> rest.RESTResponse:
        status, kind = answer.status, answer.headers.get("Content-Type", "")
        if 200 <= status < 300:
            if answer.data and "json" not in kind:
                raise not_kubeflow(self.connection, status, answer.data)
            return rest.RESTResponse(answer)
        found = answered(self.connection, status, answer.data, answer.headers.get("Location", ""))
        if status in RETRIED:
            after = answer.headers.get("Retry-After", "")
            wait = min(float(after), 60.0) if after.isdecimal() else 0.0
            raise _Failed(found, untouched=status in UNTOUCHED, wait_s=wait)
        raise found


class _Client(kfp_server_api.ApiClient):  # type: ignore[misc]
    def deserialize(self, response: Any, response_type: str) -> Any:
        """The model that an answer holds; PermanentError for what is none."""
        host = self.configuration.host
        try:
            if not isinstance(json.loads(response.data), dict):
                raise ValueError("no JSON object")
            return super().deserialize(response, response_type)
        except (ValueError, TypeError, AttributeError, kfp_server_api.ApiException) as error:
            what = getattr(error, "reason", None) or str(error)
            raise PermanentError(
                f"{host}: an answer that is not the API's ({what[:120]}); it may be too old or too new for this client"
            ) from None


class Api:
    """The services of one API. Every method of theirs is called through `call`, `create` or `pages`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        settings = kfp_server_api.Configuration(host=connection.host)
        settings.ssl_ca_cert = connection.ca_file or None
        client = _Client(settings)
        client.rest_client = _Rest(connection)
        client.user_agent = "splatclip"
        self.experiments = kfp_server_api.ExperimentServiceApi(client)
        self.pipelines = kfp_server_api.PipelineServiceApi(client)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(client)
        self.runs = kfp_server_api.RunServiceApi(client)
        self.schedules = kfp_server_api.RecurringRunServiceApi(client)

    def call(self, method: Callable[..., T], *args: Any, **more: Any) -> T:
        """One call that may be sent twice without harm.

        Raises PermanentError for what the server refuses, TransientError when the time is over, as api_errors says.
        """
        return self._tried(lambda: method(*args, **_given(more)))

    def create(self, method: Callable[..., T], *args: Any, find: Callable[[], T | None], **more: Any) -> T:
        """One call that makes something. find: looks for it, where an answer was lost that may have been a yes."""
        unsure = False

        def attempt() -> T:
            nonlocal unsure
            if unsure:
                there = find()
                if there is not None:
                    return there
            try:
                return method(*args, **_given(more))
            except _Failed as error:
                unsure = unsure or not error.untouched
                raise
            except AlreadyThereError:
                there = find() if unsure else None
                if there is None:
                    raise
                return there

        return self._tried(attempt)

    def _tried(self, attempt: Callable[[], T]) -> T:
        whole_s = deadline_s()
        end = time.monotonic() + whole_s
        tries, few = 0, 0
        while True:
            # a quarter of the time for one try, so that another one fits
            limit = limit_now.set(Limit(min(end, time.monotonic() + whole_s / 4), whole_s / 4))
            try:
                return attempt()
            except _Failed as failed:
                tries, few = tries + 1, few + failed.few
                backoff = min(LONGEST_BACKOFF_S, BACKOFF_S * 2 ** (tries - 1))
                wait = max(failed.wait_s, backoff * random.uniform(0.5, 1))
                if few > RETRIES_UNREACHABLE or time.monotonic() + wait >= end:
                    raise type(failed.error)(f"{failed.error} (tried {tries} times)") from None
            finally:
                limit_now.reset(limit)
            time.sleep(wait)

    def pages(self, method: Callable[..., Any], items: str, *args: Any, size: int = PAGE, **more: Any) -> Iterator[Any]:
        """All items of a list, page by page; the next page is asked for when it is needed."""
        token, seen = "", set[str]()
        while True:
            page = self.call(method, *args, page_size=size, page_token=token or None, **more)
            yield from getattr(page, items) or []
            token = page.next_page_token or ""
            if not token:
                return
            if token in seen:
                raise TransientError(f"{self.connection.host}: the list of {items} comes round again; try again")
            seen.add(token)


def _given(more: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in more.items() if value is not None}


def equals(**fields: str) -> str:
    """A filter of a list: these fields have these values."""
    predicates = [{"operation": "EQUALS", "key": key, "string_value": value} for key, value in fields.items()]
    return json.dumps({"predicates": predicates})
