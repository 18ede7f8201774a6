"""A pipeline run on this machine: what the runner and the steps that it starts tell each other, through a folder.

kfp.local starts each step as a process of its own and passes on neither signals nor exit codes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import FrameType

from components.errors import Interrupted, PermanentError, SplatClipError, TransientError, UsageError
from components.provenance import origin
from components.signals import handling, interrupted_by_signals

VARIABLE = "SPLATCLIP_LOCAL_RUN"  # names the folder in the steps' environment
BEGIN, END = "\x1esplatclip-begin", "\x1esplatclip-end"  # lines around a step's own output, in all that KFP prints
GO_ON = "run the same command again to go on"
_ERRORS = {error.exit_code: error for error in (UsageError, PermanentError, TransientError, Interrupted)}


@dataclass(frozen=True)
class LocalRun:
    """folder: where they talk; id: of the run; out: where steps export to; runner: the runner's process id.

    origin: what the code was when the run began.
    """

    folder: Path
    id: str
    out: Path
    runner: int
    origin: dict[str, str]

    @classmethod
    def start(cls, folder: Path, *, run_id: str, out: Path) -> LocalRun:
        """A new run of this process; VARIABLE in the steps' environment lets them find it."""
        run = cls(folder, run_id, out.absolute(), os.getpid(), origin())
        about = {"id": run.id, "out": str(run.out), "runner": run.runner, "origin": run.origin}
        (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
        return run

    @classmethod
    def current(cls) -> LocalRun | None:
        """The run that this process is a step of; None in a cluster."""
        folder = os.environ.get(VARIABLE)
        if not folder:
            return None
        about = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
        return cls(Path(folder), about["id"], Path(about["out"]), about["runner"], about["origin"])

    @contextmanager
    def step(self, name: str, *, always: bool = False) -> Iterator[None]:
        """Be step `name` for the length of the block: can be stopped, and its error is kept for the runner.

        Once a step has failed or a stop was asked for no other begins (SystemExit), but those that always run.
        """
        pid = self.folder / "step.pid"
        try:
            with interrupted_by_signals():
                scratch = pid.with_suffix(".new")
                scratch.write_text(str(os.getpid()), encoding="utf-8")
                scratch.replace(pid)  # first, so that a stop either finds it here or is found below
                if not always and (self.stopped or self.broken()):
                    raise SystemExit(Interrupted.exit_code)
                (self.folder / f"{name}.begun").touch()
                Thread(target=self._stop_without_runner, daemon=True).start()
                print(BEGIN, flush=True)
                yield
                (self.folder / f"{name}.done").touch()
        except SplatClipError as error:
            self._keep(name, error.exit_code, str(error))
            raise
        except Exception:
            traceback.print_exc()  # here, between the marks; the interpreter's own comes after them
            self._keep(name, SplatClipError.exit_code, "failed unexpectedly; what went wrong stands above")
            raise
        finally:
            pid.unlink(missing_ok=True)
            sys.stderr.flush()
            print(END, flush=True)

    def _stop_without_runner(self) -> None:
        """Stop as if by SIGTERM where the runner was killed: nobody waits for the step any more."""
        while True:
            time.sleep(1)
            try:
                os.kill(self.runner, 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _keep(self, name: str, exit_code: int, message: str) -> None:
        if self.error() is None:  # the first tells why, the others follow from it
            text = json.dumps({"step": name, "exit_code": exit_code, "message": message})
            (self.folder / "error.json").write_text(text, encoding="utf-8")

    def error(self) -> SplatClipError | None:
        """What the run failed with, as the error that the step raised."""
        try:
            kept = json.loads((self.folder / "error.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return _ERRORS.get(kept["exit_code"], SplatClipError)(f"{kept['step']}: {kept['message']}")

    def broken(self) -> str:
        """The step that began and did not end well, or an empty text."""
        begun = (path.stem for path in sorted(self.folder.glob("*.begun")))
        return next((name for name in begun if not self.is_done(name)), "")

    def is_done(self, name: str) -> bool:
        """Whether step `name` ended well."""
        return (self.folder / f"{name}.done").exists()

    @property
    def stopped(self) -> bool:
        """Whether a signal asked for a stop."""
        return (self.folder / "stop").exists()

    def stop(self, number: int) -> None:
        """Ask the step at work to stop in good order; none begins after it."""
        (self.folder / "stop").touch()
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int((self.folder / "step.pid").read_text(encoding="utf-8")), number)


@contextmanager
def stopping_with(run: LocalRun) -> Iterator[None]:
    """SIGTERM and Ctrl-C stop the run's step, for the length of the block; a second Ctrl-C cuts it short."""

    def handle(number: int, frame: FrameType | None) -> None:
        again = run.stopped and number == signal.SIGINT
        # a terminal's Ctrl-C reaches the step too, where a second SIGINT would cut it short
        run.stop(signal.SIGINT if again else signal.SIGTERM)
        if again:
            raise KeyboardInterrupt

    with handling(handle):
        yield
