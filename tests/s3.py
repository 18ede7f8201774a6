"""A real S3 server for tests: moto, in this process, on a free port."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

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
