"""A server that answers as the Hugging Face hub does for dataset repositories, and the host that it redirects to.

Paths, headers and answers are the hub's: /api/datasets/REPO/revision/REV, /api/datasets/REPO/tree/COMMIT in pages with
a Link header, /datasets/REPO/resolve/COMMIT/PATH, which redirects large files to another host, X-Error-Code.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

from aiohttp import web

LARGE = (".parquet", ".tar", ".npy")  # what .gitattributes gives to LFS
PAGE = 3  # files of a listing's page


def sum_of(data: bytes) -> str:
    """As git makes them."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """url: its address. repos: name -> path -> content at the newest commit; commits: all of them by their sha.

    faults: of a path, what the next requests for it meet, one after another: a status such as 503, `torn` (half of the
    body), `wrong` (a byte is another), `hang`, `whole` (ranges are not heeded). gated: repositories that want `token`.
    requests: paths asked for; ranges: Range headers that came; leaked: tokens that the other host was sent.
    """

    url: str = ""
    cdn: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    requests: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def commit(self, repo: str) -> str:
        """The sha of the newest commit."""
        files = self.repos[repo]
        text = "".join(f"{path} {sum_of(data)}\n" for path, data in sorted(files.items()))
        sha = sum_of(text.encode())
        self.commits[repo, sha] = dict(files)
        return sha


def _error(status: int, code: str, message: str = "") -> web.Response:
    headers = {"X-Error-Code": code, "X-Error-Message": message or code} if code else {}
    return web.json_response({"error": message or code}, status=status, headers=headers)


def _refused(hub: Hub, request: web.Request, repo: str) -> web.Response | None:
    given = request.headers.get("Authorization", "")
    if given:
        hub.tokens.add(given)
    if repo not in hub.repos:  # it does not tell strangers what there is
        if given:
            return _error(404, "RepoNotFound", "Repository not found")
        return _error(401, "RepoNotFound", "Invalid username or password.")
    if repo in hub.gated and given != f"Bearer {hub.token}":
        return _error(403 if given else 401, "GatedRepo", f"Access to dataset {repo} is restricted.")
    return None


def _app(hub: Hub) -> web.Application:
    def parts(request: web.Request, marker: str) -> tuple[str, str]:
        """Repository and what comes after the marker, of the path as it was sent."""
        path = request.raw_path.partition("?")[0]
        before, _, after = path.partition(f"/{marker}/")
        return before.partition("datasets/")[2], unquote(after)

    def fault(key: str) -> str:
        hub.requests[key] += 1
        return hub.faults[key].pop(0) if hub.faults[key] else ""

    def away(kind: str) -> web.Response:
        return web.Response(status=int(kind), headers={"Retry-After": "0"})

    async def revision(request: web.Request) -> web.StreamResponse:
        repo, wanted = parts(request, "revision")
        if (kind := fault("revision")).isdigit():
            return away(kind)
        if (refused := _refused(hub, request, repo)) is not None:
            return refused
        commit = wanted if (repo, wanted) in hub.commits else hub.commit(repo)
        if wanted not in {"main", "refs/convert/parquet", commit}:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {wanted}")
        return web.json_response({"id": repo, "sha": commit, "private": False, "gated": repo in hub.gated})

    async def tree(request: web.Request) -> web.StreamResponse:
        repo, commit = parts(request, "tree")
        if (kind := fault("tree")).isdigit():
            return away(kind)
        if (refused := _refused(hub, request, repo)) is not None:
            return refused
        listed = []
        files = hub.commits[repo, hub.commit(repo) if commit == "main" else commit]
        for folder in sorted({path.rpartition("/")[0] for path in files} - {""}):
            listed.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": folder})
        for path, data in sorted(files.items()):
            oid = sum_of(f"blob {len(data)}\0".encode() + data)
            one = {"type": "file", "oid": oid, "size": len(data), "path": path}
            if path.endswith(LARGE):
                one["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            listed.append(one)
        first = int(request.query.get("cursor", "0"))
        following = f'<{hub.url}{request.path}?recursive=true&cursor={first + PAGE}>; rel="next"'
        headers = {"Link": following} if first + PAGE < len(listed) else {}
        return web.json_response(listed[first : first + PAGE], headers=headers)

    async def resolve(request: web.Request) -> web.StreamResponse:
        repo, rest = parts(request, "resolve")
        commit, _, path = rest.partition("/")
        kind = fault(path)
        if kind.isdigit():
            return away(kind)
        if (refused := _refused(hub, request, repo)) is not None:
            return refused
        data = hub.commits.get((repo, commit), {}).get(path)
        if data is None:
            return _error(404, "EntryNotFound")
        if not path.endswith(LARGE):
            return await body(request, data, kind)
        address = f"{hub.cdn}/repos/{hashlib.sha256(data).hexdigest()}?Signature=s1gned&how={kind}"
        return web.Response(status=302, headers={"Location": address, "X-Linked-Size": str(len(data))})

    async def large(request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            hub.leaked.append(request.headers["Authorization"])
        everything = (data for files in hub.commits.values() for data in files.values())
        wanted = request.path.rpartition("/")[2]
        found = next(data for data in everything if hashlib.sha256(data).hexdigest() == wanted)
        return await body(request, found, request.query["how"])

    async def body(request: web.Request, data: bytes, kind: str) -> web.StreamResponse:
        start = 0
        if kind == "hang":
            await asyncio.sleep(60)
        if kind == "wrong":
            data = bytes([data[0] ^ 1]) + data[1:]
        if "Range" in request.headers and kind != "whole":
            hub.ranges.append(request.headers["Range"])
            start = int(request.headers["Range"].removeprefix("bytes=").partition("-")[0])
        stream = web.StreamResponse(status=206 if start else 200)
        if start:
            stream.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        stream.content_length = len(rest)
        await stream.prepare(request)
        await stream.write(rest[: len(rest) // 2] if kind == "torn" else rest)
        if kind == "torn" and request.transport is not None:
            await asyncio.sleep(0.05)
            request.transport.abort()
        return stream

    async def answer(request: web.Request) -> web.StreamResponse:
        path = request.raw_path
        for marker, handler in (("/revision/", revision), ("/tree/", tree), ("/resolve/", resolve), ("/repos/", large)):
            if marker in path:
                return await handler(request)
        return web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


@contextmanager
def hub_server(repos: dict[str, dict[str, bytes]], tls: ssl.SSLContext | None = None) -> Iterator[Hub]:
    """Serve repositories: name -> path -> content."""
    hub, started, loop = Hub(repos=repos), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        runner = web.AppRunner(_app(hub), shutdown_timeout=0.1)
        await runner.setup()
        for _ in range(2):  # the hub, and the host that it redirects to
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        hub.url, hub.cdn = (f"http{'s' if tls else ''}://127.0.0.1:{address[1]}" for address in runner.addresses)
        started.set()
        await stop.wait()
        await runner.cleanup()
        hanging = asyncio.all_tasks() - {asyncio.current_task()}
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield hub
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
