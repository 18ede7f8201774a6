"""Lists of addresses and what web servers say: tables, addresses, redirects, Retry-After, robots.txt, X-Robots-Tag."""

from __future__ import annotations

import math
from urllib.parse import urlsplit

from components.download.addresses import blocked
from components.download.fetch import expand
from components.download.request import MAX_URL, check_url, forbids, host_of, redirected, retry_after
from components.download.robots import rules_of
from components.download.url_table import read_table
from components.url_params import UrlParams
from fuzz.checks import WHERE, hold, read, written
from fuzz.targets import by_first_byte

MAX_LEN = 4096
BASE = "http://a.example/b/c.png?d"
PARAMS = UrlParams()


def _table(suffix: str, data: bytes) -> None:
    path = written(f"list{suffix}", data)
    found = read(read_table, path, f"list{suffix}", PARAMS, f"{WHERE}{suffix}")
    if found is not None:
        hold("url" in found.column_names, f"no addresses in {found.column_names}")
        for name in found.column_names:
            hold(all(isinstance(value, str) for value in found[name].to_pylist()), f"column {name!r} holds no text")


def address(data: bytes) -> None:
    """An address in a list, or as a resolver gives it."""
    text = data.decode("utf-8", "surrogateescape")
    host_of(text)
    blocked(text)
    read(expand, text, named=None)
    try:
        ok = read(lambda: (check_url(text), True)[1], named="bad_url")
    except UnicodeError as error:
        raise AssertionError(error) from error
    if ok:
        parts = urlsplit(text)
        hold(parts.scheme in {"http", "https"} and bool(parts.hostname), f"{text!r} is let through")
        hold(parts.username is None and parts.password is None, f"{text!r} holds a password")


def location(data: bytes) -> None:
    """A redirect's Location."""
    to = read(redirected, BASE, data.decode("latin-1"), named="bad_url")
    if to is not None:
        hold(len(to) <= MAX_URL and urlsplit(to).scheme in {"http", "https"}, f"leads to {to!r}")
        check_url(to)


def headers(data: bytes) -> None:
    """Retry-After and X-Robots-Tag."""
    text = data.decode("latin-1")
    wait = retry_after(text)
    hold(math.isfinite(wait) and wait >= 0, f"waits {wait} s")
    hold(isinstance(forbids({"X-Robots-Tag": text}, "splatclip"), str), "no directive")


def robots(data: bytes) -> None:
    """robots.txt: whatever it holds, it allows an address or does not."""
    rules = rules_of(data.decode("utf-8-sig", "replace"))
    for url in (BASE, "https://a.example/", "http://a.example/%5B/%00?#"):
        hold(rules.can_fetch("splatclip", url) in {True, False}, "neither allowed nor not")


def run(data: bytes) -> None:
    """By its first byte one of them."""
    kinds = {b"A": address, b"L": location, b"H": headers, b"R": robots}
    tables = {b"C": ".csv", b"T": ".tsv", b"J": ".jsonl", b"P": ".parquet"}
    by_first_byte(
        data, kinds | {key: lambda rest, suffix=suffix: _table(suffix, rest) for key, suffix in tables.items()}
    )
