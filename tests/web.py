"""A web server on this machine whose paths say how it behaves."""

from __future__ import annotations

import asyncio
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Web:
    """url: its address; requests: how often each path was asked for; most: at a time, over all paths; first: when
    the first came, as a Unix time, told and forgotten at /_first, as are the requests.
    """

    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    most: int = 0
    now: int = 0
    first: float = 0.0


def _pictures(pictures: Mapping[str, bytes], robots: str, at_first: str, seen: Web) -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        seen.requests[request.path] += 1
        seen.now += 1
        seen.most = max(seen.most, seen.now)
        try:
            return await behave(request)
        except ConnectionError:  # the client has gone
            return web.Response(status=499)
        finally:
            seen.now -= 1

    async def behave(request: web.Request) -> web.StreamResponse:
        how, _, name = request.path.strip("/").partition("/")
        body = pictures.get(name, b"")
        times = seen.requests[request.path]
        if how == "_first":
            first, seen.first = seen.first, 0.0
            seen.requests.clear()
            return web.Response(text=str(first))
        seen.first = seen.first or time.time()
        if how == "robots.txt" and at_first and times <= 1 + (at_first == "reset"):  # of which aiohttp tries one again
            how, _, name = at_first.partition("/")
            body = robots.encode() or b"#" * 100
        elif how == "robots.txt" and robots:
            return web.Response(text=robots)
        if how == "ok":
            return web.Response(body=body, content_type="image/jpeg") if body else web.Response(status=404)
        if how in {"wait", "slow"}:
            await asyncio.sleep(0.1 if how == "wait" else 0.5)
            return web.Response(body=body)
        if how.isdigit():
            return web.Response(status=int(how))
        if how.startswith("then-"):  # fails once
            return web.Response(status=int(how[5:])) if times == 1 else web.Response(body=body)
        if how == "later":
            headers = {"Retry-After": "1"}
            return web.Response(status=429, headers=headers) if times == 1 else web.Response(body=body)
        if how == "noai":
            return web.Response(
                body=body, headers={"X-Robots-Tag": "noindex, noai" if name != "1" else "bingbot: noai"}
            )
        if how == "page":
            return web.Response(text="<!DOCTYPE html><html><body>gone</body></html>", content_type="text/html")
        if how == "to":
            return web.Response(status=302, headers={"Location": f"/{name}"})
        if how == "circle":
            return web.Response(status=301, headers={"Location": f"/circle/{1 - int(name)}"})
        if how == "chain":
            left = int(name)
            return web.Response(status=307, headers={"Location": f"/chain/{left - 1}" if left else "/ok/1"})
        if how == "out":
            return web.Response(status=302, headers={"Location": f"http://{name}"})
        if how == "hang":
            await asyncio.sleep(60)
        if how == "reset" and request.transport is not None:
            request.transport.abort()
        stream = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
        if how == "short":
            stream.content_length = len(body)
            await stream.prepare(request)
            await stream.write(body[: len(body) // 2])
            if request.transport is not None:
                request.transport.abort()
            return stream
        if how in {"drip", "stall"}:  # from the first byte on, or over the last kilobyte
            stream.content_length = len(body)
            await stream.prepare(request)
            if how == "stall":
                await stream.write(body[:-1024])
            for byte in body if how == "drip" else body[-1024:]:
                await stream.write(bytes([byte]))
                await asyncio.sleep(0.2)
            return stream
        if how == "huge":
            if name == "said":
                stream.content_length = 1 << 40
            await stream.prepare(request)
            while True:
                await stream.write(bytes(1 << 16))
        return web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


@contextmanager
def web_server(pictures: Mapping[str, bytes], robots: str = "", robots_at_first: str = "") -> Iterator[Web]:
    """Serve /HOW/NAME: HOW is how the server behaves, NAME the picture. robots: the text of /robots.txt; empty: 404;
    robots_at_first: how it behaves when it is asked for that for the first time.
    """
    seen, started, loop = Web(), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        runner = web.AppRunner(_pictures(pictures, robots, robots_at_first, seen), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        seen.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield seen
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def _of_tars(paths: list[str]) -> dict[str, bytes]:
    found: list[bytes] = []
    for path in paths:
        with tarfile.open(path) as tar:
            streams = (tar.extractfile(member) for member in tar if member.name.endswith((".jpg", ".jpeg")))
            found += [stream.read() for stream in streams if stream is not None]
    return {str(number): content for number, content in enumerate(found)}


if __name__ == "__main__":
    given = _of_tars(sys.argv[1:])
    with web_server(given) as served:
        print(served.url, len(given), flush=True)
        threading.Event().wait()
