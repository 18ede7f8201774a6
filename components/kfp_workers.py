"""A training step in several processes of one pod: torchrun starts this module as often as there are GPUs.

Each process runs the step on its GPU, the first of them records it and leaves word of the outcome. What passes between
the pod's process and these is two files of JSON: the job, and the outcome.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from components import FLOW, tracking
from components.config import SECTIONS
from components.errors import Interrupted, PermanentError, SplatClipError, TransientError, UsageError
from components.manifest import open_artifact
from components.params import params_from_dict, section_from_dict
from components.processes import TRAINING, leads
from components.report import Report
from components.runner import Done, persist, run_step, write
from components.signals import handling
from components.store import open_store

PROCESSES = "SPLATCLIP_PROCESSES"  # in a pod's environment: how many it has GPUs for
ONE_TRY = 1  # within the processes: all of them have to begin again together
_ERRORS = {error.exit_code: error for error in (UsageError, PermanentError, TransientError, Interrupted)}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What each process is told. sections, tracking: of params; inputs: manifests' paths; run_id: Kubeflow's."""

    step: str
    sections: Mapping[str, Any]
    tracking: Mapping[str, Any]
    inputs: Mapping[str, str]
    store: str
    run_id: str


def processes(stage: str) -> int:
    """How many processes a stage is to run in: as many as SPLATCLIP_PROCESSES says, one where it cannot share its work.

    Raises UsageError where that is no number.
    """
    text = os.environ.get(PROCESSES, "").strip() or "1"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"the environment's {PROCESSES} is {text!r}; give a number of 1 or more")
    return int(text) if stage in TRAINING else 1


def run_together(count: int, job: Job, *, tries: int) -> Done:
    """Run a step in `count` processes; what fails for now is tried again, by all of them.

    Raises an error of the class that the processes ended with; their own words are on stderr before that.
    SIGTERM and Ctrl-C are passed on: they save a checkpoint, and this raises Interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="splatclip-processes-") as folder:
        told, outcome = Path(folder) / "job.json", Path(folder) / "outcome.json"
        told.write_text(json.dumps(vars(job)), encoding="utf-8")
        persist(job.step, tries, lambda: _once(count, told, outcome))
        return _read(outcome, job.store)


def _once(count: int, told: Path, outcome: Path) -> None:
    command = [sys.executable, "-m", __spec__.name, str(count), str(told), str(outcome)]
    # in a session of its own: a signal to the pod's whole group must not reach it twice
    process = subprocess.Popen(command, start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM)

    with handling(forward):
        code = process.wait()
    if code:
        error = _ERRORS.get(code, SplatClipError)
        raise error(f"its {count} processes ended with exit code {code}; what the first of them said stands above")


def _read(outcome: Path, store: str) -> Done:
    kept = json.loads(outcome.read_text(encoding="utf-8"))
    manifest = open_artifact(kept["report"]["url"], open_store(store)).manifest
    return Done(Report(**kept["report"], metrics=manifest.metrics, manifest=manifest), None, kept["tags"])


def info_of(params: dict[str, Any], run_id: str) -> tracking.RunInfo | None:
    """The run that the step belongs to; the step by itself where Kubeflow's id of the run is missing."""
    info = tracking.run_info(section_from_dict(SECTIONS["tracking"], params, "tracking"), run_id)
    if info and run_id.startswith("{{"):  # else all runs would become one
        print("Kubeflow did not fill in the run's id; this step is recorded by itself", file=sys.stderr, flush=True)
        return replace(info, id="", kubeflow=False)
    return info


def _work(told: Path, outcome: Path) -> None:
    """One process's share; the first one's outcome goes into a file."""
    job = Job(**json.loads(told.read_text(encoding="utf-8")))
    step = next(known for known in FLOW if known.name == job.step)
    section = getattr(params_from_dict(dict(job.sections), "arguments"), step.section)
    info = info_of(dict(job.tracking), job.run_id) if leads() else None
    report, _, tags = run_step(step, section, job.inputs, job.store, info, tries=ONE_TRY)
    if leads():
        names = ("stage", "url", "manifest_sha256", "cached", "seconds", "speeds", "facts")
        kept = {"report": {name: getattr(report, name) for name in names}, "tags": tags}
        write(outcome, json.dumps(kept).encode())


def main(argv: list[str]) -> int:
    """COUNT JOB OUTCOME: start the processes; JOB OUTCOME: be one of them. Returns the exit code."""
    if len(argv) == 3:
        from components.launch import torchrun

        return torchrun(["--standalone", f"--nproc-per-node={argv[0]}"], __spec__.name, argv[1:])
    told, outcome = (Path(path) for path in argv)
    try:
        _work(told, outcome)
    except SplatClipError as error:
        print(f"process {os.environ.get('RANK', '0')}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
