"""Processes of their own that find torch, open_clip and MLflow imported: forked from a server that did that once.

An import of all of these takes seconds of processor time, and a test of eight processes would pay it eight times.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

from conftest import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["forked_imports"])
PATHS = [str(ROOT), str(ROOT / "tests")]


def serve() -> None:
    """Start the server where there is none: it looks for modules by PYTHONPATH alone (CPython #126631)."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, *([before] if before else [])])
    try:
        ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def process(target: Callable[..., None], *args: Any) -> Any:
    """A started process; it ends with this one."""
    serve()
    made = CONTEXT.Process(target=target, args=args, daemon=True)
    made.start()
    return made


class Forked:
    """`target(*args)` in a process with an environment of its own, whose stderr is kept."""

    def __init__(self, target: Callable[..., None], *args: Any, env: dict[str, str]) -> None:
        handle, name = tempfile.mkstemp(prefix="forked-")
        os.close(handle)
        self._stderr = Path(name)
        self._process = process(_in_it, target, args, env, name)
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def ended(self, seconds: float) -> tuple[int, str]:
        """Exit code and stderr; killed where it takes longer."""
        deadline = time.monotonic() + seconds
        self._process.join(seconds)
        if time.monotonic() >= deadline and self.poll() is None:
            self.kill()
            self._process.join()
        said = self._stderr.read_text(errors="replace")
        self._stderr.unlink()
        return self._process.exitcode, said


def _in_it(target: Callable[..., None], args: tuple[Any, ...], env: dict[str, str], stderr: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    if "OMP_NUM_THREADS" in env:  # torch has read the server's
        import torch

        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    target(*args)
