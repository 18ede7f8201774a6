"""What tells of a run: its end, a new champion, a rollback; against a real MLflow server and a real webhook."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gates
import pytest
from conftest import ROOT
from hooks import Hook, listening
from kfp import dsl, local
from mlflow_server import MlflowServer

from components import FLOW, kfp_end, tracking, webhook
from components.errors import PermanentError
from components.local_run import LocalRun
from components.operations import PromoteParams, TrackingParams
from components.params import load_params
from components.registry import announced
from components.registry_calls import CHAMPION, Registry
from pipelines import rollback
from pipelines.train_eval import COMPONENTS

NOTIFY = {"allow_http": True, "timeout_s": 5.0, "kubeflow_url": "https://kubeflow.example/pipeline/"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def hook(server: MlflowServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Hook]:
    """A webhook; and the environment of a step in a cluster, with a registered model's name of the test's own."""
    for name in ("MLFLOW_RUN_ID", "KUBERNETES_SERVICE_HOST", "SPLATCLIP_LOCAL_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.setattr(gates, "MODEL", request.node.name.replace("[", "-").strip("]"))
    monkeypatch.setattr(webhook, "FIRST_WAIT_S", 0.01)
    with listening() as running:
        monkeypatch.setenv(webhook.VARIABLE, running.url)
        yield running


def told(hook: Hook) -> list[dict[str, Any]]:
    found = [body for _, body in hook.seen]
    hook.seen.clear()
    return found


def recorded(store: Path, run_id: str, name: str, error: Exception | None = None) -> None:
    """A step of a run in MLflow."""
    step = next(step for step in FLOW if step.name == name)
    info = tracking.run_info(TrackingParams(), run_id)
    try:
        with tracking.track_step(step, PromoteParams(), {}, str(store), info) as tracker:
            assert tracker.recorder is not None
            tracker.recorder.metrics("parent", {"acc1_splats": 0.5, "acc1_splats_low": 0.4, "acc1_splats_high": 0.6})
            if error is not None:
                raise error
    except PermanentError:
        pass


def test_the_end_of_a_run_that_failed(hook: Hook, server: MlflowServer, tmp_path: Path) -> None:
    recorded(tmp_path, "r1", "download")
    recorded(tmp_path, "r1", "splat_fit", PermanentError("bad input"))
    words = "see https://user:word@host/x?token=abc"
    kfp_end.close("FAILED", words, store=str(tmp_path), tracking={}, notify=NOTIFY, run_id="r1")
    (body,) = told(hook)
    link = body["links"].pop("mlflow")
    assert link.startswith(f"{server.uri}/#/experiments/")
    assert body == {
        "format": 1,
        "event": "finished",
        "pipeline": "train-eval",
        "environment": "dev",
        "run_id": "r1",
        "name": body["name"],
        "state": "FAILED",
        "failed_step": "splat_fit",
        "message": "see https://***@host/x?token=***",
        "scores": {"acc1_splats": {"value": 0.5, "interval": [0.4, 0.6]}},
        "model": {},
        "links": {"kubeflow": "https://kubeflow.example/pipeline/#/runs/details/r1"},
        "text": f"SplatCLIP (dev): {body['name']} FAILED at splat_fit: acc1_splats 0.5000 [0.4000, 0.6000]",
    }
    assert Registry("any").client.get_run(link.rpartition("/")[2]).info.status == "FAILED"


def test_a_word_that_tells_nothing_and_a_run_that_is_not_there(hook: Hook, tmp_path: Path) -> None:
    recorded(tmp_path, "r2", "promote")
    kfp_end.close("RUNNING", store=str(tmp_path), tracking={}, notify=NOTIFY, run_id="r2")
    (body,) = told(hook)
    assert (body["state"], body["failed_step"]) == ("FINISHED", "")
    kfp_end.close("SUCCEEDED", store=str(tmp_path), tracking={}, notify=NOTIFY, run_id="{{$.pipeline_job_uuid}}")
    (body,) = told(hook)
    assert (body["state"], body["name"], body["scores"]) == ("FINISHED", "", {})


def test_without_mlflow_the_end_is_told_all_the_same(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("SPLATCLIP_TRACKING_WAIT", "0")
    kfp_end.close("FAILED", "out of memory", store=str(tmp_path), tracking={}, notify=NOTIFY, run_id="r3")
    (body,) = told(hook)
    assert (body["state"], body["message"], body["run_id"]) == ("FAILED", "out of memory", "r3")
    monkeypatch.setenv("SPLATCLIP_TRACKING", "off")
    kfp_end.close("CANCELED", store=str(tmp_path), tracking={}, notify=NOTIFY, run_id="r3")
    assert told(hook)[0]["state"] == "KILLED"


def test_a_webhook_that_fails_fails_nothing(hook: Hook, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hook.answers = [500]
    recorded(tmp_path, "r4", "promote")
    kfp_end.close("SUCCEEDED", store=str(tmp_path), tracking={}, notify=NOTIFY, run_id="r4")
    assert len(told(hook)) == 3
    assert "the webhook at 127.0.0.1 was not told: it answered 500" in capsys.readouterr().err


def test_on_one_machine_the_failing_step_and_its_words_are_known(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLATCLIP_TRACKING", "off")
    run = LocalRun.start(tmp_path, run_id="here", out=tmp_path)
    with pytest.raises(PermanentError), run.step("splat_fit"):
        raise PermanentError("bad input")
    monkeypatch.setenv("SPLATCLIP_LOCAL_RUN", str(tmp_path))
    kfp_end.close("FAILED", store=str(tmp_path), tracking={}, notify=NOTIFY, run_id="another")
    (body,) = told(hook)
    assert (body["run_id"], body["state"], body["failed_step"]) == ("here", "FAILED", "splat_fit")
    assert body["message"] == "splat_fit: bad input"


def announce(version: int, store: Path, run_id: str) -> None:
    params = {"model_name": gates.MODEL}
    kfp_end.announce(version, store=str(store), params=params, tracking={}, notify=NOTIFY, run_id=run_id)


def test_a_champion_is_announced_once(hook: Hook, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The promote component's outputs are what the condition and the announcement take."""
    store = str(tmp_path / "store")
    given = gates.scored(store, 0.5)
    inputs = {name: dsl.Artifact(uri=f"{given[name]}/manifest.json") for name in ("teacher", "adapter", "scores")}
    outputs = {"package": dsl.Model(uri=str(tmp_path / "p")), "metrics": dsl.Metrics(uri=str(tmp_path / "m"))}
    alias = COMPONENTS["promote"].python_func(
        step="promote",
        run_id="r5",
        store=store,
        tracking={},
        params={"model_name": gates.MODEL},
        version=str(tmp_path / "version"),
        **inputs,
        **outputs,
    )
    assert (alias, (tmp_path / "version").read_text()) == ("champion", "1")
    hook.answers = [404, 200]
    announce(1, tmp_path, "r5")
    assert len(told(hook)) == 1
    assert announced(gates.MODEL, 1) == "", "nobody was told"
    hook.answers = [200]
    announce(1, tmp_path, "r6")
    (body,) = told(hook)
    assert (body["event"], body["run_id"]) == ("champion", "r6")
    assert body["model"] == {"model": gates.MODEL, "version": "1", "alias": "champion"}
    assert body["text"].startswith(f"SplatCLIP (dev): {gates.MODEL} version 1 is champion")
    announce(1, tmp_path, "r7")
    assert told(hook) == []
    assert announced(gates.MODEL, 1) == "r6"
    assert "version 1 was announced by run r6" in capsys.readouterr().err
    client = Registry(gates.MODEL).client
    (experiment,) = (one for one in client.search_experiments() if one.name == "splatclip/dev/train-eval")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`splatclip.run_id` = 'r6'")
    assert parent.data.tags["announce.version"] == "1"
    assert parent.data.tags["announce.model"] == gates.MODEL


