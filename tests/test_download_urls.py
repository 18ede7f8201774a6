"""Lists of web addresses: read, fetched, every row accounted for."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from pyarrow import parquet
from web import web_server

from components.config import DownloadParams, semantic
from components.download import http, robots, rows, stage
from components.download import urls as module
from components.download.http import Fetched, Fetcher, Job
from components.download.request import check_url, forbids, retry_after
from components.errors import Interrupted, PermanentError, TransientError, UsageError
from components.images import ImageError
from components.manifest import Commit, ShardEntry, open_artifact
from components.params import params_from_dict
from components.shards import read_shard
from components.store import open_store
from components.url_params import UrlParams

sys.path.insert(0, str(ROOT / "benchmarks"))

from downloading import BAD, ENDLESS, addresses

HERE = ("127.0.0.0/8",)


def jpeg(seed: int, size: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(stream, "JPEG")
    return stream.getvalue()


PICTURES = {str(number): jpeg(number) for number in range(40)}


def table(path: Path, urls: list[str], **columns: list[str]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["url", "caption", *columns])
        for row, url in enumerate(urls):
            writer.writerow([url, f"picture {row}", *(values[row] for values in columns.values())])
    return path


def params(path: Path, **urls: object) -> DownloadParams:
    fast = {"timeout_s": 1.5, "retries": 1, "allow_networks": HERE, "per_host": 32, **urls}
    return DownloadParams(
        source="urls", path=str(path), dataset="web", image_size=16, image_format="jpg", shard_size=10,
        num_train=0, num_val=0, num_test=2, max_bytes=1 << 20, urls=UrlParams(**fast),  # type: ignore[arg-type]
    )  # fmt: skip


def outcomes(url: str) -> dict[int, tuple[str, str]]:
    """By row: its outcome and reason."""
    found = open_artifact(url, open_store(url))
    by_row = {}
    for shard in found.manifest.shards:
        with found.local(shard) as path:
            by_row |= {int(sample.key): ("ok", "") for sample in read_shard(path)}
    for name in found.store.list("_done/"):
        entry = json.loads(found.store.get_bytes(name))
        by_row |= {int(note["key"]): (note["outcome"], note["reason"]) for note in entry["samples"]}
    return by_row


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


@pytest.mark.full
def test_two_thousand_addresses_a_quarter_of_them_bad(tmp_path: Path) -> None:
    """The benchmark's list, with the answers that never end: each row by its reason, in bounded time."""
    rows = addresses(2000, len(PICTURES), (*BAD, *ENDLESS))
    with web_server(PICTURES) as web:
        path = table(tmp_path / "list.csv", [web.url + place for place, _ in rows])
        given = params(path, timeout_s=5.0, concurrency=64, per_host=64, dedup=False)
        started = time.monotonic()
        report = stage.run(replace(given, shard_size=100), store=str(tmp_path / "store"))
        seconds = time.monotonic() - started
    expected = {row: "" if good else REASONS[place.split("/")[1]] for row, (place, good) in enumerate(rows)}
    assert {row: reason for row, (_, reason) in outcomes(report.url).items()} == expected
    assert report.manifest.counts["in"] == 2000
    slow = sum(reason in {"timeout", "truncated"} for reason in expected.values())
    assert seconds < slow * 10 / 2, "one after the other the slow ones alone take twice as long"


@pytest.mark.parametrize("slow", ["hang", "drip"])
def test_slow_ones_hold_up_no_others(tmp_path: Path, slow: str) -> None:
    """Twenty that never end, first in the list: the others take no longer than they would alone."""
    urls = [f"/{slow}/{number}" for number in range(20)] + [f"/ok/{number}" for number in range(20, 40)]
    with web_server(PICTURES) as web:
        path = table(tmp_path / "list.csv", [web.url + url for url in urls])
        started = time.monotonic()
        report = stage.run(params(path, timeout_s=2.0, retries=0, concurrency=24), store=str(tmp_path / "store"))
        seconds = time.monotonic() - started
    assert report.manifest.counts["reasons"] == {"timeout": 20}
    assert report.manifest.counts["ok"] == 20
    assert seconds < 20  # one after the other they take 40


