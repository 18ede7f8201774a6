"""Parts of tracking that need no server: names, curves of resumed work, system figures, what a refusal means."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from s3 import FaultyServer, moto_server, new_bucket

from components import FLOW, provenance, tracking, tracking_outbox, tracking_system
from components.config import DownloadParams, SplatFitParams
from components.errors import Interrupted
from components.operations import TrackingParams
from components.runner import run_step
from components.series import listening
from components.signals import interrupted_by_signals
from components.splat_fit.stage import run as splat_fit
from components.tracking_client import fingerprint, is_permanent, reason
from components.tracking_figures import curve, finite, flat, params_of
from components.tracking_journal import Journal, leftovers, read_journal
from components.tracking_outbox import Outbox
from components.tracking_system import SystemMonitor, forget_peak, gpu_values, gpus_held, peak_memory

STEPS = {step.name: step for step in FLOW}
SMALL = DownloadParams(image_size=16, num_train=40, num_val=0, num_test=8, shard_size=16)
FIT = SplatFitParams(num_gaussians=6, num_iters=5, threads=1)


def test_figures_and_params_as_mlflow_takes_them() -> None:
    values = {"image_retrieval_recall@5_splats": 1, "a": {"b": 2.5, "c": "text"}, "flag": True, "list": [1]}
    assert flat(values) == {"image_retrieval_recall_at_5_splats": 1.0, "a.b": 2.5}
    params = params_of(FIT, "splat_fit.")
    assert params["splat_fit.recipe"] == "default"
    assert params["splat_fit.num_gaussians"] == "6"


def test_a_resumed_fit_has_the_whole_curve(tmp_path: Path) -> None:
    store = str(tmp_path)
    images = run_step(STEPS["download"], SMALL, {}, store, None).report.url
    live: list[tuple[str, int, dict[str, float]]] = []

    def sink(phase: str, step: int, values: object) -> None:
        live.append((phase, step, dict(values)))  # type: ignore[call-overload]

    with listening(sink):
        whole = splat_fit(FIT, images=images, store=store)
    (tmp_path / whole.manifest.path / "manifest.json").unlink()
    last = max((tmp_path / whole.manifest.path / "_done").iterdir())
    last.unlink()
    undisturbed, live[:] = [(phase, step, v["psnr_db"]) for phase, step, v in live], []
    with listening(sink):
        resumed = splat_fit(FIT, images=images, store=store)
    told = {(phase, step) for phase, step, _ in live}
    assert len(told) == 1
    rest = [(phase, step, v["psnr_db"]) for phase, step, v in curve(resumed, told)]
    assert rest + [(phase, step, v["psnr_db"]) for phase, step, v in live] == undisturbed
    assert [step for _, step, _ in curve(resumed, ())] == [step for _, step, _ in undisturbed]


@pytest.mark.parametrize("answer", [(500, b"{}"), (404, b"<html>not here</html>"), (200, b"hello"), (503, b"")])
def test_a_server_that_is_not_mlflow_or_not_well_costs_nothing(
    answer: tuple[int, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultyServer() as server:
        server.answer = lambda number, method: answer
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
        monkeypatch.setenv("SPLATCLIP_TRACKING_WAIT", "0.5")
        info = tracking.run_info(TrackingParams(), "kubeflow-id")
        started = time.monotonic()
        run_step(STEPS["download"], SMALL, {}, str(tmp_path), info)
        assert time.monotonic() - started < 10
    (name,) = leftovers(str(tmp_path))
    journal, live = read_journal(str(tmp_path), name)
    assert not live
    assert journal.ops[-1] == {**journal.ops[-1], "op": "end", "status": "FINISHED"}
    assert not journal.refused
    said = capsys.readouterr().err
    assert "is kept in" in said
    assert "answers again" not in said


def test_a_store_that_cannot_be_written_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.setenv("SPLATCLIP_TRACKING_WAIT", "0.2")
    (tmp_path / "file").write_bytes(b"")
    tracking.close_run(tracking.run_info(TrackingParams()), str(tmp_path / "file"), "FINISHED")
    assert "could be neither delivered (connection refused) nor kept" in capsys.readouterr().err


@pytest.fixture
def slow_mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loading MLflow takes as long as the test."""
    loaded = threading.Event()

    def load(uri: str) -> None:
        loaded.wait(20)
        raise OSError("away")

    monkeypatch.setattr(tracking_outbox, "Delivery", load)
    yield
    loaded.set()


