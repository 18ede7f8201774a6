"""The whole flow from the command, at a size of seconds."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from PIL import Image

from components import FLOW, STAGES
from components.__main__ import main

TINY = ROOT / "tests/tiny.yaml"
STEPS = [step.name for step in FLOW]
# Modules that decide how a stage runs, not what it makes; what they take from params is in its key.
PLUMBING = {
    "cluster_params",
    "config",
    "hub_params",
    "url_params",
    "entries",
    "errors",
    "fields",
    "fleet_params",
    "json_text",
    "manifest",
    "operations",
    "progress",
    "report",
    "series",
    "signals",
}
PLUMBING |= {"local_run", "pace", "processes", "provenance", "redaction", "scratch", "store", "store_s3"}
RUNNER = Path(sys.executable).parent


def run(*command: str, cwd: Path = ROOT, ok: bool = True) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{RUNNER}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False, timeout=300)
    assert not ok or result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run")
    result = run("splatclip", "run", "--params", str(TINY), "--store", f"{folder}/store", "--out", f"{folder}/out")
    return folder, result.stdout


def in_process(folder: Path, out: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, str]:
    """`splatclip run` once more on the same store, without a process of its own; what it prints."""
    capsys.readouterr()
    assert main(["run", "--params", str(TINY), "--store", f"{folder}/store", "--out", f"{folder}/{out}", *more]) == 0
    return capsys.readouterr()


def test_a_run_ends_with_something_to_look_at(first: tuple[Path, str]) -> None:
    folder, table = first
    scores = json.loads((folder / "out/scores.json").read_text())
    assert "teacher" in table
    assert "splats" in table
    assert "in-distribution" in json.dumps(scores)
    with Image.open(folder / "out/contact_sheet.png") as sheet:
        assert sheet.size[0] > 400
    assert {p.stem for p in (folder / "out/manifests").iterdir()} == set(STEPS)
    page = folder / "out/report.html"
    assert page.read_bytes().startswith(b"<!")
    assert f"report: {page}" in table.splitlines()[-1]


def test_the_same_work_is_found_under_any_name(first: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, table = first
    _, log = in_process(folder, "other", capsys)
    assert log.count("found, nothing to do") == len(STEPS)
    assert (folder / "other/scores.json").read_bytes() == (folder / "out/scores.json").read_bytes()
    for name in STEPS:
        manifests = [(folder / out / "manifests" / f"{name}.json").read_bytes() for out in ("out", "other")]
        assert manifests[0] == manifests[1]
    assert main(["show", f"{folder}/out"]) == 0
    assert capsys.readouterr().out.splitlines()[:4] == table.splitlines()[:4]


def test_the_evaluation_set_is_the_training_sets_own_test_split_unless_said_otherwise(first: tuple[Path, str]) -> None:
    """Its two steps find what their twins committed, and cost nothing."""
    folder, _ = first
    for one, twin in (("download", "download_eval"), ("splat_fit", "splat_fit_eval")):
        assert len({(folder / "out/manifests" / f"{name}.json").read_bytes() for name in (one, twin)}) == 1
    assert len(list((folder / "store/download").iterdir())) == len(list((folder / "store/splat_fit").iterdir())) == 1


def test_another_evaluation_set_trains_nothing_again(
    first: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = first
    _, log = in_process(folder, "e", capsys, "--set", "download_eval.seed=1", "--set", "download_eval.num_train=-1")
    assert found(log) == ["download", "train_teacher", "splat_fit", "train_adapter"]
    mine, other = (json.loads((folder / out / "scores.json").read_text()) for out in ("out", "e"))
    assert mine["num_pictures"] == other["num_pictures"] == 32
    assert mine["splats"]["psnr_db_mean"] != other["splats"]["psnr_db_mean"], "other pictures"
    assert {row["setting"] for row in other["rows"]} == {"in-distribution, prompt classifier"}


def found(log: str) -> list[str]:
    return [line.partition(":")[0] for line in log.splitlines() if "found, nothing to do" in line]


def test_nothing_found_out_later_is_in_a_manifest(first: tuple[Path, str]) -> None:
    folder, _ = first
    for path in (folder / "out/manifests").iterdir():
        assert str(folder) not in path.read_text()


CHANGED = {"splat_fit": {"num_gaussians": 9}, "train_adapter": {"control_with_stage1": False}}


@pytest.fixture(scope="module")
def changed(first: tuple[Path, str]) -> tuple[Path, str]:
    """Another run into a folder that holds the first run's results, and its log."""
    folder, _ = first
    words = ["--params", str(TINY), "--store", f"{folder}/store", "--out", f"{folder}/9"]
    for section, values in CHANGED.items():
        for name, value in values.items():
            words += ["--set", f"{section}.{name}={json.dumps(value)}"]
    shutil.copytree(folder / "out", folder / "9")
    return folder, run("splatclip", "run", *words).stderr


