"""benchmarks/gpu.py and gpu.sh: sections end in time, reports show what was measured, the script builds and runs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import splat2d

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
from device import busy_seconds  # noqa: E402
from pictures import procedural  # noqa: E402
from records import Journal  # noqa: E402


def bench(tmp_path: Path, started: float) -> Any:
    values = {"cpu": True, "seconds": 500.0, "started": started, "tests": "", "batches": [2], "num_gaussians": [5]}
    return gpu.Bench(argparse.Namespace(**values), procedural(2, 16), Journal(tmp_path / "gpu.json", {}))


def test_gpu_sections_end_in_time_and_say_what_they_left_out(tmp_path: Path) -> None:
    late = bench(tmp_path, time.time() - 1000)
    late.torch()
    (row,) = json.loads((tmp_path / "gpu.json").read_text())
    assert row["key"] == {"kind": "left out", "what": {"kind": "torch", "N": 5}}
    assert "left of its section" in row["reason"]
    assert "## Left out" in (tmp_path / "gpu.md").read_text()
    in_time = bench(tmp_path, time.time())
    in_time.torch()  # what was left out is made up for
    assert "## Left out" not in (tmp_path / "gpu.md").read_text()


def test_gpu_without_pytest_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    bench(tmp_path, time.time()).tests()
    (row,) = json.loads((tmp_path / "gpu.json").read_text())
    assert row["reason"] == "no pytest here"


def test_gpu_report_shows_no_more_than_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that failed is none that reaches the goal; a fit of another batch is not compared with the control."""
    unlike = bench(tmp_path, time.time())
    unlike.args.control_iters, unlike.args.most = 200, 8

    def fitted(number: int, recipe: str, num_iters: int, batch: int, share: bool = False) -> dict[str, float]:
        if num_iters == 30:
            raise OSError("no such library")
        rates = {"images_per_s": 4.0 * batch, "iterations_per_s": 100.0, "pairs_mean": 1.0, "file_loss_db": 0.0}
        return rates | {"psnr_db_mean": 30.0 if recipe == "paper" else 20.0}

    monkeypatch.setattr(unlike, "fitted", fitted)
    unlike.control()
    (reached,) = [row for row in unlike.journal.rows() if row["key"]["kind"] == "reached"]
    assert reached["key"]["num_iters"] is None
    text = (tmp_path / "gpu.md").read_text()
    assert "not known: 30 iterations were left out" in text
    assert "num_iters 30, batch 8 | no such library |" in text
    unlike.once({"kind": "reached", "N": 5, "num_iters": 20, "batch": 8, "control": 200}, dict)
    unlike.once(
        {"kind": "profiled", "N": 5, "recipe": "default", "num_iters": 20, "batch": 16},
        lambda: fitted(5, "default", 20, 16),
    )
    rows = [line.split(" | ") for line in (tmp_path / "gpu.md").read_text().splitlines()]
    faster = {row[3]: row[-1] for row in rows if row[1:3] == ["`default`", "20"] and len(row) == 11}
    assert faster == {"8": "1.0 |", "16": "- |"}


def test_busy_time_counts_overlaps_once() -> None:
    assert busy_seconds([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 4.0
    assert busy_seconds([]) == 0.0


def gpu_script(out: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name in ("PYTHONPATH", "TMPDIR", "HOME")}
    environment |= {"PATH": f"{path}{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"OUT": str(out), "PYTHON": sys.executable}
    command = ["benchmarks/gpu.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.full
def test_gpu_script_runs_on_the_cpu(tmp_path: Path) -> None:
    """The whole script with small sizes: build, tests, every section that needs no GPU."""
    done = gpu_script(tmp_path, "--cpu", "--tests", "tests/test_splat2d_gradients.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (report,) = tmp_path.glob("fit_cpu_*.md")
    text = report.read_text()
    assert "tests: passed" in text
    assert "Not measured" not in text
    assert "| sorted, N 16 | it runs on a GPU alone |" in text
    assert "command: `benchmarks/gpu.sh --cpu" in text


@pytest.mark.full
def test_gpu_script_builds_for_the_device_it_is_told_of(tmp_path: Path) -> None:
    """nvcc is required here. Without a device the script ends after the build and says so."""
    (tmp_path / "bin").mkdir()
    told = tmp_path / "bin" / "nvidia-smi"
    told.write_text("#!/bin/sh\necho 9.0\n")
    told.chmod(0o755)
    done = gpu_script(tmp_path, "--seconds", "1", path=f"{tmp_path / 'bin'}:")
    assert "gpu.sh: built in" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert "architectures 90-real" in (ROOT / "build" / "gpu.log").read_text()
    assert splat2d.has_cuda() or "no CUDA device" in done.stderr
