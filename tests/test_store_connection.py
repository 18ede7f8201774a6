"""What the S3 store does with connections and bodies, before a server that keeps connections open."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from urllib3 import BaseHTTPResponse

from components.store import open_store
from components.store_s3 import CHUNK, S3Store, _chunks

LARGE = bytes(range(256)) * (8 * CHUNK // 256)
PACKED = gzip.compress(b"as it was stored " * 100)
OBJECTS = {"/bucket/large": LARGE, "/bucket/small": b"small", "/bucket/packed": PACKED}


class Server(ThreadingHTTPServer):
    """Counts connections."""

    daemon_threads = True
    connections = 0


class Handler(BaseHTTPRequestHandler):
    """GET of a few objects, over one connection for as long as the client likes."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.server.connections += 1  # type: ignore[attr-defined]
        super().setup()

    def do_GET(self) -> None:
        body = OBJECTS[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if self.path.endswith("packed"):
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.server_port}")
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield made
        made.shutdown()


def fetched(store: S3Store, name: str) -> bytes:
    body = OBJECTS[f"/bucket/{name}"]
    with store.content(name, hashlib.sha256(body).hexdigest(), len(body)) as content:
        return bytes(content)  # type: ignore[arg-type]


def opened() -> S3Store:
    store = open_store("s3://bucket")
    assert isinstance(store, S3Store)
    return store


def test_one_connection_serves_file_after_file(server: Server) -> None:
    store = opened()
    for _ in range(3):
        assert fetched(store, "small") == b"small"
        assert fetched(store, "large") == LARGE
        assert store.get_bytes("small") == b"small"
    assert server.connections == 1


def test_a_body_left_half_read_does_not_get_into_the_next(server: Server) -> None:
    store = opened()

    def read(response: BaseHTTPResponse) -> None:
        stream = _chunks(response)
        assert next(stream) == LARGE[:CHUNK]
        stream.close()  # type: ignore[attr-defined]

    store._get("large", read)
    assert store.get_bytes("small") == b"small"
    assert fetched(store, "large") == LARGE
    assert server.connections == 2, "the first is closed, as it still holds the rest"


def test_what_is_checked_by_its_sha256_comes_as_it_was_stored(server: Server) -> None:
    assert fetched(opened(), "packed") == PACKED
