"""The pipeline on this machine, through Kubeflow's local runner, at a size of seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hooks import Hook, listening
from kfp import dsl

from components import FLOW, runner
from components.config import as_dict
from components.errors import TransientError
from components.params import load_params
from components.zero_shot_eval import page as evaluation
from pipelines.train_eval import COMPONENTS

TINY = str(ROOT / "tests/tiny.yaml")
STEPS = [step.name for step in FLOW]
FITTING = ("--set", "splat_fit.num_iters=8000")  # a second a shard; there are five


def start(*args: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "components", *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    process = start(*args, **env)
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def paths(folder: Path, out: str = "out") -> tuple[str, ...]:
    return ("--params", TINY, "--store", f"{folder}/store", "--out", f"{folder}/{out}")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("local")
    scratch = folder / "tmp"
    scratch.mkdir()
    result = run("pipeline", "run-local", *paths(folder), TMPDIR=str(scratch))
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result


def test_it_ends_like_a_run(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, result = first
    assert {path.stem for path in (folder / "out/manifests").iterdir()} == {*STEPS}
    assert (folder / "out/contact_sheet.png").is_file()
    assert (folder / "out/report.html").read_bytes().startswith(b"<!doctype html>")
    assert "RGB control" in result.stdout
    assert result.stdout.splitlines()[-1] == f"report: {folder}/out/report.html"


def test_a_component_fills_its_artifacts(
    first: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cluster: manifests in, a manifest out, with its address, tags, figures and page."""
    monkeypatch.delenv("SPLATCLIP_LOCAL_RUN", raising=False)
    folder, _ = first
    section = json.loads(json.dumps(as_dict(load_params(TINY))["zero_shot_eval"]), parse_int=float)
    inputs = {}
    for item, source in next(step for step in FLOW if step.name == "zero_shot_eval").inputs.items():
        inputs[item] = dsl.Artifact(uri=str(folder / f"out/manifests/{source}.json"))
    scores, metrics, page = (kind(uri=str(tmp_path / kind.__name__)) for kind in (dsl.Artifact, dsl.Metrics, dsl.HTML))
    outputs = {"scores": scores, "metrics": metrics, "page": page}
    common = {"step": "zero_shot_eval", "run_id": "7-7", "store": str(folder / "store"), "tracking": {}}
    errors = [TransientError("the store is away")]
    renders = evaluation.report_html

    def render(*args: Any, **more: Any) -> bytes:  # the store holds what the page shows: what passes is waited for
        if errors:
            raise errors.pop()
        return renders(*args, **more)

    monkeypatch.setattr(evaluation, "report_html", render)
    monkeypatch.setattr(runner, "FIRST_WAIT_S", 0.01)
    COMPONENTS["zero_shot_eval"].python_func(**common, params=section, **inputs, **outputs)
    manifest = (folder / "out/manifests/zero_shot_eval.json").read_bytes()
    assert Path(scores.path).read_bytes() == manifest
    assert Path(scores.metadata["url"], "manifest.json").read_bytes() == manifest
    tags = {"git.sha", "git.dirty", "dvc.hash", "data.hash", "params.hash", "image.digest", "kfp.run_id"}
    for artifact in outputs.values():
        assert tags <= {*artifact.metadata}
    figures = json.loads(manifest)["metrics"]
    assert metrics.metadata["psnr_db_mean"] == figures["psnr_db_mean"]
    assert metrics.metadata["num_pictures"] == 32
    assert Path(page.path).read_bytes().startswith(b"<!doctype html>")
    assert not json.dumps(metrics.metadata).count("NaN")