def test_a_host_is_asked_for_no_more_than_its_share_at_a_time(tmp_path: Path) -> None:
    with web_server(PICTURES) as web:
        path = table(tmp_path / "list.csv", [f"{web.url}/wait/{number}" for number in range(40)])
        stage.run(params(path, per_host=3, robots=False), store=str(tmp_path / "store"))
        assert web.most == 3
        assert sum(web.requests.values()) == 40


def test_robots_txt_is_read_once_and_respected(tmp_path: Path) -> None:
    robots = "User-agent: splatclip\nDisallow: /ok/1\n\nUser-agent: *\nDisallow: /\n"
    with web_server(PICTURES, robots) as web:
        path = table(tmp_path / "list.csv", [f"{web.url}/ok/{number}" for number in range(30)])
        report = stage.run(params(path), store=str(tmp_path / "store"))
        assert report.manifest.counts["reasons"] == {"robots": 11}  # 1 and 10 to 19
        assert not any(name.startswith("/ok/1") for name in web.requests)


def test_a_directive_for_another_robot_is_not_ours(tmp_path: Path) -> None:
    with web_server(PICTURES) as web:
        path = table(
            tmp_path / "list.csv", [f"{web.url}/{how}/{number}" for how in ("noai", "ok") for number in range(5)]
        )
        report = stage.run(params(path), store=str(tmp_path / "a"))
        assert report.manifest.counts["reasons"] == {"noai": 4, "duplicate": 1}
        report = stage.run(params(path, robots=False, dedup=False), store=str(tmp_path / "b"))
        assert report.manifest.counts["ok"] == 10


def test_what_a_list_says_of_a_picture_goes_along_and_its_sum_is_checked(tmp_path: Path) -> None:
    sums = [hashlib.sha256(PICTURES[str(number)]).hexdigest() for number in range(6)]
    sums[2] = "0" * 64
    with web_server(PICTURES) as web:
        urls = [f"{web.url}/ok/{number}" for number in range(6)]
        columns = {"sha256": sums, "UID": [f"u{k}" for k in range(6)], "NSFW": ["UNLIKELY"] * 6, "mine": list("abcdef")}
        path = table(tmp_path / "list.csv", urls, **columns)
        report = stage.run(params(path, carry=("mine",)), store=str(tmp_path / "store"))
    assert outcomes(report.url)[2] == ("failed", "other_content")
    found = open_artifact(report.url, open_store(report.url))
    metas = {}
    for shard in found.manifest.shards:
        with found.local(shard) as tar:
            metas |= {sample.key: json.loads(sample.fields["json"]) for sample in read_shard(tar)}
    meta = metas["000000004"]
    assert (meta["uid"], meta["nsfw"], meta["mine"], meta["sha256"]) == ("u4", "UNLIKELY", "e", sums[4])
    assert (meta["url"], meta["caption"]) == (urls[4], "picture 4")


def test_tables_of_every_kind_give_the_same_shards(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    captions = [f'a "quoted" picture, {number}, \u00fc' for number in range(12)]
    manifests = set()
    with web_server(PICTURES) as web:
        urls = [f"{web.url}/ok/{number}" for number in range(12)]
        for kind in ("parquet", "csv", "tsv", "jsonl"):
            path = tmp_path / f"list.{kind}"
            if kind == "parquet":
                parquet.write_table(pa.table({"URL": urls, "TEXT": captions}), path)
            elif kind == "jsonl":
                rows = zip(urls, captions, strict=True)
                path.write_text("".join(json.dumps({"URL": url, "TEXT": text}) + "\n" for url, text in rows))
            else:
                with path.open("w", newline="") as stream:
                    writer = csv.writer(stream, delimiter="\t" if kind == "tsv" else ",")
                    writer.writerows([("URL", "TEXT"), *zip(urls, captions, strict=True)])
            report = stage.run(params(path), store=str(tmp_path / kind))
            assert report.manifest.counts["ok"] == 12
            manifests.add(tuple(shard.sha256 for shard in report.manifest.shards))
    assert len(manifests) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "address,caption\nx,y\n", "none of its columns (address, caption) is called url"),
        ("a.csv", "url,caption\nhttp://a,b,c\n", "line 2 has more or fewer values"),
        ("a.jsonl", '{"url": "http://a", "caption": "b"}\n{"url": \n', "line 2"),
        ("a.jsonl", "[1]\n", "line 1 (not an object)"),
        ("a.parquet", "no parquet", "not a whole Parquet file"),
        ("a.csv", "", "none of its columns"),
        ("a.csv", "url,caption\n", "hold no row"),
    ],
)
def test_a_bad_list_says_where(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PermanentError) as error:
        stage.run(params(tmp_path / name), store=str(tmp_path / "store"))
    assert said in str(error.value)
    assert name in str(error.value) or "hold no row" in said


