"""Lists of web addresses: fetched, every row accounted for, stopped and taken up again."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from measured import measured
from url_lists import HERE, PICTURES, outcomes, params, table
from web import web_server

from components.config import DownloadParams, semantic
from components.download import stage
from components.download.request import check_url
from components.errors import Interrupted, UsageError
from components.images import ImageError
from components.manifest import Commit, ShardEntry
from components.params import params_from_dict
from components.store import open_store
from components.url_params import UrlParams

sys.path.insert(0, str(ROOT / "benchmarks"))

from downloading import BAD, ENDLESS, addresses


def test_every_row_is_accounted_for_by_reason(tmp_path: Path) -> None:
    with web_server(PICTURES) as web, socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
        closed.close()
        wanted = {
            "/ok/0": "", "/ok/1": "", "/then-500/2": "", "/then-503/3": "", "/later/4": "", "/to/ok/5": "",
            "/chain/3": "duplicate", "/404/6": "http_404", "/403/6": "http_403", "/500/6": "http_500",
            "/hang/7": "timeout", "/drip/8": "timeout", "/short/9": "truncated", "/page/1": "not_a_picture",
            "/huge/said": "too_large", "/huge/unsaid": "too_large", "/circle/0": "redirects", "/chain/12": "redirects",
            "/noai/0": "noai", "/out/10.0.0.1/": "blocked_address", "/out/[::1]/": "blocked_address",
            "/out/169.254.169.254/latest/meta-data": "blocked_address", "/ok/0?again": "duplicate",
        }  # fmt: skip
        urls = [web.url + path for path in wanted]
        reasons = list(wanted.values())
        for url, reason in (
            (f"http://127.0.0.1:{port}/x", "no_connection"), ("ftp://host/x", "bad_url"), ("", "bad_url"),
            ("http://no-such-host.invalid/x.jpg", "no_such_host"), ("http://user:pw@host/x", "bad_url"),
        ):  # fmt: skip
            urls.append(url)
            reasons.append(reason)
        urls += [f"{web.url}/ok/{number}" for number in range(10, 40)]
        reasons += [""] * 30
        report = stage.run(params(table(tmp_path / "list.csv", urls)), store=str(tmp_path / "store"))
    found = outcomes(report.url)
    assert {row: found[row][1] for row in found} == dict(enumerate(reasons))
    assert {reason for outcome, reason in found.values() if outcome == "skipped"} == {"noai", "duplicate"}
    counts = report.manifest.counts
    assert counts["in"] == len(urls) == counts["ok"] + counts["skipped"] + counts["failed"]
    assert counts["reasons"] == {k: v for k, v in sorted(Counter(reasons).items()) if k}


REASONS = {
    "404": "http_404", "403": "http_403", "410": "http_410", "hang": "timeout", "drip": "timeout", "short": "truncated",
    "page": "not_a_picture", "huge": "too_large", "circle": "redirects", "chain": "redirects", "out": "blocked_address",
}  # fmt: skip


# All that the process holds at its peak, some 120 MiB of it the interpreter and its libraries; 64 requests at a time
# come to 64 MiB, if all of them are as large as they may be.
BOUND = 270 << 20


@pytest.mark.full
def test_two_thousand_addresses_a_quarter_of_them_bad(tmp_path: Path) -> None:
    """The benchmark's list, with the answers that never end: each row by its reason, in bounded time and memory."""
    rows = addresses(2000, len(PICTURES), (*BAD, *ENDLESS))
    with web_server(PICTURES) as web:
        path = table(tmp_path / "list.csv", [web.url + place for place, _ in rows])
        given = params(path, timeout_s=5.0, concurrency=64, per_host=64, dedup=False)
        told = measured(replace(given, shard_size=100), tmp_path / "store")
    assert told["peak"] < BOUND, f"{told['peak'] >> 20} MiB"
    expected = {row: "" if good else REASONS[place.split("/")[1]] for row, (place, good) in enumerate(rows)}
    assert {row: reason for row, (_, reason) in outcomes(told["url"]).items()} == expected
    assert told["counts"]["in"] == 2000
    alone = 10 * sum(
        reason == "timeout" for reason in expected.values()
    )  # seconds, one after the other, two tries each
    assert told["seconds"] < alone / 4, "no more than four at a time"


def test_networks_and_agents_are_checked_early() -> None:
    with pytest.raises(UsageError, match="allow_networks"):
        UrlParams(allow_networks=("10.0.0.0/99",))
    with pytest.raises(UsageError, match="user_agent"):
        UrlParams(user_agent="a\r\nCookie: b")


@pytest.mark.parametrize("url", ["http://a b/", "http://a/\r\nx", "http://", "http://[::1", "x", "http://a:99999/"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ImageError, match="bad_url"):
        check_url(url)


def test_a_signal_is_heard_while_nothing_comes(tmp_path: Path) -> None:
    with web_server(PICTURES) as web:
        urls = [f"{web.url}/ok/{number}" for number in range(20)] + [f"{web.url}/hang/{number}" for number in range(8)]
        path = table(tmp_path / "list.csv", urls)

        def stop() -> None:
            while not list((tmp_path / "store").rglob("_done/*.json")):
                time.sleep(0.05)
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGTERM)

        sender = threading.Thread(target=stop, daemon=True)
        sender.start()
        with pytest.raises(Interrupted, match="1 of 4 shards are kept"):
            stage.run(params(path, timeout_s=60.0), store=str(tmp_path / "store"))
        sender.join()
    assert not [thread for thread in threading.enumerate() if thread.name == "splatclip-fetch"]


def test_shards_that_were_written_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where another worker commits, right after this one has looked, the one that it is about to fetch."""
    look = Commit.done

    def done(commit: Commit) -> dict[int, ShardEntry]:
        found = look(commit)
        place.put_bytes(gone, entry)
        return found

    with web_server(PICTURES) as web:
        path = table(tmp_path / "list.csv", [f"{web.url}/ok/{number % 36}" for number in range(40)])
        whole = stage.run(params(path), store=str(tmp_path / "whole"))
        first = stage.run(params(path), store=str(tmp_path / "again"))
        assert whole.manifest_sha256 == first.manifest_sha256
        assert whole.manifest.counts["reasons"] == {"duplicate": 4}
        place = open_store(first.url)
        place.delete("manifest.json")
        gone = max(place.list("_done/"))
        entry = place.get_bytes(gone)
        place.delete(gone)
        web.requests.clear()
        monkeypatch.setattr(Commit, "done", done)
        again = stage.run(params(path), store=str(tmp_path / "again"))
    assert again.manifest_sha256 == whole.manifest_sha256
    assert sum(web.requests.values()) < 15  # one shard of at most ten and robots.txt


def test_how_fast_it_is_fetched_is_no_part_of_the_key() -> None:
    plain = semantic(DownloadParams())
    assert semantic(DownloadParams(urls=UrlParams(concurrency=3, timeout_s=1.0, allow_networks=HERE))) == plain
    assert semantic(DownloadParams(urls=UrlParams(dedup=False))) != plain


def test_the_evaluation_set_inherits_how_lists_are_read() -> None:
    found = params_from_dict(
        {"download": {"urls": {"robots": False, "retries": 5}}, "download_eval": {"urls": {"retries": 1}}}
    )
    assert (found.download_eval.urls.robots, found.download_eval.urls.retries) == (False, 1)
