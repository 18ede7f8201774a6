"""Names of hosts, resolved; and whose fault it is when one is not."""

from __future__ import annotations

import socket
import time

from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver


class HostUnanswered(socket.gaierror):
    """A name server answers here, but not for this host: its own ones are broken."""


class Names(ThreadedResolver):
    """The system's resolver. It says "try again" (EAI_AGAIN) both where no name server answers and where one answers
    that a host's own ones fail (SERVFAIL); the second it is where another name was answered meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answered = 0.0  # when, by time.monotonic

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
            elif self._answered > began:
                raise HostUnanswered(error.errno, "its name servers do not answer") from None
            raise
        self._answered = time.monotonic()
        return found
