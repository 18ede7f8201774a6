"""The `splatclip` command from outside: help, exit codes, speed."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import time
import typing

import pytest
import yaml
from conftest import ROOT

STAGES = ("download", "train-teacher", "splat-fit", "train-adapter", "zero-shot-eval")


def splatclip(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "components", *args], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
    )


def test_help_is_fast_and_names_every_stage() -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        result = splatclip("--help")
        seconds.append(time.perf_counter() - start)
    assert result.returncode == 0
    assert all(name in result.stdout for name in (*STAGES, "run", "show"))
    assert min(seconds) < 0.3


@pytest.mark.parametrize("name", [*STAGES, "run", "show"])
def test_every_command_has_an_example_that_parses(name: str) -> None:
    from components.__main__ import _parser

    text = splatclip(name, "--help").stdout
    example = text.partition("example:\n")[2].split()
    assert example[:2] == ["splatclip", name]
    assert _parser().parse_args(example[1:]).command == name


def test_dvc_and_the_command_mean_the_same_stages() -> None:
    """Names, inputs and parameters of dvc.yaml are those of the command; each input is what that stage committed."""
    from components.__main__ import STAGES, _parser

    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert set(graph) == {spec.section for spec in STAGES.values()}
    for name, spec in STAGES.items():
        stage = graph[spec.section]
        assert stage["params"] == [spec.section]
        program, *words = stage["cmd"].split()
        args = vars(_parser().parse_args(words))
        assert (program, args["command"]) == ("splatclip", name)
        manifests = {item: f"runs/dvc/{source}.json" for item, source in spec.inputs.items()}
        assert {item: args[item] for item in spec.inputs} == manifests
        assert set(manifests.values()) <= set(stage["deps"])
        outs = [args["manifest_out"], *([args["files_out"]] if args["files_out"] else [])]
        assert stage["outs"] == outs
        assert [*stage.get("metrics", [{}])[0]] == ([args["metrics_out"]] if args["metrics_out"] else [])
        assert all((ROOT / dep).exists() for dep in stage["deps"] if not dep.startswith("runs/"))


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_takes_what_the_command_gives(name: str) -> None:
    from components.__main__ import STAGES as SPECS
    from components.config import SECTIONS

    spec = SPECS[name]
    run = importlib.import_module(f"components.{spec.section}.stage").run
    hints = typing.get_type_hints(run)
    assert list(inspect.signature(run).parameters) == ["params", *spec.inputs, "store"]
    assert hints["params"] is SECTIONS[spec.section]


def test_usage_errors_exit_2_and_say_what_to_do(tmp_path: object) -> None:
    result = splatclip("splat-fit", "--params", "params.yaml", "--set", "splat_fit.num_gausians=3", "--images", "x")
    assert result.returncode == 2
    assert "did you mean 'num_gaussians'" in result.stderr
    assert splatclip("nothing").returncode == 2
    assert splatclip("show", str(tmp_path)).returncode == 2


def test_missing_input_exits_42(tmp_path: object) -> None:
    result = splatclip(
        "splat-fit", "--params", "params.yaml", "--images", f"{tmp_path}/images", "--store", f"{tmp_path}/store"
    )
    assert result.returncode == 42
    assert "manifest.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_version() -> None:
    assert splatclip("--version").stdout.startswith("splatclip 0.")
