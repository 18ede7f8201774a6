"""A training step in several processes of one pod, as a Kubeflow component: two on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from flows import PARAMS, make_flow
from kfp import dsl

from components import runner
from components.errors import UsageError
from components.kfp_workers import PROCESSES, processes
from components.manifest import Manifest
from components.processes import TRAINING
from pipelines.train_eval import COMPONENTS

SECTION = asdict(replace(PARAMS, stage2_epochs=1, stage2_learning_rates=(1e-3,), control_with_stage1=False))
# what a pod runs: the component's function on artifacts, in a process of its own
POD = """
import json, sys
from kfp import dsl
from pipelines.train_eval import COMPONENTS
given = json.loads(sys.argv[1])
inputs = {name: dsl.Artifact(uri=path) for name, path in given.pop("inputs").items()}
outputs = {"adapter": dsl.Model(uri=given["out"]), "metrics": dsl.Metrics(uri=given.pop("out") + ".metrics")}
COMPONENTS["train_adapter"].python_func(step="train_adapter", run_id="7-7", tracking={}, **given, **inputs, **outputs)
"""


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """train_adapter's inputs, by the manifests that a pod finds."""
    made = make_flow(tmp_path_factory.mktemp("flow"))
    return {name: f"{url}/manifest.json" for name, url in made.items() if name != "store"}


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SPLATCLIP_LOCAL_RUN", raising=False)
    monkeypatch.setenv(PROCESSES, "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return


def component(flow: dict[str, str], folder: Path, **changes: Any) -> dict[str, Any]:
    outputs = {"adapter": dsl.Model(uri=str(folder / "out")), "metrics": dsl.Metrics(uri=str(folder / "metrics"))}
    inputs = {name: dsl.Artifact(uri=path) for name, path in flow.items()}
    params = json.loads(json.dumps(SECTION | changes), parse_int=float)
    store = str(Path(flow["teacher"]).parents[2])
    COMPONENTS["train_adapter"].python_func(
        step="train_adapter", run_id="7-7", store=store, tracking={}, params=params, **inputs, **outputs
    )
    return outputs


@pytest.mark.full
def test_two_processes_train_one_model(flow: dict[str, str], tmp_path: Path) -> None:
    outputs = component(flow, tmp_path)
    manifest = Path(outputs["adapter"].path).read_bytes()
    made = Path(outputs["adapter"].metadata["url"])
    assert (made / "manifest.json").read_bytes() == manifest
    assert outputs["adapter"].metadata["kfp.run_id"] == "none"  # tracking is off
    figures = Manifest.from_bytes(manifest, "it").metrics
    assert outputs["metrics"].metadata["trained_share"] == figures["trained_share"]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
def test_one_of_the_processes_records_the_step(
    flow: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    outputs = component(flow, tmp_path, seed=3)
    assert outputs["adapter"].metadata["kfp.run_id"] == "7-7"
    client = MlflowClient(uri)
    (experiment,) = (one for one in client.search_experiments() if one.name == "splatclip/dev/train-eval")
    runs = client.search_runs([experiment.experiment_id])
    nested = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [(run.info.run_name, run.info.status) for run in nested] == [("train_adapter", "FINISHED")]
    assert [run.data.tags["splatclip.run_id"] for run in runs if run not in nested] == ["7-7"]


@pytest.mark.full
def test_what_the_processes_end_with_the_pod_ends_with(
    flow: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        component(flow, tmp_path, batch_size=1)
    assert ended.value.code == 2
    words = capfd.readouterr().err
    assert "a batch of 1 cannot be dealt to 2 processes" in words
    assert words.splitlines()[-1] == (
        "train_adapter: its 2 processes ended with exit code 2; what the first of them said stands above"
    )


@pytest.mark.full
def test_what_fails_for_now_all_begin_again(
    flow: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("SPLATCLIP_STORE_DEADLINE_S", "1")
    inputs = {name: dsl.Artifact(uri=path) for name, path in flow.items()}
    outputs = {"adapter": dsl.Model(uri=str(tmp_path / "out")), "metrics": dsl.Metrics(uri=str(tmp_path / "m"))}
    with pytest.raises(SystemExit) as ended:
        COMPONENTS["train_adapter"].python_func(
            step="train_adapter", run_id="7-7", store="s3://bucket/store", tracking={}, params={}, **inputs, **outputs
        )
    assert ended.value.code == 75
    assert capfd.readouterr().err.count("its 2 processes ended with exit code 75") == 3


@pytest.mark.full
def test_a_stopping_pod_saves_and_the_next_goes_on(flow: dict[str, str], tmp_path: Path) -> None:
    """Argo sends SIGTERM to the pod's whole group of processes; they hear it once, and the next pod goes on."""
    store = Path(flow["teacher"]).parents[2]
    params = {**SECTION, "stage1_cls_epochs": 300, "seed": 7}
    told = json.dumps({"store": str(store), "params": params, "inputs": flow, "out": str(tmp_path / "out")})
    before = set(store.glob("train_adapter/*/_checkpoint/*"))
    pod = subprocess.Popen(
        [sys.executable, "-c", POD, told], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (new := set(store.glob("train_adapter/*/_checkpoint/stage1_cls*")) - before):
        assert pod.poll() is None, pod.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(pod.pid, signal.SIGTERM)
    _, err = pod.communicate(timeout=60)
    assert pod.returncode == 143, err
    assert err.splitlines()[-1].startswith("train_adapter: its 2 processes ended with exit code 143")
    assert "run the same command again to go on" in err
    assert new


def test_only_what_can_share_its_work_runs_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {stage: processes(stage) for stage in (*TRAINING, "splat_fit")} == {
        "train_teacher": 2,
        "train_adapter": 2,
        "splat_fit": 1,
    }
    for text in ("two", "0", "-1"):
        monkeypatch.setenv(PROCESSES, text)
        with pytest.raises(UsageError, match=f"{PROCESSES} is '{text}'"):
            processes("train_adapter")
    monkeypatch.setenv(PROCESSES, "")
    assert processes("train_adapter") == 1