def test_a_stop_while_it_waits_leaves_what_is_recorded_in_the_store(
    slow_mlflow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_outbox, "EARLY_S", 30.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:11")
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.setenv("SPLATCLIP_TRACKING_WAIT", "60")
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    before = time.monotonic()
    with pytest.raises(Interrupted), interrupted_by_signals():
        tracking.close_run(tracking.run_info(TrackingParams()), str(tmp_path), "FINISHED")
    assert time.monotonic() - before < 10
    (name,) = leftovers(str(tmp_path))
    assert not read_journal(str(tmp_path), name)[1]  # whole: the next command delivers it at once


def test_a_kill_while_mlflow_is_loaded_loses_nothing(
    slow_mlflow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_outbox, "EARLY_S", 0.1)
    journal = Journal(str(tmp_path), "target", ready=True)
    journal.add("run", **{"as": "step"})
    Outbox("http://127.0.0.1:9").add(journal)
    deadline = time.monotonic() + 10
    while not leftovers(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert leftovers(str(tmp_path)) == [journal.name]
    journal.delivered(1)
    journal.drop()
    journal.keep()
    assert leftovers(str(tmp_path)) == []


def test_a_journal_keeps_what_is_not_delivered(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "target", ready=True)
    journal.add("run", **{"as": "step"})
    journal.log("step", metrics=[("m", float(i), i, i) for i in range(1000)], params={str(i): "x" for i in range(100)})
    journal.done = 2
    journal.keep()
    found, live = read_journal(str(tmp_path), journal.name)
    assert live
    assert [op["op"] for op in found.ops] == ["run", "log", "log", "log", "log"]
    assert sum(len(op.get("metrics", ())) for op in found.ops) == 600
    assert (found.id, found.target) == (journal.id, "target")


def test_gpus_as_nvidia_smi_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, 35, 1000, 4000, 250.5'\necho '1, [N/A], 10, 4000, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    values = gpu_values()
    assert values["system/gpu_0_utilization_percentage"] == 35
    assert values["system/gpu_0_memory_usage_percentage"] == 25
    assert values["system/gpu_0_power_usage_watts"] == 250.5
    assert "system/gpu_1_utilization_percentage" not in values
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert gpus_held("cpu") == gpus_held("") == 0
    assert gpus_held("cuda", "cuda") == 1
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert gpus_held("cpu") == 2  # a pod keeps all of its GPUs from others, whatever it does


def test_system_figures_are_taken_at_the_start_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_system, "INTERVAL_S", 0.1)
    told: list[tuple[int, dict[str, float]]] = []
    monitor = SystemMonitor(lambda step, values: told.append((step, values)))
    monitor.start()
    monitor.stop()
    assert [step for step, _ in told] == list(range(len(told)))
    assert told
    assert told[-1][1]["system/process_memory_megabytes"] > 10
    forget_peak()
    before = peak_memory()["peak_memory_megabytes"]
    block = bytearray(os.urandom(64 << 20))
    assert peak_memory()["peak_memory_megabytes"] - before > 50
    del block


def test_fingerprints_hold_no_credentials() -> None:
    assert fingerprint("https://me:secret@host/x/") == fingerprint("https://host/x") != fingerprint("https://host/y")


def test_provenance_of_an_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", "abc123-dirty")
    monkeypatch.setenv("SPLATCLIP_IMAGE_DIGEST", "sha256:1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_bytes(b"")
    found = tracking.provenance(kfp_run_id="k")
    assert (found["git.sha"], found["git.dirty"], found["image.digest"]) == ("abc123", "true", "sha256:1")
    assert found["dvc.hash"].startswith("e3b0c442")
    assert found["kfp.run_id"] == "k"
    assert found["data.hash"] == "none"
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", "abc123")
    monkeypatch.delenv("SPLATCLIP_IMAGE_DIGEST")
    (tmp_path / "dvc.lock").unlink()
    found = tracking.provenance()
    assert [found[name] for name in ("git.dirty", "image.digest", "dvc.hash")] == ["false", "none", "none"]


def test_provenance_of_a_checkout_leaves_it_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPLATCLIP_GIT_SHA", raising=False)
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    assert provenance.git_version() == ("none", "none")

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y", *words], cwd=tmp_path, check=True)

    (tmp_path / "file").write_text("one")
    git("init", "-q")
    git("add", "file")
    git("commit", "-qm", "one")
    os.utime(tmp_path / "file", (1, 1))  # what git would note down in its index
    before = (tmp_path / ".git/index").read_bytes()
    assert provenance.git_version()[1] == "false"
    assert (tmp_path / ".git/index").read_bytes() == before
    (tmp_path / "file").write_text("two")
    assert provenance.git_version()[1] == "true"


def test_only_an_answer_shows_that_the_server_is_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outbox = Outbox("http://127.0.0.1:9")
    outbox._delivery = tracking_outbox.Delivery(outbox.uri)
    outbox._stores.add(str(tmp_path))
    outbox.away = "connection refused"
    outbox._round()  # nothing to deliver: nobody is asked
    assert outbox.away
    assert "answers again" not in capsys.readouterr().err


def test_what_mlflow_means() -> None:
    said = "API request to http://me:secret@host/x failed with error code 404 != 200. Response body: '<html>'"
    proxy = MlflowException(said, error_code=RESOURCE_DOES_NOT_EXIST)
    assert not is_permanent(proxy)
    assert is_permanent(MlflowException("No run", error_code=RESOURCE_DOES_NOT_EXIST))
    assert "http://host/x" in reason(proxy)
    assert "secret" not in reason(proxy)
    assert finite({"a": float("nan"), "b": float("inf"), "c": 1.0}) == {"c": 1.0}


def test_a_journal_in_a_bucket() -> None:
    with moto_server():
        store = new_bucket()
        journal = Journal(store, "target", ready=True)
        journal.add("run", **{"as": "step"})
        journal.keep()
        journal.refused.append(({"op": "end"}, "why"))
        assert journal.put_refused().startswith(f"{store}/_tracking/refused/")
        assert leftovers(store) == [journal.name]
        assert read_journal(store, journal.name)[0].ops == journal.ops
        journal.drop()
        assert leftovers(store) == []


def test_off_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATCLIP_TRACKING", "off")
    assert tracking.run_info(TrackingParams()) is None
    with tracking.track_step(STEPS["download"], SMALL, {}, str(tmp_path), None) as tracker:
        assert tracker.tags["kfp.run_id"] == "none"
        assert tracking.current_run_id(1) is None
