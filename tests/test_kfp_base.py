"""What Kubeflow components share: trying again, exit codes, figures that Kubeflow can hold."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from mlflow.tracking import MlflowClient

from components import FLOW, kfp_end, kfp_workers, runner, tracking
from components.download import stage
from components.errors import Interrupted, PermanentError, SplatClipError, TransientError
from components.kfp_base import numbers
from components.local_run import BEGIN, END, LocalRun
from components.operations import PromoteParams, TrackingParams
from pipelines.quiet import StepLog
from pipelines.train_eval import COMPONENTS

PARAMS = {"num_train": 6.0, "num_val": 0.0, "num_test": 2.0, "image_size": 8.0}


def download(
    store: Path, step: str = "download", params: dict[str, Any] = PARAMS, **params_eval: Any
) -> dict[str, Any]:
    outputs = {"images": dsl.Dataset(uri=str(store / "images")), "metrics": dsl.Metrics(uri=str(store / "metrics"))}
    COMPONENTS["download"].python_func(
        step=step, run_id="1", store=str(store), tracking={}, params=params, params_eval=params_eval, **outputs
    )
    return outputs


def test_a_submission_that_changes_the_training_set_changes_the_evaluation_set(tmp_path: Path) -> None:
    """What is left out of download_eval is as in download: the same pictures, dealt the same way."""
    manifests = []
    for step in ("download", "download_eval"):
        outputs = download(tmp_path, step, PARAMS | {"seed": 7.0})
        manifests.append(Path(outputs["images"].path).read_bytes())
    assert manifests[0] == manifests[1]
    other = download(tmp_path, "download_eval", num_test=1.0)["images"]
    assert json.loads(Path(other.path).read_bytes())["params"]["num_test"] == 1


@pytest.mark.parametrize("step", ["download", "download_eval"])
def test_the_first_step_finds_what_is_wrong_between_the_two_sets(
    step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training pictures would be scored."""
    with pytest.raises(SystemExit) as ended:
        download(tmp_path, step, PARAMS | {"source": "folder", "path": str(tmp_path), "seed": 7.0}, seed=0.0)
    assert ended.value.code == 2
    assert "training pictures may be scored" in capsys.readouterr().err


def failing(monkeypatch: pytest.MonkeyPatch, *errors: SplatClipError) -> list[int]:
    """Let the stage fail with these before it works; the returned list grows by its calls."""
    calls: list[int] = []
    works = stage.run

    def run(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]
        return works(*args, **more)

    monkeypatch.delenv("SPLATCLIP_LOCAL_RUN", raising=False)
    monkeypatch.setattr(stage, "run", run)
    monkeypatch.setattr(runner, "FIRST_WAIT_S", 0.01)
    return calls


def test_what_fails_for_now_is_tried_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = failing(monkeypatch, TransientError("the store is away"), TransientError("still away"))
    outputs = download(tmp_path)
    assert len(calls) == 3
    assert Path(outputs["images"].path).read_bytes().startswith(b"{")
    assert outputs["metrics"].metadata["image_size"] == 8.0
    assert "download: the store is away; try 2 of 3" in capsys.readouterr().err


