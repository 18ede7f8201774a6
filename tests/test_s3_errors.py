"""What is wrong with an S3 service, its address or the credentials is said in one line, with what to do about it."""

from __future__ import annotations

import datetime as dt
import errno
import ipaddress
import os
import re
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from s3 import s3_environment

import components.s3_retry
from components.errors import AccessError, PermanentError, SplatClipError, TransientError
from components.s3_deadline import DEADLINE_ENV
from components.s3_errors import clock_difference_s, clock_text
from components.store import open_store

ERROR = "<Error><Code>{}</Code><Message>{}</Message>{}</Error>"
PLAIN = "Client sent an HTTP request to an HTTPS server."


class Server(ThreadingHTTPServer):
    """Answers everything alike."""

    daemon_threads = True
    status, body, headers = 200, b"", {"Content-Type": "application/xml"}
    tls: ssl.SSLContext | None = None
    last: Message

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        connection.settimeout(5)
        return (
            self.tls.wrap_socket(connection, True, do_handshake_on_connect=False) if self.tls else connection
        ), address

    def handle_error(self, *args: object) -> None:
        """What clients do wrong is the point."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _reply(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.last = self.headers
        self.send_response_only(self.server.status)
        for name, value in {"Content-Length": str(len(self.server.body)), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.server.body)
        self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _reply


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.001)
    with serving(Server(("127.0.0.1", 0), Handler)) as made:
        yield made


def failure(url: str) -> SplatClipError:
    """What a list and a put say; they must agree."""
    with s3_environment(url, access="an-id", secret="s3cr3t-key"):
        store, errors = open_store("s3://bucket/p"), []
        for work in (store.list, lambda: store.put_bytes("a", b"x")):
            with pytest.raises(SplatClipError) as caught:
                work()
            errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    for error in errors:
        assert "s3cr3t" not in str(error)
        assert "\n" not in str(error)
        assert str(error).startswith("s3://bucket/p")
    said = [re.sub(r"( \(\d+ requests? in .*|^s3://\S*: )", "", str(error)) for error in errors]
    assert said[0] == said[1]
    return errors[0]


def ago(**amount: float) -> str:
    return format_datetime(dt.datetime.now(dt.UTC) - dt.timedelta(**amount), usegmt=True)


ANSWERS = [
    ("SignatureDoesNotMatch", 403, "", {}, r"refuses the credentials .*secret is not that of .*AWS_SECRET_ACCESS_KEY"),
    ("InvalidAccessKeyId", 403, "", {}, r"does not know the access key id; check AWS_ACCESS_KEY_ID"),
    ("ExpiredToken", 400, "", {}, r"token has expired; get a new one .*AWS_SESSION_TOKEN"),
    ("InvalidToken", 400, "", {}, r"token is none of this service"),
    ("NoSuchBucket", 404, "", {}, r"no such bucket; create it"),
    ("AccessDenied", 403, "", {}, r"access denied; give this access key the right"),
    (
        "RequestTimeTooSkewed",
        403,
        "",
        {"Date": -25},
        r"clock is 25 min behind the service's; set the clock",
    ),
    ("RequestTimeTooSkewed", 403, "", {}, r"the clocks differ; set the clock"),
    ("AccessDenied", 403, "", {"Date": 180}, r"clock is 3\.0 h ahead of the service's; set the clock"),
    (
        "AuthorizationHeaderMalformed",
        400,
        "<Region>eu-west-1</Region>",
        {},
        r"another region .*set AWS_REGION=eu-west-1",
    ),
    (
        "PermanentRedirect",
        301,
        "",
        {"x-amz-bucket-region": "eu-north-1"},
        r"another region .*set AWS_REGION=eu-north-1",
    ),
    ("PermanentRedirect", 301, "", {}, r"set AWS_REGION to the bucket's region"),
    ("SomethingNew", 403, "", {}, r"answered SomethingNew \(HTTP 403\): why"),
    ("SomethingNew", 400, "", {}, r"answered SomethingNew \(HTTP 400\): why"),
]


@pytest.mark.parametrize(("code", "status", "more", "headers", "says"), ANSWERS)
def test_what_the_service_says(
    server: Server, code: str, status: int, more: str, headers: dict[str, str | int], says: str
) -> None:
    server.status, server.body = status, ERROR.format(code, "why", more).encode()
    server.headers = {"Content-Type": "application/xml", **headers}
    if isinstance(minutes := headers.get("Date"), int):
        server.headers["Date"] = ago(minutes=minutes)
    error = failure(f"http://127.0.0.1:{server.server_port}")
    assert isinstance(error, PermanentError)
    assert isinstance(error, AccessError) == ((code, status) != ("SomethingNew", 400)), "no word about what was put"
    assert re.search(says, str(error)), str(error)
    if "credentials" in str(error) or "denied" in str(error):
        assert "(credentials from the environment (AWS_ACCESS_KEY_ID))" in str(error)


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "XMinioServerNotInitialized"])
def test_what_may_pass(server: Server, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components.s3_retry, "RETRIES", 2)
    server.status, server.body = 503, ERROR.format(code, "why", "").encode()
    error = failure(f"http://127.0.0.1:{server.server_port}")
    assert isinstance(error, TransientError)
    assert "3 requests in" in str(error)


@pytest.mark.parametrize("status", [408, 429, 502])
@pytest.mark.parametrize("kind", ["text/html", "application/xml"])
def test_a_gateway_that_is_not_able_to_now(
    server: Server, status: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page is not S3's, and no matter."""
    monkeypatch.setattr(components.s3_retry, "RETRIES", 2)
    server.status, server.headers = status, {"Content-Type": kind}
    server.body = b"<html>Request Timeout</html>" if "html" in kind else ERROR.format("Some", "why", "").encode()
    error = failure(f"http://127.0.0.1:{server.server_port}")
    assert isinstance(error, TransientError)
    assert "try again later" in str(error)
    assert "3 requests in" in str(error)


