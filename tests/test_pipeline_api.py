"""Requests to the Kubeflow Pipelines API: what is tried again, what is said of what fails, and who this is to it."""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from kubeflow import Fault, Kubeflow
from kubeflow_contract import contract
from kubeflow_server import kubeflow

from components.errors import PermanentError, TransientError, UsageError
from pipelines import api as api_module
from pipelines.api import Api
from pipelines.connection import Connection, connect

VARIABLES = (
    "SPLATCLIP_KFP_HOST", "KF_PIPELINES_ENDPOINT", "SPLATCLIP_KFP_TOKEN", "SPLATCLIP_KFP_TOKEN_FILE",
    "KF_PIPELINES_SA_TOKEN_PATH", "SPLATCLIP_KFP_CA_FILE", "SPLATCLIP_KFP_NAMESPACE", "SPLATCLIP_KFP_COOKIE",
    "KUBERNETES_SERVICE_HOST",
)  # fmt: skip


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster in the environment, and short waits."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(api_module, "BACKOFF_S", 0.01)


@pytest.fixture
def server() -> Iterator[Kubeflow]:
    with kubeflow() as state:
        yield state


def listed(server: Kubeflow, **more: str) -> list[str]:
    api = Api(Connection(server.url, said="--host", **more))  # type: ignore[arg-type]
    return [run.run_id for run in api.pages(api.runs.run_service_list_runs, "runs")]


def test_the_contract_is_the_installed_clients() -> None:
    paths = {(route.method, route.path) for route in contract()}
    assert ("POST", "/apis/v2beta1/recurringruns/{recurring_run_id}:disable") in paths
    assert next(r for r in contract() if r.path == "/apis/v2beta1/runs" and r.method == "POST").body == "V2beta1Run"


@pytest.mark.parametrize("how", [503, 502, 429, 500, "drop", "lose"])
def test_what_fails_for_now_is_tried_again(server: Kubeflow, how: int | str) -> None:
    server.faults = [Fault("GET", "/runs", how, times=3)]
    assert listed(server) == []
    assert len(server.requests) == 4


def test_it_is_not_tried_for_ever(server: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATCLIP_KFP_DEADLINE_S", "2")
    server.faults = [Fault("GET", "/runs", 503, times=10**6)]
    began = time.monotonic()
    with pytest.raises(
        TransientError, match=r"cannot answer now \(HTTP 503\): fault 503; try again later \(tried \d+ ti"
    ):
        listed(server)
    assert time.monotonic() - began < 20
    monkeypatch.setenv("SPLATCLIP_KFP_DEADLINE_S", "soon")
    with pytest.raises(UsageError, match="SPLATCLIP_KFP_DEADLINE_S='soon'"):
        listed(server)


def test_a_server_that_is_slow_is_not_waited_for(server: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATCLIP_KFP_DEADLINE_S", "2")
    server.faults = [Fault("GET", "/runs", "slow")]
    assert listed(server) == []
    server.faults = [Fault("GET", "/runs", "slow", times=99)]
    began = time.monotonic()
    with pytest.raises(TransientError, match="no answer in time"):
        listed(server)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("html", "no Kubeflow Pipelines API there: it answers with a web page, perhaps one to log in on"),
        ("to", "sends on to https://login.example/oauth"),
        ("garbage", "an answer that is not the API's"),
        (404, r"not there \(HTTP 404\): fault 404"),
        (400, r"refuses \(HTTP 400\): fault 400"),
    ],
)
def test_what_will_not_be_better_is_said_at_once(server: Kubeflow, how: int | str, said: str) -> None:
    server.faults = [Fault("GET", "/runs", how, times=99)]
    with pytest.raises(PermanentError, match=said):
        listed(server)
    assert len(server.requests) == 1


