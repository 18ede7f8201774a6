"""What the tests of runs on a cluster share: a package, runs that go through states, no cluster in the environment."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from components.config import Params
from components.params import load_params
from pipelines import api as api_module
from pipelines import pods as pods_module
from pipelines.versions import Package, make_package

SHA = "5" * 40
DIGEST = "registry.example/splatclip-python@sha256:" + "0" * 64
STORE = "s3://bucket/splats"
VARIABLES = (
    "SPLATCLIP_KFP_HOST", "KF_PIPELINES_ENDPOINT", "SPLATCLIP_KFP_TOKEN", "SPLATCLIP_KFP_TOKEN_FILE",
    "KF_PIPELINES_SA_TOKEN_PATH", "SPLATCLIP_KFP_CA_FILE", "SPLATCLIP_KFP_NAMESPACE", "SPLATCLIP_KFP_COOKIE",
    "SPLATCLIP_KFP_UI", "SPLATCLIP_KFP_SYSTEM_NAMESPACE", "SPLATCLIP_KUBE_CONTEXT", "SPLATCLIP_KFP_DEADLINE_S",
    "KF_PIPELINES_UI_ENDPOINT", "KUBERNETES_SERVICE_HOST", "SPLATCLIP_IMAGE", "SPLATCLIP_STORE",
)  # fmt: skip


def no_cluster(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Take every cluster out of the environment, give the code a commit, and make waits short."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    point_to(monkeypatch, folder / "no-kubeconfig")
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", SHA)
    monkeypatch.setattr(api_module, "BACKOFF_S", 0.01)
    monkeypatch.setattr(pods_module, "BACKOFF_S", 0.01)


def point_to(monkeypatch: pytest.MonkeyPatch, kubeconfig: Path) -> None:
    """Make this the kubeconfig; the Kubernetes client reads the variable when it is imported."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))


@cache
def params(*overrides: str) -> Params:
    """The default profile."""
    return load_params(ROOT / "params.yaml", overrides)


def package(version: str = SHA, image: str = DIGEST) -> Package:
    """The pipeline of a commit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLATCLIP_GIT_SHA", version)
        return make_package(params(), image)


def to(state: str, **steps: str) -> Callable[[dict[str, Any]], None]:
    """A run goes to this state, and its steps (by their tasks' names, with - for _) to theirs."""

    def change(run: dict[str, Any]) -> None:
        run["state"] = state
        begun = "2026-11-29T07:00:00Z"
        tasks = [
            {"display_name": name, "state": "SUCCEEDED", "task_id": name, "start_time": begun}
            for name in ("root", "root-driver", "exit-handler-1", "executor", "download-driver")
        ]
        for at, (name, now) in enumerate(steps.items()):
            tasks.append(
                {
                    "display_name": name.replace("_", "-"),
                    "task_id": name,
                    "state": now,
                    "start_time": f"2026-11-29T07:{at:02d}:00Z",
                    "end_time": "1970-01-01T00:00:00Z" if now == "RUNNING" else f"2026-11-29T08:{at:02d}:05Z",
                }
            )
        run["run_details"] = {"task_details": tasks}
        if state in ("SUCCEEDED", "FAILED", "CANCELED"):
            run["finished_at"] = "2026-11-29T09:00:00Z"

    return change
