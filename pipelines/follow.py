"""Following a run: what its steps are at, what they say, how it ends."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from components.errors import Interrupted, PermanentError, SplatClipError, TransientError, UsageError
from pipelines import runs, steps
from pipelines.api import Api
from pipelines.pods import PodLogs, open_logs

POLL_S = 5.0
AWAY_S = 1800.0  # for so long the API may be away, each request's own tries included
LONGEST_POLL_S = 60.0  # while it is
GIVEN_UP = 69  # the exit code where following ended before the run: sysexits' EX_UNAVAILABLE
_FINAL = {UsageError.exit_code, PermanentError.exit_code}
_LATER = {TransientError.exit_code, Interrupted.exit_code}


class Screen:
    """Where logs (out) and notes (err) go, a line at a time."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._lock = threading.Lock()

    def tell(self, step: str, line: str) -> None:
        """A step's line."""
        with self._lock:
            print(f"{step} | {line}", file=self._out, flush=True)

    def note(self, line: str) -> None:
        """A line about the run."""
        with self._lock:
            print(line, file=self._err, flush=True)


def follow(api: Api, run_id: str, screen: Screen, *, only: str = "", poll_s: float = POLL_S) -> tuple[Any, int]:
    """Follow a run to its end; returns it, and the exit code that says how it ended.

    0 succeeded, 143 canceled, 42 or 75 by what the failed steps ended with, 1 where that is not known.
    Raises what Api.call does where the API refuses or stays away for AWAY_S; the run goes on all the same.
    """
    run = _run(api, run_id, screen, poll_s)
    names = steps.step_names(api, run)
    logs = open_logs(api.connection, run_id, names, screen.tell, screen.note, only=only)
    told: dict[str, str] = {}
    try:
        while True:
            ended = run.state in runs.ENDED
            if not ended and told.get("") != run.state:
                told[""] = run.state
                screen.note(f"run {run.display_name}: {run.state or steps.UNKNOWN}")
            for step in steps.step_states(run, names):
                if told.get(step.name) != step.state:
                    told[step.name] = step.state
                    screen.note(f"{step.name}: {step.state}{f' ({step.error})' if step.error else ''}")
            if ended:
                break
            if logs is not None:
                logs.update()
            time.sleep(poll_s)
            run = _run(api, run_id, screen, poll_s)
        if logs is not None:
            logs.finish()
    finally:
        if logs is not None:
            logs.stop()
    screen.note(f"run {run.display_name}: {run.state}")
    return run, _ended(run, told, logs, screen)


def _run(api: Api, run_id: str, screen: Screen, poll_s: float) -> Any:
    began, wait = time.monotonic(), poll_s
    while True:
        try:
            return api.call(api.runs.run_service_get_run, run_id)
        except TransientError as error:
            if time.monotonic() - began >= AWAY_S:
                raise
            if wait == poll_s:
                screen.note(f"run {run_id} is out of sight, asking again for {AWAY_S / 60:.0f} min: {error}")
        time.sleep(wait)
        wait = min(LONGEST_POLL_S, 2 * wait)


def _ended(run: Any, states: Mapping[str, str], logs: PodLogs | None, screen: Screen) -> int:
    if run.error is not None and run.error.message:
        screen.note(f"run {run.display_name}: {run.error.message}")
    codes = logs.exit_codes() if logs is not None else {}
    for (step, _), code in codes.items():
        screen.note(f"{step}: exit code {code}")
    return exit_code(run.state, [code for (step, _), code in codes.items() if states.get(step) in (runs.FAILED, None)])


def exit_code(state: str, codes: Iterable[int]) -> int:
    """What a run's end means to a scheduler. codes: of all nodes that failed, as far as they are known."""
    known = {*codes}
    if state in (runs.SUCCEEDED, runs.SKIPPED):
        return 0
    if state == runs.CANCELED:
        return Interrupted.exit_code
    if _FINAL & known:
        return PermanentError.exit_code
    if known and known <= _LATER:
        return TransientError.exit_code
    return SplatClipError.exit_code
