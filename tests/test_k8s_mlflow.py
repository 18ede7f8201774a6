"""A real MLflow server with the settings of k8s/: whom it answers, and that its probes need no name."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from manifests import Object, find
from mlflow_server import MlflowServer


def status(server: MlflowServer, path: str, host: str, body: bytes | None = None) -> int:
    headers = {"Host": host, "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(server.uri + path, body, headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.full
def test_mlflow_answers_to_the_services_names_and_to_no_other(
    rendered: dict[str, list[Object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (container,) = find(rendered["base"], "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]:  # but its database and its user
        if "value" in variable and variable["name"] not in {"MLFLOW_BACKEND_STORE_URI", "HOME", "USER"}:
            monkeypatch.setenv(variable["name"], variable["value"])
    address = find(rendered["base"], "ConfigMap", "splatclip-tracking")["data"]["MLFLOW_TRACKING_URI"]
    probes = [container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    with MlflowServer(tmp_path / "mlflow") as server:
        for path in probes:
            assert status(server, path, "10.244.0.7:5000") == 200
        for host, expected in (
            (address.removeprefix("http://"), 200),
            ("mlflow.splatclip.svc:5000", 200),
            ("localhost:8080", 200),  # kubectl port-forward
            ("10.244.0.7:5000", 403),
            ("mlflow.evil.example:5000", 403),
        ):
            asked = status(server, "/api/2.0/mlflow/experiments/search", host, b'{"max_results": 1}')
            assert asked == expected, host