def test_then_the_process_ends_with_75(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = failing(monkeypatch, *(TransientError(f"away {number}") for number in range(9)))
    with pytest.raises(SystemExit) as ended:
        download(tmp_path)
    assert (ended.value.code, len(calls)) == (75, 3)
    assert capsys.readouterr().err.splitlines()[-1] == "download: away 2"


def test_what_fails_for_good_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = failing(monkeypatch, PermanentError("bad input"))
    with pytest.raises(SystemExit) as ended:
        download(tmp_path)
    assert (ended.value.code, len(calls)) == (42, 1)
    assert capsys.readouterr().err == "download: bad input\n"


def test_figures_are_flat_and_finite() -> None:
    values = {"a": 1, "b": {"c": 2.5, "d": {"e": -1}}, "nan": math.nan, "inf": math.inf, "yes": True, "text": "x"}
    assert dict(numbers(values)) == {"a": 1.0, "b.c": 2.5, "b.d.e": -1.0}


def test_a_log_passes_on_what_lies_between_the_marks_however_it_comes() -> None:
    text = f"noise\n    {BEGIN}\n    one\n        two\n    {END}\n    more noise\n"
    for size in (1, 7, len(text)):
        target = io.StringIO()
        log = StepLog(target)
        for start in range(0, len(text), size):
            log.write(text[start : start + size])
        assert target.getvalue() == "one\n    two\n"
        log.show_the_rest()
        assert target.getvalue() == "one\n    two\nnoise\n    more noise\n"


def test_a_log_hides_what_comes_after_a_step_that_was_killed() -> None:
    target = io.StringIO()
    StepLog(target).write(f"    {BEGIN}\n    one\n\n    two\n12:00:00.000 - INFO - failed\n    Traceback\n")
    assert target.getvalue() == "one\n\ntwo\n"


def test_a_stop_before_a_step_begins_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looked for the process before it could be found has left a mark, which it sees after that."""
    run = LocalRun.start(tmp_path, run_id="1", out=tmp_path)
    marked = property(lambda run: (run.folder / "step.pid").read_text() == str(os.getpid()))
    monkeypatch.setattr(LocalRun, "stopped", marked)
    with pytest.raises(SystemExit), run.step("download"):
        pytest.fail("it began")
    assert not (tmp_path / "download.begun").exists()


def test_a_step_stops_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    """Its runner was killed."""
    runner = subprocess.Popen([sys.executable, "-c", ""])
    runner.wait()
    run = replace(LocalRun.start(tmp_path, run_id="1", out=tmp_path), runner=runner.pid)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"), run.step("download"):
        time.sleep(30)
    assert isinstance(run.error(), Interrupted)
    assert (run.broken(), list(tmp_path.glob("step.*"))) == ("download", [])


def test_without_kubeflows_run_id_no_two_runs_become_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An old Kubeflow passes the placeholder on as it stands."""
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    info = kfp_workers.info_of({}, dsl.PIPELINE_JOB_ID_PLACEHOLDER)
    assert info is not None
    assert (info.id, info.kubeflow) == ("", False)
    assert "recorded by itself" in capsys.readouterr().err
    known = kfp_workers.info_of({"environment": "prod"}, "7-7")
    assert known is not None
    assert (known.id, known.kubeflow, known.params.environment) == ("7-7", True, "prod")


@pytest.fixture
def recorded(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow in a database that the tests share, as a step in a cluster finds it."""
    for name in ("MLFLOW_RUN_ID", "KUBERNETES_SERVICE_HOST", "SPLATCLIP_LOCAL_RUN"):
        monkeypatch.delenv(name, raising=False)
    uri = f"sqlite:///{tmp_path_factory.getbasetemp()}/ends.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    return MlflowClient(uri)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
@pytest.mark.parametrize(
    ("state", "done", "status"),
    [
        *((word, "download", "FINISHED") for word in ("SUCCEEDED", "COMPLETE", "Cached")),
        *((word, "download", "KILLED") for word in ("CANCELED", "CANCELLED")),
        *((word, "promote", "FAILED") for word in ("FAILED", "ERROR")),
        *((word, "promote", "FINISHED") for word in ("RUNNING", "UNKNOWN", "")),
        ("RUNNING", "download", "FAILED"),
    ],
)
def test_kubeflows_words_for_the_end(
    recorded: MlflowClient, tmp_path: Path, state: str, done: str, status: str
) -> None:
    run_id = f"{state}-{done}"
    step = next(step for step in FLOW if step.name == done)
    with tracking.track_step(step, PromoteParams(), {}, str(tmp_path), tracking.run_info(TrackingParams(), run_id)):
        pass
    kfp_end.close(state, store=str(tmp_path), tracking={}, notify={}, run_id=run_id)
    (experiment,) = recorded.search_experiments(filter_string="name = 'splatclip/dev/train-eval'")
    runs = recorded.search_runs([experiment.experiment_id], f"tags.`splatclip.run_id` = '{run_id}'")
    assert [run.info.status for run in runs] == [status]
