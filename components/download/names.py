"""Names of hosts, resolved; and whose fault it is when one is not."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time

from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver

ASK_AGAIN_S = 3.0


class HostUnanswered(socket.gaierror):
    """A name server answers here, but not for this host: its own ones are broken."""


class Names(ThreadedResolver):
    """The system's resolver. It says "try again" (EAI_AGAIN) both where no name server answers and where one answers
    that a host's own ones fail (SERVFAIL); the second it is where another name was answered meanwhile, which a cache on
    this machine may have done (docs/urls.md, Outages), or where a name below one that was is answered now.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answered = 0.0  # when, by time.monotonic
        self._known = ""  # the last name that has an address
        self._asking: asyncio.Future[bool] | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a host. Raises HostUnanswered, or socket.gaierror as the system's resolver has it."""
        began = time.monotonic()
        try:
            found = await super().resolve(host, port, family)
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN:
                self._answered = time.monotonic()
            elif self._answered > began or await self._others_are_answered():
                raise HostUnanswered(error.errno, "its name servers do not answer") from None
            raise
        self._answered, self._known = time.monotonic(), host
        return found

    async def _others_are_answered(self) -> bool:
        if not self._known:
            return False
        if self._asking is None or self._asking.done():
            fresh = f"{secrets.token_hex(4)}.{self._known}"  # no cache has it: that there is none, is an answer
            self._asking = asyncio.ensure_future(self._ask(fresh))
        asking = self._asking  # one at a time, for all who want to know
        await asyncio.wait({asking}, timeout=ASK_AGAIN_S)
        return asking.done() and asking.result()

    async def _ask(self, host: str) -> bool:
        try:
            await super().resolve(host, 0, socket.AF_UNSPEC)
        except socket.gaierror as error:
            return error.errno != socket.EAI_AGAIN
        except OSError:
            return False
        return True