def test_the_token_is_sent_and_never_told(server: Kubeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = "good-token"
    with pytest.raises(PermanentError, match=r"wants a token \(HTTP 401\).*SPLATCLIP_KFP_TOKEN"):
        listed(server)
    monkeypatch.setenv("SPLATCLIP_KFP_TOKEN", "b4d-one")
    api = Api(connect(server.url))
    with pytest.raises(PermanentError, match="does not accept the token") as caught:
        api.call(api.runs.run_service_list_runs)
    assert "b4d-one" not in str(caught.value) + repr(api.connection)
    monkeypatch.delenv("SPLATCLIP_KFP_TOKEN")
    file = tmp_path / "token"
    file.write_text("stale\n")
    api = Api(connect(server.url, token_file=str(file)))
    with pytest.raises(PermanentError, match="401"):
        api.call(api.runs.run_service_list_runs)
    file.write_text("good-token\n")  # Kubernetes changes it while it is in use
    assert api.call(api.runs.run_service_list_runs).runs == []
    server.forbidden = True
    with pytest.raises(PermanentError, match=r"not allowed \(HTTP 403\): User 'x'.*--namespace"):
        api.call(api.runs.run_service_list_runs)
    file.unlink()
    with pytest.raises(UsageError, match="cannot read the token: No such file"):
        api.call(api.runs.run_service_list_runs)


@pytest.mark.parametrize("secret", ["abc\ndef", "\u201cabcdef\u201d", "abc\x00def", "abc\tdef"])
def test_a_secret_that_no_header_can_hold_is_refused_and_not_told(
    server: Kubeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    file = tmp_path / "token"
    file.write_text("good")
    api = Api(connect(server.url, token_file=str(file)))
    file.write_text(secret)

    def by_variable(name: str) -> None:
        monkeypatch.setenv(name, secret)
        try:
            list_with(Api(connect(server.url)))
        finally:
            monkeypatch.delenv(name)

    def list_with(api: Api) -> None:
        api.call(api.runs.run_service_list_runs)

    tries: list[tuple[str, Callable[[], None]]] = [(str(file), lambda: list_with(api))]
    if "\0" not in secret:  # which no variable can hold
        tries += [(name, partial(by_variable, name)) for name in ("SPLATCLIP_KFP_TOKEN", "SPLATCLIP_KFP_COOKIE")]
    for where, attempt in tries:
        with pytest.raises(UsageError) as caught:
            attempt()
        said = str(caught.value)
        assert said.startswith(f"{where}: character ")
        assert "def" not in said
    assert not server.requests


def test_a_wrong_address_is_said() -> None:
    for host in ("ftp://x", "http://", "https://u:p@host", "http://h:99999", "https://h/?a=b"):
        with pytest.raises(UsageError, match="--host"):
            connect(host)
    assert connect("kfp.example.org/pipeline/").host == "https://kfp.example.org/pipeline"
    with pytest.raises(
        PermanentError, match=r"nothing says where .*; give --host or SPLATCLIP_KFP_HOST \(no access to"
    ):
        connect()
    with pytest.raises(UsageError, match="no such file"):
        connect("https://host", ca_file="missing.pem")


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "https://one.example")
    assert connect().host == "https://one.example"
    monkeypatch.setenv("SPLATCLIP_KFP_HOST", "https://two.example")
    assert (connect().host, connect().said) == ("https://two.example", "SPLATCLIP_KFP_HOST")
    monkeypatch.setenv("SPLATCLIP_KFP_NAMESPACE", "team")
    assert (connect().namespace, connect().pods) == ("team", "team")
    monkeypatch.delenv("SPLATCLIP_KFP_HOST")
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert connect().host == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"


def test_a_token_does_not_cross_a_network_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATCLIP_KFP_TOKEN", "t")
    with pytest.raises(UsageError, match="in the clear"):
        connect("http://kfp.example.org")
    for near in ("http://localhost:8080", "http://ml-pipeline.kubeflow.svc:8888", "https://kfp.example.org"):
        assert connect(near).secret() == "t"


def test_a_kubeconfig_leads_to_the_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: k, user: u}}],"
        " clusters: [{name: k, cluster: {server: 'https://k8s.example:6443'%s}}],"
        " users: [{name: u, user: {token: abc}}]}"
    )
    path = tmp_path / "config"
    monkeypatch.setenv("KUBECONFIG", str(path))
    path.write_text(text % "")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    found = connect()
    assert found.host == "https://k8s.example:6443/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
    assert found.secret() == "abc"
    path.write_text(text % ", insecure-skip-tls-verify: true")
    with pytest.raises(UsageError, match="insecure-skip-tls-verify"):
        connect()


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransientError, match=r"nothing listens there \(connection refused\); check --host"):
        list_at("http://127.0.0.1:9")
    with pytest.raises((PermanentError, TransientError), match="the host's name"):
        list_at("http://no-such-host.invalid")


def list_at(host: str, **more: str) -> None:
    api = Api(Connection(host, said="--host", **more))  # type: ignore[arg-type]
    api.call(api.runs.run_service_list_runs)


def test_certificates_are_checked(server: Kubeflow, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with kubeflow(context) as secure:
        with pytest.raises(
            PermanentError, match=r"its certificate is not trusted \(self-signed certificate\).*--ca-file"
        ):
            list_at(secure.url)
        list_at(secure.url, ca_file=str(certificate))
        with pytest.raises(PermanentError, match="certificate is not trusted"):  # of another name
            list_at(secure.url.replace("localhost", "127.0.0.1"), ca_file=str(certificate))
    with pytest.raises(PermanentError, match="speaks http, not https"):
        list_at(server.url.replace("http:", "https:"))


def test_lists_come_in_pages(server: Kubeflow) -> None:
    server.runs = {
        str(n): {"run_id": str(n), "display_name": f"r{n}", "created_at": server.now(), "experiment_id": "e"}
        for n in range(205)
    }
    assert len(listed(server)) == 205
    assert len(server.requests) == 3