@pytest.mark.parametrize("minutes", [0, 4, -4])
def test_a_request_that_came_too_late_while_the_clocks_agree(server: Server, minutes: int) -> None:
    server.status, server.body = 403, ERROR.format("RequestTimeTooSkewed", "why", "").encode()
    server.headers = {"Content-Type": "application/xml", "Date": ago(minutes=minutes)}
    error = failure(f"http://127.0.0.1:{server.server_port}")
    assert isinstance(error, TransientError)
    assert "too long on its way (RequestTimeTooSkewed), while the clocks agree; try again" in str(error)


@pytest.mark.parametrize(("status", "body"), [(404, b"<html>none</html>"), (401, b""), (400, b"what?")])
def test_an_endpoint_that_is_not_s3(server: Server, status: int, body: bytes) -> None:
    server.status, server.body, server.headers = status, body, {"Content-Type": "text/html"}
    error = failure(f"http://127.0.0.1:{server.server_port}")
    assert isinstance(error, AccessError)
    assert "is not S3's; check AWS_ENDPOINT_URL" in str(error)


def test_a_web_server_that_has_an_answer_to_everything(server: Server) -> None:
    server.body, server.headers = b"<html>welcome</html>", {"Content-Type": "text/html"}
    with s3_environment(f"http://127.0.0.1:{server.server_port}"), pytest.raises(PermanentError, match="is not S3's"):
        open_store("s3://bucket/p").list()


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that nobody has signed, and the server's side of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    file, key_file = folder / "cert.pem", folder / "key.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return file, context


def test_tls_that_is_not_trusted_and_is(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, server.tls = certificate(tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    error = failure(f"https://127.0.0.1:{server.server_port}")
    assert isinstance(error, AccessError)
    assert "certificate is not trusted (self-signed certificate); name the file" in str(error)
    assert "AWS_CA_BUNDLE" in str(error)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    server.status, server.body = 404, ERROR.format("NoSuchBucket", "", "").encode()
    assert "no such bucket" in str(failure(f"https://127.0.0.1:{server.server_port}")), "TLS itself is well"
    server.status, server.body = 200, b"content"
    with s3_environment(f"https://127.0.0.1:{server.server_port}"):
        store = open_store("s3://bucket/p")
        store.put_bytes("a", b"x" * 1_000_000)
        assert server.last["Content-MD5"], "without a signature of the body, its sum goes with it"
        assert store.get_bytes("a") == b"content"


def test_https_where_http_is_spoken_and_the_other_way(server: Server, tmp_path: Path) -> None:
    error = failure(f"https://127.0.0.1:{server.server_port}")
    assert isinstance(error, PermanentError)
    assert "speaks http, not https; write http://" in str(error)
    server.status, server.body, server.headers = 400, PLAIN.encode(), {"Content-Type": "text/plain"}
    error = failure(f"http://127.0.0.1:{server.server_port}")
    assert isinstance(error, PermanentError)
    assert "speaks https; write https://" in str(error)
    _, server.tls = certificate(tmp_path)  # which says nothing, or sends an alert
    error = failure(f"http://127.0.0.1:{server.server_port}")
    assert "https" in str(error)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.001)
    error = failure("http://127.0.0.1:9")
    assert isinstance(error, TransientError)
    assert "nothing listens there (connection refused); check AWS_ENDPOINT_URL" in str(error)
    assert f"{components.s3_retry.RETRIES_UNREACHABLE + 1} requests in" in str(error)


@pytest.mark.parametrize(("code", "kind"), [(socket.EAI_NONAME, AccessError), (socket.EAI_AGAIN, TransientError)])
def test_a_name_that_is_not_known(code: int, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **more: object) -> None:
        raise socket.gaierror(code, "no")

    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.001)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure("http://no-such-host.example:9000")
    assert isinstance(error, kind)
    assert "host's name" in str(error)
    assert "check AWS_ENDPOINT_URL and DNS" in str(error)


def test_a_server_that_never_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEADLINE_ENV, "0.5")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = failure(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert isinstance(error, TransientError)
    assert DEADLINE_ENV in str(error)


def test_how_clocks_differ() -> None:
    assert clock_difference_s(None) is clock_difference_s("yesterday") is None
    assert clock_difference_s(ago(seconds=100)) == pytest.approx(100, abs=3)
    assert clock_text(-90) == "this machine's clock is 90 s behind the service's"
    assert clock_text(86400) == "this machine's clock is 24.0 h ahead of the service's"


def test_no_room_for_what_is_fetched(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status, server.body = 200, b"content"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "splatclip-x"))

    def no_room(**_: object) -> None:
        raise full

    monkeypatch.setattr(tempfile, "TemporaryDirectory", no_room)
    with s3_environment(f"http://127.0.0.1:{server.server_port}"):
        store = open_store("s3://bucket/p")
        with pytest.raises(TransientError, match=rf"{tmp_path}.*(free some|space)"), store.local("a"):
            pass
