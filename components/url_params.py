"""Parameters of pictures that are fetched from lists of web addresses."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from components.fields import at_least, later, local, one_of, require, within

ENGINES = ("builtin", "img2dataset")


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
    max_nsfw: rows above are left out before anything is fetched; 1: none are. nsfw_column: a probability, or LAION's
    words UNLIKELY (0), UNSURE (0.5) and NSFW (1); empty takes the usual ones (punsafe, nsfw). min_similarity: of
    picture and text, rows below are left out; -1: none are. similarity_column: empty takes DataComp's and LAION's
    (clip_l14_similarity_score, clip_b32_similarity_score, similarity). A row that has no value is left out as well.
    engine: `builtin`, or `img2dataset`, which must be installed beside this (docs/sources.md says what it leaves out).
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
    max_nsfw: float = later(1.0)
    nsfw_column: str = later("")
    min_similarity: float = later(-1.0)
    similarity_column: str = later("")
    engine: str = later("builtin")

    def __post_init__(self) -> None:
        at_least("download.urls", self, 1, "per_host")
        within("download.urls", self, 1, 4096, "concurrency")
        within("download.urls", self, 0, 10, "retries")
        within("download.urls", self, 0.1, 3600, "timeout_s")
        within("download.urls", self, 0, 1, "max_nsfw")
        within("download.urls", self, -1, 1, "min_similarity")
        one_of("download.urls.engine", self.engine, ENGINES)
        for column, limit, off in (("nsfw_column", "max_nsfw", 1.0), ("similarity_column", "min_similarity", -1.0)):
            require(
                not getattr(self, column) or getattr(self, limit) != off,
                f"download.urls.{column} is {getattr(self, column)!r}, but {limit} is {off:g}, which leaves out "
                f"nothing; give {limit} as well, or name the column in carry to keep it with each picture",
            )
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
