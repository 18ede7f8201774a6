"""The `splatclip` command from outside: help, exit codes, speed."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from conftest import ROOT

from components import STAGES

COMMANDS = (
    *(stage.command for stage in STAGES.values()),
    "run",
    "evaluate",
    "show",
    "report",
    "runs",
    "verify",
    "gc",
    "store",
    "pipeline",
)


def splatclip(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "components", *args], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
    )


def test_help_is_fast_and_names_every_command() -> None:
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = splatclip("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert result.returncode == 0
    assert {*COMMANDS} <= {*result.stdout.split()}
    assert min(seconds) < 0.3, "of processor time: the machine may be busy"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_parses(name: str) -> None:
    from components.__main__ import _parser

    text = splatclip(name, "--help").stdout
    example = text.partition("example:\n")[2].split()
    assert example[:2] == ["splatclip", name]
    assert _parser().parse_args(example[1:]).command == name


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
