"""Credentials of the S3 store: environment, then a file, then the pod's identity; their values are never said."""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import components.s3_credentials
from components.__main__ import main
from components.errors import AccessError, SplatClipError, TransientError, UsageError
from components.s3_connection import open_connection
from components.splat_fit.work import JOB_INDEX
from components.store_s3 import open_s3

SECRET, JWT = "s3cr3t-value", "eyJ-a-token"
SET = [
    "AWS_ACCESS_KEY_ID",
    "AWS_ACCESS_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "MINIO_ALIAS",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_ENDPOINT_URL_STS",
    "AWS_ENDPOINT_URL_S3",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
]


class Server(ThreadingHTTPServer):
    """Hands out credentials as STS, a container's agent and a machine's metadata do; and lists a bucket."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.life_s, self.asked, self.tokens = 200, 3600.0, 0, list[str | None]()
        self.waits = list[float]()  # before the next answers
        self.error = ""  # the body where status is none of success
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *args: object) -> None:
        """A client that waits no longer is the point."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _body(self) -> str:
        until = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.server.life_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self.path.startswith("/bucket"):
            self.server.tokens.append(self.headers.get("X-Amz-Security-Token"))
            return "<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
        if self.path == "/latest/api/token":
            return "metadata-token"
        if self.path == "/latest/meta-data/iam/security-credentials/":
            return "a-role"
        self.server.asked += 1
        if "WebIdentityToken=" in self.path:
            assert f"WebIdentityToken={JWT}" in self.path
            return (
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
                f"<AccessKeyId>id</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>given"
                f"{self.server.asked}</SessionToken><Expiration>{until}</Expiration></Credentials>"
                "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            )
        return json.dumps(
            {"AccessKeyId": "id", "SecretAccessKey": SECRET, "Token": f"given{self.server.asked}", "Expiration": until}
        )

    def _reply(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(self.server.waits.pop() if self.server.waits else 0)
        status, body = (200 if self.path.startswith("/bucket") else self.server.status), self._body().encode()
        body = body if status == 200 else self.server.error.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = _reply

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in SET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(components.s3_retry, "BACKOFF_S", 0.001)
    with Server() as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def give(place: str, folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials in one of the places."""
    if place == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    elif place == "file":
        (folder / "shared").write_text(f"[other]\naws_access_key_id = id\naws_secret_access_key = {SECRET}\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "shared"))
        monkeypatch.setenv("AWS_PROFILE", "other")
    elif place == "mc":
        (folder / ".mc").mkdir()
        (folder / ".mc/config.json").write_text(
            json.dumps({"aliases": {"s3": {"accessKey": "id", "secretKey": SECRET}}})
        )
    elif place == "web identity":
        (folder / "jwt").write_text(JWT)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(folder / "jwt"))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/a")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.url)
    elif place == "container":
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.url}/v1/credentials")
    elif place == "machine":
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)


PLACES = {
    "environment": r"^the environment \(AWS_ACCESS_KEY_ID\)$",
    "file": r"^profile 'other' of .*/shared$",
    "mc": r"^alias 's3' of .*/\.mc/config\.json$",
    "web identity": r"^the pod's identity \(a web identity token\)$",
    "container": r"^the pod's identity \(the container's credentials\)$",
    "machine": r"^the machine's role",
}


@pytest.mark.parametrize("place", PLACES)
def test_each_place_works_and_says_no_secret(
    place: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    give(place, tmp_path, server, monkeypatch)
    store = open_s3("s3://bucket/p")
    source = open_connection().credentials.source
    assert re.search(PLACES[place], source)
    assert store.list() == store.list() == []
    identity = place in {"web identity", "container", "machine"}
    assert server.tokens[0] == server.tokens[1]
    assert bool(server.tokens[0]) == identity, "temporary credentials come with a token, and are asked for once"
    for said in (caplog.text, source, repr(open_connection().credentials)):
        assert SECRET not in said
        assert JWT not in said


def test_the_first_place_wins(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in reversed(PLACES):
        give(place, tmp_path, server, monkeypatch)
        source = open_connection().credentials.source
        assert re.search(PLACES[place], source), f"{place} comes before those after it"


def test_what_is_nowhere_names_all_three_ways(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_s3("s3://bucket/p")
    for way in ("AWS_SECRET_ACCESS_KEY", f"{tmp_path}/.aws/credentials", ".mc/config.json", "AWS_WEB_IDENTITY_TOKEN"):
        assert way in str(caught.value)


@pytest.mark.parametrize(("index", "code"), [("", 2), ("0", 75)])
def test_a_pod_of_a_job_without_credentials_is_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], index: str, code: int
) -> None:
    """Exit 2 would end the Job for all of its pods, when one node's metadata service is away."""
    monkeypatch.setenv(JOB_INDEX, index)
    given = ["--params", "{}", "--images", "s3://bucket/p/download/x", "--store", "s3://bucket/p", "--group", "0/1"]
    assert main(["splat-fit", *given]) == code
    assert "no credentials for the s3:// address" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_of_a_pair_is_no_credential(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give("file", tmp_path, server, monkeypatch)  # which is not what was meant
    monkeypatch.setenv(name, SECRET)
    with pytest.raises(UsageError, match=r"is missing from the environment, while its other half is set") as caught:
        open_s3("s3://bucket/p")
    assert SECRET not in str(caught.value)


def test_a_file_that_is_none_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").write_text(f"aws_secret_access_key: {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "shared"))
    with pytest.raises(UsageError, match=r"/shared: not a file of credentials") as caught:
        open_s3("s3://bucket/p")
    assert SECRET not in str(caught.value)


def test_what_expires_is_asked_for_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give("web identity", tmp_path, server, monkeypatch)
    server.life_s = 5.0  # less than the client's margin
    store = open_s3("s3://bucket/p")
    store.list()
    store.list()
    assert server.tokens == ["given1", "given2"]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "InvalidIdentityToken", AccessError),
        (400, "Throttling", TransientError),
        (400, "IDPCommunicationError", TransientError),
        (403, "AccessDenied", AccessError),
        (408, "", TransientError),
        (429, "TooManyRequests", TransientError),
        (503, "", TransientError),
    ],
)
def test_an_identity_that_is_refused(
    status: int,
    code: str,
    kind: type[SplatClipError],
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give("web identity", tmp_path, server, monkeypatch)
    server.status, server.error = status, f"<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>"
    with pytest.raises(kind, match="the pod's identity") as caught:
        open_s3("s3://bucket/p").list()
    assert JWT not in str(caught.value)
    assert caught.value.__cause__ is None, "the text of the cause holds the token"


@pytest.mark.parametrize(("status", "there"), [(429, True), (503, True), (404, False), (401, False)])
def test_a_metadata_service_that_is_busy_is_one(
    status: int, there: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give("machine", tmp_path, server, monkeypatch)
    server.status = status
    if not there:
        with pytest.raises(UsageError, match="no credentials"):
            open_s3("s3://bucket/p")
        return
    store = open_s3("s3://bucket/p")
    with pytest.raises(TransientError, match=r"the machine's role .* cannot be had now"):
        store.list()
    server.status = 200
    assert store.list() == []


@pytest.mark.parametrize("slow", [1, 2])
def test_a_metadata_service_that_is_slow_is_one(
    slow: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give("machine", tmp_path, server, monkeypatch)
    monkeypatch.setattr(components.s3_credentials, "METADATA_TIMEOUTS_S", (0.05, 0.05, 5.0))
    server.waits = [0.3] * slow
    assert "the machine's role" in open_connection().credentials.source


def test_a_token_file_that_went_away(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give("web identity", tmp_path, server, monkeypatch)
    store = open_s3("s3://bucket/p")
    (tmp_path / "jwt").unlink()
    with pytest.raises(TransientError, match="cannot be had now"):
        store.list()