def test_a_champion_that_is_gone_by_then_stops_nothing(
    hook: Hook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    announce(9, tmp_path, "r8")
    assert "announce: not recorded: MLflow refuses" in capsys.readouterr().err


def test_the_rollback_pipeline(hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Kubeflow's local runner; a pod that is started again takes no other champion back."""
    store = str(tmp_path / "store")
    for value in (0.5, 0.7, 0.9):
        gates.promote(store, value, seed=int(10 * value))
    registry = Registry(gates.MODEL)
    assert registry.find(alias=CHAMPION).version == "3"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"), raise_on_error=True)
    task = rollback.build(load_params(ROOT / "params.yaml"), local=True)
    task(promote={"model_name": gates.MODEL}, tracking={}, notify=NOTIFY)
    assert registry.find(alias=CHAMPION).version == "2"
    (body,) = told(hook)
    assert (body["event"], body["model"]) == ("rollback", {"model": gates.MODEL})
    assert "version 2 (acc1 0.7000 [0.6990, 0.7010]) is champion again; version 3" in body["message"]
    given: dict[str, Any] = {"params": {"model_name": gates.MODEL}, "tracking": {}, "notify": NOTIFY}
    for _ in range(2):
        line = kfp_end.rollback(**given, run_id="r9")
    assert "rolled back by this run already; version 1" in line
    assert registry.find(alias=CHAMPION).version == "1"
    with pytest.raises(SystemExit) as ended:
        kfp_end.rollback(**given, run_id="r10")
    assert ended.value.code == 2
