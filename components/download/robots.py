"""robots.txt of many hosts, each read once (RFC 9309)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from urllib.parse import unquote, urljoin, urlsplit
from urllib.robotparser import RobotFileParser

import aiohttp

MAX_BYTES = 500 << 10  # RFC 9309: a crawler reads at least that much
MAX_HOSTS = 20_000  # whose rules are kept at a time
MAX_HELD = 128 << 20  # bytes that these take in memory
RULE_BYTES = 150  # that a rule takes beside its text
MAX_REDIRECTS = 5


class RobotsAway(Exception):
    """A host cannot say now what it allows. reason: what that is to be counted as."""

    def __init__(self, detail: str, reason: str = "robots_unavailable") -> None:
        super().__init__(f"robots.txt: {detail}")
        self.reason = reason


def rules_of(text: str) -> RobotFileParser:
    """The rules of a robots.txt; lines that cannot be read count for nothing (RFC 9309, 2.2)."""
    rules = RobotFileParser()
    rules.parse([line for line in text.splitlines() if _readable(line)])
    rules.modified()  # it trusts no rules without a date
    return rules


def _readable(line: str) -> bool:
    """Whether a line matters here and urllib takes it: at others, and at paths such as //[, it fails as a whole."""
    name, _, value = line.partition("#")[0].partition(":")
    name = name.strip().lower()
    if name in {"allow", "disallow"}:
        try:
            urlsplit(unquote(value.strip()))
        except ValueError:
            return False
    return name in {"user-agent", "allow", "disallow"} or not line.strip()


class Robots:
    """Whether an agent may fetch an address.

    4xx: there are no rules, all is allowed. 5xx, an answer that is cut off or none at all: nothing is until it answers
    otherwise (RFC 9309, 2.3.1.3, 2.3.1.4), and it is asked again when the next address comes. A host that cannot be
    connected to is counted by that, as the request for the picture would be. Rules are read as urllib does: the first
    that fits counts, and `*` within a path is no wildcard.
    """

    def __init__(self, http: aiohttp.ClientSession, *, agent: str, timeout_s: float) -> None:
        self._http, self._agent, self._timeout_s = http, agent, min(timeout_s, 10.0)
        self._rules: OrderedDict[str, asyncio.Future[RobotFileParser]] = OrderedDict()
        self._sizes: dict[str, int] = {}  # of those that are read, in bytes
        self._held = 0  # sum of these

    async def allow(self, url: str) -> bool:
        """Whether the host's rules allow `url`.

        Raises RobotsAway where it gives no rules for now, and what aiohttp does where no connection is to be had.
        """
        parts = urlsplit(url)
        base = f"{parts.scheme}://{parts.netloc}"
        found = self._rules.get(base)
        if found is not None and found.done() and found.exception() is not None:
            self._forget(base)  # whoever asked had no time left to wait for it
            found = None
        if found is None:
            found = asyncio.ensure_future(self._keep(base))
            found.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be left to hear it
            self._rules[base] = found
            if len(self._rules) > MAX_HOSTS:
                self._forget(next(iter(self._rules)))
        try:
            rules = await asyncio.shield(found)  # others wait for the same rules when this one's deadline has passed
        except (RobotsAway, aiohttp.ClientError, OSError):
            if self._rules.get(base) is found:
                self._forget(base)
            raise
        return rules.can_fetch(self._agent, url)

    async def _keep(self, base: str) -> RobotFileParser:
        """A host's rules; those that were read first are forgotten where all take more than MAX_HELD."""
        text = await self._read(f"{base}/robots.txt")
        if self._rules.get(base) is asyncio.current_task():  # not forgotten meanwhile
            self._sizes[base] = len(text) + RULE_BYTES * text.count(":")
            self._held += self._sizes[base]
            while self._held > MAX_HELD:
                self._forget(next(iter(self._sizes)))
        return rules_of(text)

    def _forget(self, base: str) -> None:
        del self._rules[base]  # who waits for them still gets them
        self._held -= self._sizes.pop(base, 0)

    async def _read(self, url: str) -> str:
        """A robots.txt, empty where there is none. Raises as `allow` does."""
        here = url
        try:
            async with asyncio.timeout(self._timeout_s):
                for _ in range(MAX_REDIRECTS + 1):
                    async with self._http.get(url, allow_redirects=False) as answer:
                        if answer.status in {301, 302, 303, 307, 308} and answer.headers.get("Location"):
                            url = urljoin(url, answer.headers["Location"])
                            continue
                        if answer.status == 200:
                            return (await self._start_of(answer)).decode("utf-8-sig", "replace")
                        if answer.status >= 500:
                            raise RobotsAway(f"the server answers HTTP {answer.status}")
                        break
        except TimeoutError:
            raise RobotsAway(f"not whole after {self._timeout_s:g} s", "timeout") from None
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:  # before ValueError: TLS's are both
            if url == here:
                raise
            raise RobotsAway(f"it leads where there is no answer ({type(error).__name__})") from None
        except ValueError:  # it leads to no address, and there are no rules
            pass
        except (aiohttp.ClientError, OSError) as error:
            raise RobotsAway(f"cut off, or no HTTP ({type(error).__name__})") from None
        return ""

    @staticmethod
    async def _start_of(answer: aiohttp.ClientResponse) -> bytes:
        text = b""
        async for chunk in answer.content.iter_chunked(1 << 14):
            text += chunk
            if len(text) >= MAX_BYTES:
                break
        return text[:MAX_BYTES]