def test_a_parameter_changes_only_what_follows(changed: tuple[Path, str]) -> None:
    folder, log = changed
    before, after = ({path.name for path in (folder / out / "benchmark").iterdir()} for out in ("out", "9"))
    assert before - after == {name for name in before if "control_stage1" in name} != set()
    assert found(log) == ["download", "download_eval", "train_teacher", "splat_fit_eval"]
    manifest = json.loads((folder / "9/manifests/splat_fit.json").read_text())
    assert manifest["params"]["num_gaussians"] == 9
    assert {shard["params_hash"] for shard in manifest["shards"]} == {manifest["params_hash"]}


@pytest.fixture
def workspace(tmp_path: Path, first: tuple[Path, str]) -> Path:
    """A checkout of its own, with tiny parameters and all that the runs have made in the store: what DVC starts is
    what counts here, and a step that finds its work is as good as one that does it."""
    for name in run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0"):
        if name.startswith(("components/", "kernels/", ".dvc", "dvc.yaml", ".gitignore")) and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(first[0] / "store", tmp_path / "runs/store")
    shutil.copy(TINY, tmp_path / "params.yaml")
    run("git", "init", "-q", cwd=tmp_path)
    return tmp_path


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.mark.full
@pytest.mark.usefixtures("changed")
def test_dvc_runs_only_what_changed(first: tuple[Path, str], workspace: Path) -> None:
    assert sorted(stages_run(run("dvc", "repro", cwd=workspace).stdout)) == sorted(STEPS)
    for name in STEPS:
        manifests = (first[0] / "out/manifests" / f"{name}.json", workspace / "runs/dvc" / f"{name}.json")
        assert len({path.read_bytes() for path in manifests}) == 1, f"{name}: not what the command made"
    assert stages_run(run("dvc", "repro", cwd=workspace).stdout) == []
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    for section, values in CHANGED.items():
        params[section] |= values
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    follow = {"splat_fit", "splat_fit_eval", "train_adapter", "zero_shot_eval", "promote"}
    assert set(stages_run(run("dvc", "repro", cwd=workspace).stdout)) == follow
    params["download_eval"] = {"num_test": 20}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    assert set(json.loads(run("dvc", "status", "--json", cwd=workspace).stdout)) == {"download_eval"}
    shown = json.loads(run("dvc", "metrics", "show", "--json", cwd=workspace).stdout)
    files = shown[""]["data"]
    assert any("psnr_db_mean" in json.dumps(values) for values in files.values())
    assert (workspace / "runs/dvc/scores/scores.json").is_file()
    assert (workspace / "runs/dvc/scores/report.html").is_file()
    assert not (workspace / "runs/dvc/scores/report.html").is_symlink()


def test_dvc_knows_every_module_that_decides_an_output() -> None:
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for step in FLOW:
        deps = {dep for dep in graph[step.name]["deps"] if not dep.startswith("runs/")}
        imported = modules_of(ROOT / "components" / step.stage / "stage.py") - PLUMBING - set(STAGES)
        imported = {name for name in imported if not name.startswith(("registry", "tracking"))}
        listed = {Path(dep).stem for dep in deps if dep.endswith(".py")}
        assert f"components/{step.stage}" in deps
        assert imported <= listed, f"{step.name}: {sorted(imported - listed)}"


def modules_of(path: Path) -> set[str]:
    """Names under components/ that a module imports as it is loaded, whatever is between them."""
    waiting, read = [path], set()
    while waiting:
        path = waiting.pop()
        read.add(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("components"):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                files = (ROOT / f"{name.replace('.', '/')}.py" for name in names)
                waiting += [file for file in files if file.is_file() and file not in read]
    return {file.relative_to(ROOT / "components").parts[0].removesuffix(".py") for file in read}


@pytest.mark.full
def test_dvc_goes_on_where_it_was_killed(workspace: Path) -> None:
    shutil.rmtree(workspace / "runs/store/splat_fit")
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["splat_fit"] |= {"num_iters": 20000, "threads": 1}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    env = {**os.environ, "PATH": f"{RUNNER}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["dvc", "repro", "splat_fit"], cwd=workspace, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    finished: set[Path] = set()
    deadline = time.monotonic() + 120
    while not finished and process.poll() is None and time.monotonic() < deadline:
        finished = set(workspace.glob("runs/store/splat_fit/*/*/*.tar"))
        time.sleep(0.02)
    kill_tree(process.pid)
    process.communicate()
    assert finished, "no shard was finished before the kill"
    assert not list(workspace.glob("runs/store/splat_fit/*/manifest.json")), "the kill came too late to show anything"
    stamps = {path: path.stat().st_mtime_ns for path in finished}
    run("dvc", "repro", "splat_fit", cwd=workspace)
    assert {path: path.stat().st_mtime_ns for path in finished} == stamps
    assert list(workspace.glob("runs/store/splat_fit/*/manifest.json"))


def kill_tree(pid: int) -> None:
    """SIGKILL a process, then all below it: DVC, told that its stage ended, would be killed as it writes its rwlock."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGKILL)
        for child in children:
            kill_tree(int(child))
