"""One web address, fetched: redirects followed by hand, addresses checked, retries, limits, robots' rules respected."""

from __future__ import annotations

import asyncio
import errno
import random
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urljoin, urlsplit

import aiohttp

from components.download.addresses import NOT_PUBLIC, checked_socket, networks
from components.download.large import LARGE_BYTES, SLOW_BYTES, Large, LargeBodies
from components.download.names import HostUnanswered, Names
from components.download.robots import Robots, RobotsAway
from components.download.sources import NAME_UNANSWERED, Skip
from components.images import ImageError
from components.url_params import UrlParams

MAX_REDIRECTS = 10  # as urllib, which img2dataset uses
MAX_URL = 8192  # characters
LONGEST_WAIT_S = 30.0  # that a Retry-After is waited for
BACKOFF_S = 0.5
KEEPALIVE_S = 2.0  # a list has many hosts, and each idle connection takes a file descriptor
_OWN = {
    errno.ENETUNREACH: "no_network", errno.ENETDOWN: "no_network", errno.EADDRNOTAVAIL: "no_network",
    errno.EMFILE: "too_many_files", errno.ENFILE: "too_many_files", errno.ENOBUFS: "too_many_files",
}  # fmt: skip
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK = 64 << 10
_NO_AI = {"noai", "noimageai", "noindex", "noimageindex"}  # as img2dataset's disallowed_header_directives
_VALUED = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}  # directives with a colon
PAGE = re.compile(rb"^\s*(<!doctype html|<html|<\?xml[^>]*>\s*<(html|svg)|<svg)", re.IGNORECASE)


@dataclass(frozen=True)
class Fetched:
    """A body, whole. url: where it came from in the end."""

    body: bytes = field(repr=False)
    url: str
    content_type: str = ""


def host_of(url: str) -> str:
    """Host and port, lower case, for counting; empty where the address has none."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or ''}:{parts.port or ''}"
    except ValueError:
        return ""


def check_url(url: str) -> None:
    """ImageError `bad_url` unless this is an http or https address with a host and nothing that could end a header."""
    if not url:
        raise ImageError("bad_url", "the row has no address")
    if len(url) > MAX_URL:
        raise ImageError("bad_url", f"{len(url)} characters; the limit is {MAX_URL}")
    if any(ord(char) < 33 or ord(char) == 127 for char in url):
        raise ImageError("bad_url", f"{url[:100]!r} holds a blank or a control character")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ImageError("bad_url", f"{url[:100]!r}: {error}") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ImageError("bad_url", f"{url[:100]!r}: expected http:// or https:// and a host")
    if parts.username is not None or parts.password is not None:
        raise ImageError("bad_url", f"an address of {host} with a user's name or password in it")


def redirected(url: str, location: str) -> str:
    """Where an answer's Location leads from `url`. ImageError `bad_url` where that is no address."""
    try:
        to = urljoin(url, location)
    except ValueError as error:
        raise ImageError("bad_url", f"a redirect to {location[:100]!r}: {error}") from None
    check_url(to)
    return to


