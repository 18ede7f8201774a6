"""A set fitted by several processes of this machine: each runs the command on a group of shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from components.config import SplatFitParams
from components.errors import Interrupted, PermanentError, TransientError, UsageError
from components.progress import progress
from components.report import Report
from components.scratch import scratch_folder
from components.signals import Stop, stop_on_sigterm
from components.splat_fit.stage import STAGE, Work, finalise, open_work
from components.splat_fit.tally import Tally
from components.splat_fit.work import Share, num_groups, pending

PARENT = "SPLATCLIP_PARENT"  # the process that a worker works for, in its environment
GROUPS_PER_PROCESS = 4  # at least, where there are shards enough: the last ones then wait little for each other
GRACE_S = 30.0  # between asking workers to stop and killing them; a stop is looked for several times a second
POLL_S, TALLY_S = 0.1, 2.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0


def fit(
    params: SplatFitParams, *, images: str, store: str, processes: int, shards_per_group: int = 16, tries: int = 7
) -> Report:
    """As the stage's run, in `processes` processes at a time, which share this machine's threads.

    A worker that fails for now, or is killed, is started again, `tries` times in all. A group that fails for good does
    not stop the others. PermanentError and TransientError name the groups in the end, UsageError comes at once;
    Interrupted on SIGTERM or Ctrl-C, once all workers have stopped.
    """
    started = time.monotonic()
    work = open_work(params, images, store)
    finished = work.commit.finished()
    if finished is not None:
        return work.report(finished, started, cached=True)
    work.metric()  # once, here, and not by each worker
    num = len(work.shards)
    total = max(num_groups(num, shards_per_group), min(num, GROUPS_PER_PROCESS * processes))
    done = work.commit.done()
    todo = [_Group(Share(total, (number,))) for number in pending(work.shards, done, total)]
    command = _command(params, work, store, processes)
    pictures = {entry.index: entry.ok for entry in work.shards}
    first = sum(pictures[index] for index in done if index in pictures)
    with (
        stop_on_sigterm() as stop,
        progress("splat-fit", total=sum(pictures.values()), unit="pictures", start=first) as bar,
        scratch_folder() as logs,
    ):
        crew = _Crew(command, logs, min(processes, len(todo)), tries, deque(todo))
        tally = Tally(work, bar, TALLY_S)
        with crew.at_work():
            while crew.go_on():
                _look_for_stop(stop, crew, tally)
                tally.look(workers=len(crew.running))
                time.sleep(POLL_S)
        tally.look(now=True, workers=0)
        rate = bar.rate()
    crew.raise_failures(f"{tally.done} of {num} shards are kept in {work.commit.url}")
    return replace(
        finalise(params, images=images, store=store, work=work, speeds={"images_per_s": rate} if todo else {}),
        seconds=time.monotonic() - started,
    )


def _look_for_stop(stop: Stop, crew: _Crew, tally: Tally) -> None:
    if stop.requested:
        crew.stop()
        tally.look(now=True)
        raise Interrupted(
            f"stopped by {stop.signal_name}, and all workers with it: {tally.done} shards are kept; "
            "run the same command again to go on"
        )


def _command(params: SplatFitParams, work: Work, store: str, processes: int) -> list[str]:
    threads = params.threads or len(os.sched_getaffinity(0))
    section = asdict(replace(params, threads=max(1, threads // processes)))
    command = [sys.executable, "-m", "components", STAGE.replace("_", "-"), "--no-tracking", "--store", store]
    command += ["--params", json.dumps({STAGE: section}, ensure_ascii=False), "--images", work.source.url]
    return [*command, "--output", work.commit.path]


@dataclass
class _Group:
    """A group that is to be fitted: how often that was tried, and not before which moment it is tried again."""

    share: Share
    tried: int = 0
    not_before: float = 0.0


@dataclass
class _Crew:
    """The workers. waiting: groups that nobody fits at the moment; failed: those given up, and why."""

    command: list[str]
    logs: Path
    size: int
    tries: int
    waiting: deque[_Group]
    running: dict[subprocess.Popen[bytes], _Group] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unable: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """No worker outlives the block, however it ends."""
        try:
            yield
        finally:
            self.stop(grace_s=0.0)

    def go_on(self) -> bool:
        """Take in who has ended, send out whom there is room for; whether there is anything left to wait for."""
        for process in [*self.running]:
            if (code := process.poll()) is not None:
                self._ended(self.running.pop(process), code)
        now = time.monotonic()
        for _ in range(len(self.waiting)):
            if len(self.running) >= self.size:
                break
            group = self.waiting.popleft()
            if group.not_before <= now:
                self._start(group)
            else:
                self.waiting.append(group)
        return bool(self.running or self.waiting)

    def _log(self, group: _Group) -> Path:
        return self.logs / f"{group.share.chosen[0]}.log"

    def _start(self, group: _Group) -> None:
        group.tried += 1
        with self._log(group).open("wb") as log:
            process = subprocess.Popen(
                [*self.command, "--group", str(group.share)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, PARENT: str(os.getpid())},
                start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which passes it on
            )
        self.running[process] = group

    def _ended(self, group: _Group, code: int) -> None:
        if code == 0:
            return
        why = self._why(group, code)
        if code == UsageError.exit_code:
            raise UsageError(why)
        if code == PermanentError.exit_code:
            self.failed[f"group {group.share}"] = why
        elif group.tried >= self.tries:
            self.unable[f"group {group.share}"] = why
        else:
            wait = min(FIRST_WAIT_S * 2 ** (group.tried - 1), LONGEST_WAIT_S)
            group.not_before = time.monotonic() + wait
            self.waiting.append(group)
            said = f"splat-fit: group {group.share}: {why}; try {group.tried + 1} of {self.tries} in {wait:.0f} s"
            print(said, file=sys.stderr, flush=True)

    def _why(self, group: _Group, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            return f"its worker was killed by {name}" + " (for want of memory?)" * (name == "SIGKILL")
        lines = self._log(group).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return f"{last.removeprefix('splatclip splat-fit: ')} (exit {code})"

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Ask all workers to stop, and kill those that have not within the grace."""
        for process in self.running:
            process.terminate()
        until = time.monotonic() + grace_s
        for process in self.running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()

    def raise_failures(self, kept: str) -> None:
        """The error of the groups that were given up, if there are any."""
        both = {**self.failed, **self.unable}
        if both:
            text = "; ".join(f"{name}: {why}" for name, why in both.items())
            kind = PermanentError if self.failed else TransientError
            raise kind(f"{len(both)} groups were given up: {text}; {kept}")


def follow_parent() -> None:
    """In a worker: stop as if by SIGTERM once the process that it works for is gone, which can be killed."""
    parent = os.environ.get(PARENT, "")
    if not parent.isdecimal():
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
