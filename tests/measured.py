"""A download in a process of its own: how long it takes, and how much memory at its peak."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conftest import ROOT

from components.config import DownloadParams

CODE = """
import json, sys, time
from components.download import stage
from components.params import params_from_dict

params = params_from_dict({"download": json.loads(sys.argv[1])}).download
started = time.monotonic()
report = stage.run(params, store=sys.argv[2])
seconds = time.monotonic() - started
status = open("/proc/self/status").read()  # not getrusage: that begins at what the parent held when it started this
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"url": report.url, "counts": report.manifest.counts, "peak": peak, "seconds": seconds}))
"""


def measured(params: DownloadParams, store: Path) -> dict[str, Any]:
    """The output's url and counts, the seconds it took, and peak: all bytes the process held at a time, interpreter and
    libraries included.
    """
    command = [sys.executable, "-c", CODE, json.dumps(asdict(params)), str(store)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told
