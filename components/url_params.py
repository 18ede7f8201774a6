"""Parameters of pictures that are fetched from lists of web addresses."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from components.fields import at_least, local, require, within


@dataclass(frozen=True, kw_only=True)
class UrlParams:
    """What is read of the lists and how politely it is fetched.

    url_column, caption_column: empty takes the usual ones (url; caption, text, alt). carry: further columns to keep
    with each picture; uid, nsfw, punsafe, license and sha256 are kept where a list has them, and a sha256 is checked.
    dedup: leave out pictures whose bytes were there before. robots: respect robots.txt and the noai directives of
    X-Robots-Tag, under the name user_agent. concurrency: requests at a time, per_host of them
    to one host; timeout_s: of one try, connection to last byte; retries: further tries where one may help.
    allow_networks: addresses that may be connected to though they are not public, as in 10.1.0.0/16; for a mirror of
    one's own.
    """

    url_column: str = ""
    caption_column: str = ""
    carry: tuple[str, ...] = ()
    dedup: bool = True
    robots: bool = True
    user_agent: str = "splatclip/0.1"
    concurrency: int = local(128)
    per_host: int = local(8)
    timeout_s: float = local(30.0)
    retries: int = local(2)
    allow_networks: tuple[str, ...] = local(())

    def __post_init__(self) -> None:
        at_least("download.urls", self, 1, "per_host")
        within("download.urls", self, 1, 4096, "concurrency")
        within("download.urls", self, 0, 10, "retries")
        within("download.urls", self, 0.1, 3600, "timeout_s")
        require(
            bool(re.fullmatch(r"[A-Za-z][\w-]*(/[\w.-]+)?( .{1,200})?", self.user_agent, re.ASCII)),
            f"download.urls.user_agent is {self.user_agent!r}; write a name, perhaps its version, then a remark: "
            "splatclip/0.1 (+https://example.org/bot)",
        )
        for text in self.allow_networks:
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                require(False, f"download.urls.allow_networks: {error}; write networks as in 10.1.0.0/16")

    @property
    def agent(self) -> str:
        """The name that robots.txt may call this downloader by."""
        return self.user_agent.partition("/")[0].partition(" ")[0]