class _Again(Exception):
    """An attempt failed in a way that another may not. wait_s: what the server asks for."""

    def __init__(self, failure: ImageError, wait_s: float = 0.0) -> None:
        super().__init__(str(failure))
        self.failure, self.wait_s = failure, wait_s


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After asks for, as a number or a date; 0 where it says nothing that can be read."""
    if not value:
        return 0.0
    if value.isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def forbids(headers: Mapping[str, str], agent: str) -> str:
    """The X-Robots-Tag directive that keeps this picture from being used, or an empty text.

    A line may begin with the name of a robot; it then counts for that robot alone.
    """
    lines = headers.getall("X-Robots-Tag", []) if hasattr(headers, "getall") else [headers.get("X-Robots-Tag", "")]
    for line in lines:
        name, colon, rest = line.partition(":")
        named = colon and "," not in name and name.strip().lower() not in _VALUED
        if named and name.strip().lower() != agent.lower():
            continue
        for directive in (rest if named else line).split(","):
            if directive.strip().lower() in _NO_AI:
                return directive.strip().lower()
    return ""


class Client:
    """An HTTP client for pictures on the public network. An asynchronous context manager."""

    def __init__(self, params: UrlParams, *, max_bytes: int) -> None:
        self._params, self._max_bytes = params, max_bytes
        self._allowed = networks(params.allow_networks)
        self._large = LargeBodies()
        connector = aiohttp.TCPConnector(
            limit=0,  # whoever calls bounds the number; the rules' requests come on top
            resolver=Names(),
            ttl_dns_cache=300,
            keepalive_timeout=KEEPALIVE_S,
            socket_factory=lambda place: checked_socket(place, self._allowed),
        )
        self._http = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),  # each attempt has a deadline of its own
            headers={"User-Agent": params.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy would connect where this client must not
            auto_decompress=False,
            max_line_size=16384,
            max_field_size=16384,
        )
        self._robots = Robots(self._http, agent=params.agent, timeout_s=params.timeout_s)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def get(self, url: str, *, retries: int) -> Fetched | Skip | ImageError:
        """Fetch an address. Whatever goes wrong with it is the result, by reason; nothing is raised for it."""
        try:
            check_url(url)
            for attempt in range(retries + 1):
                try:
                    return await self._attempt(url)
                except _Again as again:
                    if attempt == retries or again.wait_s > LONGEST_WAIT_S:
                        return again.failure
                    pause = BACKOFF_S * 2**attempt * random.uniform(0.5, 1.5)
                    await asyncio.sleep(max(pause, again.wait_s))
        except (Skip, ImageError) as outcome:
            # its frames hold the body, and by their deadlines this task, whose result it is: only gc would free them
            return outcome.with_traceback(None)
        raise RuntimeError("a request ended without a result")

    async def _attempt(self, url: str) -> Fetched:
        limit = self._params.timeout_s
        try:
            async with asyncio.timeout(limit) as deadline:
                return await self._follow(url, deadline)
        except TimeoutError:
            raise _Again(ImageError("timeout", f"not whole after {limit:g} s")) from None
        except RobotsAway as error:
            raise _Again(ImageError(error.reason, str(error))) from None
        except aiohttp.ClientConnectorDNSError as error:
            if isinstance(error.os_error, HostUnanswered):
                raise _Again(ImageError(NAME_UNANSWERED, f"{error.host}: {error.os_error.strerror}")) from None
            if (own := _OWN.get(error.os_error.errno or 0)) is not None:  # no descriptor was left to look it up with
                raise _Again(ImageError(own, error.os_error.strerror or "")) from None
            if error.os_error.errno == socket.EAI_AGAIN:
                raise _Again(ImageError("no_name_server", f"{error.host}: no name server answers")) from None
            raise ImageError("no_such_host", f"{error.host}: {error.os_error.strerror or 'not resolved'}") from None
        except aiohttp.ClientSSLError as error:
            raise ImageError("tls", str(error)[:200]) from None
        except aiohttp.ClientConnectorError as error:
            if NOT_PUBLIC in str(error.os_error):  # of several addresses the client joins the errors' texts
                raise ImageError("blocked_address", str(error.os_error)[:200]) from None
            reason = _OWN.get(error.os_error.errno or 0, "no_connection")
            raise _Again(ImageError(reason, error.os_error.strerror or str(error.os_error))) from None
        except aiohttp.ClientPayloadError:
            raise _Again(ImageError("truncated", "the connection ended before the whole body had come")) from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, UnicodeError) as error:
            raise ImageError("bad_url", str(error)[:200]) from None
        except aiohttp.ClientResponseError as error:  # what came is no HTTP
            raise _Again(ImageError("bad_answer", (error.message or type(error).__name__)[:200])) from None
        except (aiohttp.ClientError, OSError) as error:
            reason = _OWN.get(getattr(error, "errno", 0) or 0, "no_connection")
            raise _Again(ImageError(reason, type(error).__name__)) from None
        except ValueError as error:  # of header values and addresses that the client cannot take
            raise ImageError("bad_url", str(error)[:200]) from None

    async def _follow(self, url: str, deadline: asyncio.Timeout) -> Fetched:
        seen: list[str] = []
        while True:
            if url in seen:
                raise ImageError("redirects", f"in a circle after {len(seen)}")
            if len(seen) > MAX_REDIRECTS:
                raise ImageError("redirects", f"more than {MAX_REDIRECTS}")
            seen.append(url)
            if self._params.robots and not await self._robots.allow(url):
                raise Skip("robots", "the host's robots.txt keeps it from this agent")
            async with self._http.get(url, allow_redirects=False) as answer:
                if answer.status in _REDIRECTS and answer.headers.get("Location"):
                    url = redirected(url, answer.headers["Location"])
                    continue
                return Fetched(await self._body(answer, deadline), url, answer.content_type)

    async def _body(self, answer: aiohttp.ClientResponse, deadline: asyncio.Timeout) -> bytes:
        if answer.status != 200:
            failure = ImageError(f"http_{answer.status}", f"the server answers HTTP {answer.status}")
            if answer.status in _AGAIN:
                raise _Again(failure, retry_after(answer.headers.get("Retry-After")))
            raise failure
        if self._params.robots and (directive := forbids(answer.headers, self._params.agent)):
            raise Skip("noai", f"X-Robots-Tag: {directive}")
        if answer.headers.get("Content-Encoding", "identity").lower() not in {"", "identity"}:
            encoding = answer.headers["Content-Encoding"][:40]
            raise ImageError("bad_answer", f"Content-Encoding {encoding!r}, which was not asked for")
        length = answer.content_length or 0
        if length > self._max_bytes:
            raise ImageError("too_large", f"{length} bytes; the limit is {self._max_bytes}")
        parts: list[bytes] = []
        size = 0
        large: Large | None = None
        try:
            async with asyncio.timeout(None) as scope:
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    if not size and PAGE.match(chunk[:512]):
                        raise ImageError("not_a_picture", f"a page ({answer.content_type})")
                    parts.append(chunk)
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise ImageError("too_large", f"more than {self._max_bytes} bytes")
                    if large is not None:
                        large.size = size
                    elif size > LARGE_BYTES:
                        large = await self._large.enter(size, deadline, scope)
        except TimeoutError:
            if not scope.expired():
                raise
            slow = f"{size} bytes, then less than {SLOW_BYTES} a second while others waited"
            raise _Again(ImageError("timeout", slow)) from None
        else:
            return b"".join(parts)
        finally:
            parts.clear()  # aiohttp keeps what it raised, and so this frame: only gc would free them
            if large is not None:
                self._large.leave(large)