def test_its_log_is_the_steps_own(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    lines = first[1].stderr.splitlines()
    ends = [line for line in lines if ": " in line and line.partition(":")[0] in STEPS and "/store/" in line]
    assert [line.partition(":")[0] for line in ends] == STEPS
    assert all(len(line) - len(line.lstrip()) == 0 for line in lines)
    assert not any(word in first[1].stderr for word in ("KFP", "Executing task", "Warning", "\x1e"))


def test_it_leaves_nothing_outside_store_and_out(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert list((first[0] / "tmp").iterdir()) == []


def test_run_finds_its_work(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The same keys: what one of the two ways has done, the other finds; ints came through Kubeflow as ints."""
    folder, _ = first
    result = run("run", *paths(folder, "again"))
    assert result.stderr.count("found, nothing to do") == len(STEPS), result.stderr
    for name in STEPS:
        one, other = ((folder / out / f"manifests/{name}.json").read_bytes() for out in ("out", "again"))
        assert one == other
    for name in ("scores.json", "contact_sheet.png"):
        assert (folder / "out" / name).read_bytes() == (folder / "again" / name).read_bytes()


@pytest.mark.full
def test_it_makes_what_run_makes(first: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """Each in a store of its own: the same bytes."""
    assert run("run", *paths(tmp_path)).returncode == 0
    for name in STEPS:
        one, other = ((folder / f"out/manifests/{name}.json").read_bytes() for folder in (first[0], tmp_path))
        assert one == other


@pytest.mark.full
def test_a_killed_fit_is_taken_up_by_another_run_which_stops_when_told(
    first: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for stage in ("download", "train_teacher"):
        shutil.copytree(first[0] / "store" / stage, tmp_path / "store" / stage)
    process = start("pipeline", "run-local", *paths(tmp_path), *FITTING, "--run-id", "one", TMPDIR=str(tmp_path))
    wait_for(tmp_path, 1, process)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while list(tmp_path.glob("splatclip-run-*/step.pid")):  # the step notices that nobody waits for it any more
        assert time.monotonic() < deadline
        time.sleep(0.1)
    finished = wait_for(tmp_path, 1)
    time.sleep(0.5)
    assert wait_for(tmp_path, 1) == finished, "something still fits"
    assert not list(tmp_path.glob("store/splat_fit/*/manifest.json")), "it had finished before the blow"
    stamps = {path: path.stat().st_mtime_ns for path in finished}

    process = start("pipeline", "run-local", *paths(tmp_path), *FITTING, "--run-id", "other")
    more = wait_for(tmp_path, len(finished) + 1, process)
    working = steps_of(tmp_path)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, (err, working, finished, more)
    last = err.splitlines()[-1]
    assert last.startswith("splatclip pipeline: splat_fit: stopped by SIGTERM"), (err, working, finished, more)
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in finished} == stamps
    assert {path.stem for path in tmp_path.glob("out/manifests/*")} == {"download", "download_eval", "train_teacher"}
    assert not steps_of(tmp_path)


def wait_for(folder: Path, count: int, process: subprocess.Popen[str] | None = None) -> set[Path]:
    """The finished splat shards, once there are `count` of them."""
    deadline = time.monotonic() + 120
    while len(entries := set(folder.glob("store/splat_fit/*/_done/*.json"))) < count:
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return {path.parent.parent / json.loads(path.read_text())["name"] for path in entries}


def steps_of(folder: Path) -> list[str]:
    """Processes of steps at work on the store in `folder`."""
    lines = subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if "kfp.dsl.executor_main" in line and f"{folder}/store" in line]


def test_a_failing_step_ends_it_with_its_own_code(tmp_path: Path) -> None:
    settings = ("--set", "download.source=folder", "--set", "download.path=/nowhere")
    result = run("pipeline", "run-local", *paths(tmp_path), *settings)
    assert result.returncode == 42
    assert result.stderr == (
        "splatclip pipeline: download: download.path '/nowhere': there is no such folder; correct the path\n"
    )
    assert not (tmp_path / "out/manifests").exists()


def test_a_step_that_breaks_shows_why(tmp_path: Path) -> None:
    """A bug, not an error of ours: its traceback is shown, and no other step begins."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'download' in sys.argv:\n"
        "    import components.runner\n"
        "    def fail(*args, **more): raise ZeroDivisionError('a bug')\n"
        "    components.runner.run_step = fail\n"
    )
    result = run("pipeline", "run-local", *paths(tmp_path), PYTHONPATH=str(broken))
    assert result.returncode == 1
    assert "ZeroDivisionError: a bug" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("splatclip pipeline: download: ")
    assert not (tmp_path / "store").exists()


def stopped_while_loading(folder: Path, *command: str, **env: str) -> tuple[int, str]:
    """Exit code and words of a command that gets SIGTERM while its first stage loads, before it listens itself."""
    slow = folder / "slow/PIL"
    slow.mkdir(parents=True)
    (slow / "__init__.py").write_text(f"import time\nopen({f'{folder}/loads'!r}, 'w')\ntime.sleep(60)\n")
    process = start(*command, *paths(folder), PYTHONPATH=str(slow.parent), **env)
    deadline = time.monotonic() + 60
    while not (folder / "loads").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.parametrize(
    ("command", "named"), [(("run",), "run: "), (("pipeline", "run-local"), "pipeline: download: ")]
)
def test_a_stop_while_a_stage_loads(command: tuple[str, ...], named: str, tmp_path: Path) -> None:
    message = f"splatclip {named}stopped by SIGTERM; run the same command again to go on\n"
    assert stopped_while_loading(tmp_path, *command) == (143, message)


@pytest.mark.full
def test_a_step_that_cannot_start_shows_why(tmp_path: Path) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import sys\nif 'download' in sys.argv: sys.modules['components'] = None\n")
    result = run("pipeline", "run-local", *paths(tmp_path), PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "No module named 'components.kfp_base'" in result.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
def test_mlflow_has_one_run_with_a_nested_run_a_step_and_its_end(tmp_path: Path) -> None:
    with listening() as hook:
        env = {"SPLATCLIP_TRACKING": "on", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        check_recorded_and_told(tmp_path, hook, {**env, "SPLATCLIP_WEBHOOK_URL": hook.url})


def check_recorded_and_told(tmp_path: Path, hook: Hook, env: dict[str, str]) -> None:
    from mlflow import MlflowClient

    allowed = (*FITTING, "--set", "notify.allow_http=true")
    process = start("pipeline", "run-local", *paths(tmp_path), *allowed, "--run-id", "one", **env)
    wait_for(tmp_path, 1, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    (body,) = (told for _, told in hook.seen)
    assert (body["event"], body["run_id"], body["state"]) == ("finished", "one", "KILLED")
    assert body["failed_step"] == "splat_fit"
    result = run("pipeline", "run-local", *paths(tmp_path), *allowed, "--run-id", "other", **env)
    assert result.returncode == 0, result.stderr
    assert "announce: splatclip version 1 is champion" in result.stderr.splitlines()
    events = [told for _, told in hook.seen[1:]]
    assert [(told["event"], told["state"]) for told in events] == [("champion", "RUNNING"), ("finished", "FINISHED")]
    for told in events:
        assert (told["run_id"], told["model"]["version"]) == ("other", "1")
        assert [*told["scores"]] == ["acc1_splats"]
    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    (experiment,) = (found for found in client.search_experiments() if found.name == "splatclip/dev/train-eval")
    parents = {}
    steps: dict[str, dict[str, str]] = {}
    for found in client.search_runs([experiment.experiment_id]):
        parent = found.data.tags.get("mlflow.parentRunId")
        if parent is None:
            parents[found.info.run_id] = (found.data.tags["splatclip.run_id"], found.info.status)
        else:
            steps.setdefault(parent, {})[found.info.run_name] = found.info.status
    assert sorted(parents.values()) == [("one", "KILLED"), ("other", "FINISHED")]
    nested = {parents[parent][0]: statuses for parent, statuses in steps.items()}
    assert nested["other"] == dict.fromkeys(STEPS, "FINISHED")
    before = STEPS[: STEPS.index("splat_fit")]
    assert nested["one"] == dict.fromkeys(before, "FINISHED") | {"splat_fit": "KILLED"}
