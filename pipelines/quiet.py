"""What Kubeflow's local runner prints, without its own words: the steps' lines alone."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import deque
from collections.abc import Iterator
from typing import TextIO

from components.local_run import BEGIN, END

INDENT = 4  # of what a step prints, by the runner


class StepLog(io.TextIOBase):
    """Passes on the lines between a step's marks, and keeps the last of the others for when something breaks."""

    def __init__(self, target: TextIO) -> None:
        self._target, self._line, self._inside = target, "", False
        self._others: deque[str] = deque(maxlen=200)

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Take text in pieces of any size."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._take(line)
        return len(text)

    def _take(self, line: str) -> None:
        bare = line[INDENT:] if line.startswith(" " * INDENT) else line
        if bare in {BEGIN, END}:
            self._inside = bare == BEGIN
            return
        if line.strip() and bare == line:  # the runner's own: the step was killed before its end mark
            self._inside = False
        if self._inside:
            self._pass_on(bare)
        else:
            self._others.append(line)

    def show_the_rest(self) -> None:
        """Print the last of what was kept back."""
        for line in self._others:
            self._pass_on(line)

    def _pass_on(self, line: str) -> None:
        self._target.write(f"{line}\n")  # not print: the runner replaces it while a step runs
        self._target.flush()


@contextlib.contextmanager
def only_the_steps_own(target: TextIO) -> Iterator[StepLog]:
    """Send the steps' lines to `target`, for the length of the block, and silence the rest, warnings included."""
    log = StepLog(target)
    with contextlib.redirect_stdout(log), warnings.catch_warnings():
        yield log