def test_a_column_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    path = table(tmp_path / "list.csv", ["http://a"])
    with pytest.raises(PermanentError, match="no column 'captoin' \\(did you mean 'caption'\\?\\)"):
        stage.run(params(path, caption_column="captoin"), store=str(tmp_path / "store"))


def test_networks_and_agents_are_checked_early() -> None:
    with pytest.raises(UsageError, match="allow_networks"):
        UrlParams(allow_networks=("10.0.0.0/99",))
    with pytest.raises(UsageError, match="user_agent"):
        UrlParams(user_agent="a\r\nCookie: b")


@pytest.mark.parametrize("url", ["http://a b/", "http://a/\r\nx", "http://", "http://[::1", "x", "http://a:99999/"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ImageError, match="bad_url"):
        check_url(url)


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("7") == 7
    assert retry_after("soon") == retry_after(None) == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


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


def test_a_dead_host_does_not_hold_up_the_list(tmp_path: Path) -> None:
    """Three hundred rows of a host that never answers, first: most of them fail without a request."""
    with web_server(PICTURES) as dead, web_server(PICTURES) as web:
        urls = [f"{dead.url}/hang/{row}" for row in range(300)] + [f"{web.url}/ok/{row}" for row in range(40)]
        given = params(table(tmp_path / "list.csv", urls), timeout_s=0.5, retries=0, per_host=4, concurrency=8)
        started = time.monotonic()
        report = stage.run(replace(given, num_test=30), store=str(tmp_path / "store"))
        seconds = time.monotonic() - started
        asked = sum(count for path, count in dead.requests.items() if path.startswith("/hang"))
    assert report.manifest.counts["ok"] == 40
    assert set(report.manifest.counts["reasons"]) == {"timeout", "host_down"}
    assert 8 <= asked < 40
    assert seconds < 25  # one round after the other they take 37


def test_a_host_that_comes_back_is_asked_again() -> None:
    with (
        web_server(PICTURES) as web,
        Fetcher(UrlParams(allow_networks=HERE, timeout_s=0.5, retries=0, per_host=2), max_bytes=1 << 20) as f,
    ):
        urls = [f"{web.url}/hang/{row}" for row in range(6)] + [f"{web.url}/ok/{row % 40}" for row in range(200)]
        found = [result for result in f.fetch(Job(url, url) for url in urls) if result is not None]
    assert len(found) == 206
    good = [job.url for job, outcome in found if isinstance(outcome, Fetched)]
    assert len(good) > 100, "a probe found it up again"


def test_a_row_that_comes_when_its_host_is_down_already_is_the_fiftieth_too() -> None:
    """Each of these was counted twice, when it came and when its turn had come, and the fiftieth was never tried."""
    heard = [threading.Event(), threading.Event()]

    def jobs() -> Iterator[Job[int] | None]:
        yield from (Job(f"{web.url}/hang/{row}", row) for row in range(4))
        yield None
        heard[0].wait(10)
        yield from (Job(f"{web.url}/ok/{row % 40}", row) for row in range(4, 64))
        yield None
        heard[1].wait(10)
        yield from (Job(f"{web.url}/ok/{row % 40}", row) for row in range(64, 94))

    found: dict[int, Any] = {}
    with (
        web_server(PICTURES) as web,
        Fetcher(UrlParams(allow_networks=HERE, timeout_s=0.2, retries=0, per_host=2), max_bytes=1 << 20) as fetcher,
    ):
        for job, outcome in filter(None, fetcher.fetch(jobs())):
            found[job.payload] = outcome
            if len(found) in {4, 64}:
                heard[len(found) // 64].set()
    good = [row for row in sorted(found) if isinstance(found[row], Fetched)]
    assert good == [4 + 49, *range(64, 94)], "one of the first fifty, and all that came after it"
    assert {found[row].reason for row in range(4, 64) if row != 53} == {"host_down"}


@pytest.mark.parametrize(
    ("more", "read"), [("Disallow: /b\n" * 1000, 4), (f"Disallow: /{'b' * 150_000}\n", 4), ("", 3)],
    ids=["many", "long", "few"],
)  # fmt: skip
def test_rules_of_many_hosts_do_not_add_up(more: str, read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each host may have 500 KiB of them, which are megabytes in memory. Here two hosts' fit in, and not three's."""
    monkeypatch.setattr(robots, "MAX_HELD", 400_000)

    async def look() -> None:
        async with aiohttp.ClientSession() as session:
            rules = robots.Robots(session, agent="splatclip", timeout_s=5.0)
            for name in "abacac":
                host = web.url.replace("//", f"//{name}@")
                assert await rules.allow(f"{host}/ok/1")
                assert not await rules.allow(f"{host}/a")

    with web_server(PICTURES, f"User-agent: *\nDisallow: /a\n{more}") as web:
        asyncio.run(look())
    assert web.requests["/robots.txt"] == read


def test_robots_that_are_away_for_a_moment_do_not_lose_the_host(tmp_path: Path) -> None:
    with web_server(PICTURES, "503 once") as web:
        path = table(tmp_path / "list.csv", [f"{web.url}/ok/{row}" for row in range(20)])
        report = stage.run(params(path), store=str(tmp_path / "store"))
        assert web.requests["/robots.txt"] == 2
    assert report.manifest.counts["ok"] == 20


def test_own_columns_that_a_list_has_too_may_hold_anything(tmp_path: Path) -> None:
    with web_server(PICTURES) as web:
        urls = [f"{web.url}/{'ok' if row % 3 else '404'}/{row}" for row in range(12)]
        odd = ["", "640.0", "nan", "640", "x", "1e400"] * 2
        path = table(tmp_path / "list.csv", urls, original_width=odd, width=odd)
        report = stage.run(params(path, carry=("width",)), store=str(tmp_path / "store"))
    assert report.manifest.counts["reasons"] == {"http_404": 4}


def test_an_outage_on_this_side_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def away(host: str | None, *more: Any, **options: Any) -> Any:
        if host == "pictures.test":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", away)
    urls = [f"http://pictures.test/{row}" for row in range(12)]
    urls[::5] = ["", "http://10.0.0.1/x", "ftp://x/"]  # which nobody is asked for
    path = table(tmp_path / "list.csv", urls)
    with pytest.raises(TransientError, match=r"no_name_server.*run the same command again"):
        stage.run(params(path, retries=0), store=str(tmp_path / "store"))
    assert not list((tmp_path / "store").rglob("_done/*"))


def test_tables_are_read_forwards_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no two of them are kept: once to be counted, and once for each split, whatever is refused meanwhile."""
    read: list[str] = []
    expected: list[str] = []
    real = module.read_table

    def counted(path: Path, *more: Any) -> Any:
        read.append(path.name)
        return real(path, *more)

    monkeypatch.setattr(module, "read_table", counted)
    monkeypatch.setattr(rows, "MOST_BYTES", 1)
    with web_server(PICTURES) as web:
        for name in "ab":
            again = 36 if name == "a" else 12
            pictures = [row if row < again else row + 1 for row in range(36)]
            urls = [f"{web.url}/{'404' if row % 3 else 'ok'}/{pictures[row]}" for row in range(36)]
            expected += urls
            table(tmp_path / f"{name}.csv", urls, uid=[f"{name}{row}" for row in range(36)], width=["7"] * 36)
        given = replace(params(tmp_path, carry=("width",)), num_test=12)
        report = stage.run(given, store=str(tmp_path / "store"))
    assert report.manifest.counts["reasons"] == {"http_404": 48, "duplicate": 4}
    assert len(read) <= 6, read
    found = open_artifact(report.url, open_store(report.url))
    lines = []
    for entry in found.manifest.shards:
        (name,) = (file.stored for file in entry.files if file.name.endswith(".parquet"))
        lines += parquet.read_table(found.store.root / name).to_pylist()
    for line in lines:
        number = int(line["key"])
        assert line["url"] == expected[number]
        assert (line["caption"], line["uid"]) == (f"picture {number % 36}", f"{'ab'[number // 36]}{number % 36}")
        assert line["width"] == (16 if line["status"] == "success" else 7), "what the list says where nothing is known"
        assert bool(line["sha256"]) == (number % 36 % 3 == 0)


def test_requests_go_on_while_a_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were held up with it, and took the pause for their servers'."""
    monkeypatch.setattr(http, "WINDOW", 2)
    with web_server(PICTURES) as web:

        def jobs() -> Iterator[Job[int]]:
            for row in range(10):
                if row == 7:
                    time.sleep(1.5)
                yield Job(f"{web.url}/{'ok' if row else 'slow'}/{row}", row)

        given = UrlParams(allow_networks=HERE, timeout_s=0.7, retries=0, concurrency=2, per_host=2)
        with Fetcher(given, max_bytes=1 << 20) as fetcher:
            found = {job.payload: outcome for job, outcome in filter(None, fetcher.fetch(jobs()))}
    assert {row: type(outcome) for row, outcome in found.items()} == dict.fromkeys(range(10), Fetched)


def test_a_list_that_breaks_in_the_middle_says_so() -> None:
    def jobs() -> Iterator[Job[int]]:
        yield Job("", 0)
        raise PermanentError("line 2 is none")

    before = threading.active_count()
    with (
        Fetcher(UrlParams(allow_networks=HERE), max_bytes=1 << 20) as fetcher,
        pytest.raises(PermanentError, match="line 2 is none"),
    ):
        list(fetcher.fetch(jobs()))
    assert threading.active_count() == before


def test_a_line_may_lack_what_others_have(tmp_path: Path) -> None:
    with web_server(PICTURES) as web:
        rows: list[dict[str, str]] = [{"url": f"{web.url}/ok/{row}"} for row in range(12)]
        for row in rows[1:]:
            row |= {"caption": "a", "sha256": "0" * 64 if row is rows[5] else ""}
        path = tmp_path / "list.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = stage.run(params(path), store=str(tmp_path / "store"))
    assert report.manifest.counts["reasons"] == {"no_caption": 1, "other_content": 1}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("noai, noimageai, max-image-preview:large", "noai"), ("noindex, max-snippet:-1", "noindex"),
        ("max-video-preview:-1, noai", "noai"), ("splatclip: noai", "noai"), ("other: noai", ""), ("all", ""),
    ],
)  # fmt: skip
def test_directives_of_headers(line: str, found: str) -> None:
    assert forbids({"X-Robots-Tag": line}, "splatclip") == found


def test_how_fast_it_is_fetched_is_no_part_of_the_key() -> None:
    plain = semantic(DownloadParams())
    assert semantic(DownloadParams(urls=UrlParams(concurrency=3, timeout_s=1.0, allow_networks=HERE))) == plain
    assert semantic(DownloadParams(urls=UrlParams(dedup=False))) != plain


def test_the_evaluation_set_inherits_how_lists_are_read() -> None:
    found = params_from_dict(
        {"download": {"urls": {"robots": False, "retries": 5}}, "download_eval": {"urls": {"retries": 1}}}
    )
    assert (found.download_eval.urls.robots, found.download_eval.urls.retries) == (False, 1)
