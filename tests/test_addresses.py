"""Which addresses a downloader connects to, and that nothing else is reached."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from faults import Row
from web import web_server

from components.download.addresses import blocked, networks
from components.download.http import Fetcher, Job
from components.images import ImageError
from components.url_params import UrlParams

_BLOCKED = """127.0.0.1 127.1.2.3 0.0.0.0 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1
100.127.255.255 192.0.0.1 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255 192.88.99.1 168.63.129.16 :: ::1 fe80::1 fe80::1%eth0 fc00::1 fd12:3456::1 ff02::1 ::ffff:127.0.0.1
::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b:1::1 2002:7f00:1:: 2001::1 2001:db8::1 ::7f00:1
100::1 fec0::1 3fff::1 not-an-address"""


@pytest.mark.parametrize("address", _BLOCKED.split())
def test_ranges_that_are_not_public_are_blocked(address: str) -> None:
    assert blocked(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "172.32.0.1"])
def test_public_addresses_are_not(address: str) -> None:
    assert not blocked(address)


def test_allowed_networks_open_only_themselves() -> None:
    allowed = networks(["127.0.0.1/32", "fd00::/8"])
    assert not blocked("127.0.0.1", allowed)
    assert not blocked("::ffff:127.0.0.1", allowed)
    assert not blocked("fd00::5", allowed)
    assert blocked("127.0.0.2", allowed)
    assert blocked("::1", allowed)


FORMS = """http://127.0.0.1:{port}/ http://localhost:{port}/ http://0x7f.1:{port}/ http://0177.0.0.1:{port}/
http://2130706433:{port}/ http://127.1:{port}/ http://0x7f000001:{port}/ http://0:{port}/ http://0.0.0.0:{port}/
http://[::ffff:127.0.0.1]:{port}/ http://[::ffff:7f00:1]:{port}/ http://[::1]:{port}/ http://[::]:{port}/
http://LOCALHOST:{port}/ http://127.0.0.1.:{port}/ http://%31%32%37.0.0.1:{port}/ http://127%2e0%2e0%2e1:{port}/
http://a@127.0.0.1:{port}/ http://a:b@127.0.0.1:{port}/ http://127.0.0.1:{port}@example.org/
http://example.org@127.0.0.1:{port}/ http://127.0.0.1:{port}#@example.org/ http://127.0.0.1:{port}\\@example.org/
http://\u2460\u2461\u2466.0.0.1:{port}/ http://127.0.0.1\u3002:{port}/ http://0x7f.0x0.0x0.0x1:{port}/
http://127.0.1:{port}/ http://00000127.0.0.1:{port}/ http://[fe80::1%25lo]:{port}/ http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/
file:///etc/passwd gopher://127.0.0.1:{port}/ dict://127.0.0.1:{port}/ //127.0.0.1:{port}/ http:///127.0.0.1:{port}/
http:127.0.0.1:{port} HTTP://127.0.0.1:{port}/ http://127.0.0.1:{port}/%0d%0aHost:x http://lo\tcalhost:{port}/
http://[::ffff:0:127.0.0.1]:{port}/ http://[64:ff9b::7f00:1]:{port}/ http://017700000001:{port}/
http://100.64.0.1:{port}/ http://100.127.255.254:{port}/ http://169.254.0.1:{port}/ http://169.254.169.254/
http://[::ffff:169.254.169.254]/ http://[::ffff:100.64.0.1]:{port}/""".replace("\n", " ").split(" ")


@pytest.mark.faults
def test_no_form_of_an_address_reaches_the_inside(fault_row: Row) -> None:
    """Forty spellings of this machine, against a server on it: not one connection arrives. And its neighbours, by the
    ranges of carriers and of links, where clouds answer with a machine's own keys.
    """
    with web_server({"1": b"x"}) as web:
        port = web.url.rpartition(":")[2]
        urls = [form.format(port=port) for form in FORMS]
        assert len(urls) >= 40
        with Fetcher(UrlParams(retries=0, timeout_s=5.0), max_bytes=1 << 20) as fetcher:
            found = [result for result in fetcher.fetch(Job(url, url) for url in urls) if result is not None]
        assert {job.url for job, _ in found} == set(urls)
        reasons = {job.url: outcome.reason for job, outcome in found if isinstance(outcome, ImageError)}
        assert {reasons.get(url) for url in urls} == {"blocked_address", "bad_url", "no_such_host"}
        assert reasons[f"http://localhost:{port}/"] == reasons[f"http://127.0.0.1:{port}/"] == "blocked_address"
        assert {reasons[url] for url in urls if "100." in url or "169.254" in url} == {"blocked_address"}
        assert not web.requests
    fault_row("URLs", "spellings", len(urls), None, "no connection arrived")


@pytest.mark.faults
def test_a_redirect_reaches_the_inside_no_more_than_an_address() -> None:
    """From a server that may be asked."""
    with web_server({"1": b"x"}) as web:
        port = web.url.rpartition(":")[2]
        inner = ["100.64.0.1", "169.254.169.254/latest", f"127.0.0.2:{port}/ok/1", f"[::ffff:127.0.0.2]:{port}/ok/1"]
        urls = [f"{web.url}/out/{place}" for place in [*inner, f"127.0.0.1:{port}/ok/1"]]
        params = UrlParams(retries=0, timeout_s=5.0, allow_networks=("127.0.0.1/32",))
        with Fetcher(params, max_bytes=1 << 20) as fetcher:
            found = [result for result in fetcher.fetch(Job(url, url) for url in urls) if result is not None]
        reasons = {job.url: outcome.reason if isinstance(outcome, ImageError) else "ok" for job, outcome in found}
        assert [reasons[url] for url in urls] == ["blocked_address"] * len(inner) + ["ok"]
        assert web.requests["/ok/1"] == 1
        assert sum(web.requests[f"/out/{place}"] for place in inner) == len(inner)


@pytest.mark.faults
def test_a_name_that_is_rebound_is_resolved_once_and_checked_as_it_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, fault_row: Row
) -> None:
    """A name server that answers with an allowed address first, and with an inner one to whoever asks again."""
    real, asked = socket.getaddrinfo, []

    def rebinding(host: str | None, *more: Any, **options: Any) -> Any:
        if host == "rebinding.test":
            asked.append(host)
            host = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return real(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    params = UrlParams(retries=0, timeout_s=5.0, allow_networks=("127.0.0.1/32",), concurrency=1, per_host=1)
    with web_server({"1": b"x", "2": b"y"}) as web:
        port = web.url.rpartition(":")[2]
        urls = [f"http://rebinding.test:{port}/{path}" for path in ("ok/1", "ok/2")]

        def fetched() -> list[str]:
            with Fetcher(params, max_bytes=1 << 20) as fetcher:
                found = [result for result in fetcher.fetch(Job(url, url) for url in urls) if result is not None]
            return [outcome.reason if isinstance(outcome, ImageError) else "ok" for _, outcome in found]

        assert (fetched(), len(asked)) == (["ok", "ok"], 1)
        before = dict(web.requests)
        assert fetched() == ["blocked_address", "blocked_address"]
        assert web.requests == before
    fault_row("URLs", "rebound names", 1, None, "resolved once; checked as it is connected to")
