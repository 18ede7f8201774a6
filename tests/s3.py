"""S3 servers for tests: moto, in this process, on a free port; and one that misbehaves."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from minio import Minio
from moto.server import ThreadedMotoServer

from components.store_s3 import connect


@contextmanager
def s3_environment(endpoint: str, access: str = "test", secret: str = "test-secret") -> Iterator[None]:
    """The variables that open_store reads."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", access)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        patch.setenv("AWS_REGION", "us-east-1")
        yield


@contextmanager
def moto_server() -> Iterator[str]:
    """A moto server; yields its endpoint, set in the environment as well."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with s3_environment(f"http://{host}:{port}"):
            yield f"http://{host}:{port}"
    finally:
        server.stop()


def new_bucket(client: Minio | None = None) -> str:
    """Make a bucket of a fresh name; returns s3://bucket."""
    name = f"test-{secrets.token_hex(6)}"
    (client or connect()).make_bucket(bucket_name=name)
    return f"s3://{name}"


class FaultyServer:
    """An HTTP server that misbehaves as told.

    answer(number of the request, method) -> (status, body); cut(number): say the whole length, send half, hang up.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.answer: Callable[[int, str], tuple[int, bytes]] = lambda number, method: (200, b"")
        self.cut: Callable[[int], bool] = lambda number: False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True  # head and body are two writes

            def _reply(self) -> None:
                outer.requests += 1
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, body = outer.answer(outer.requests, self.command)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/xml")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if outer.cut(outer.requests) else body)
                self.close_connection = True

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _reply

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
