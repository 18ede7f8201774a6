"""Faults at every change that a stage makes on disk: points are counted once, then struck one after the other.

The points of a run are all writes, fsyncs, renames, links, new files and folders, and removals below the store and the
temporary folder, and the requests that change something on S3, as fault_shim.c sees them. Commands run in the forked
children of a server that has imported everything (fault_server.py). The seed is printed; SPLATCLIP_TEST_SEED sets it.
"""

from __future__ import annotations

import enum
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from conftest import ROOT

from components.errors import PermanentError
from components.gc import collect
from components.manifest import AT_WORK, MANIFEST, sha256_bytes
from components.store import open_store
from components.verify import verify

HERE = Path(__file__).resolve().parent
LONGEST_S = 120.0
DAY_S = 86_400.0
CANNOT_TEAR = {"fsync", "rename", "link", "mkdir", "unlink", "open", "truncate"}


class Row(Protocol):
    """A line of the table at the end of the run (conftest.py)."""

    def __call__(self, row: str, what: str, count: int, seed: int | None = None, detail: str = "") -> None: ...


class Action(enum.IntEnum):
    """What happens at a point, as in fault_shim.c."""

    COUNT, KILL, TERM, FULL, ONCE, SHORT = range(6)


class When(enum.IntEnum):
    """Where at a point it happens."""

    BEFORE, AFTER, TORN = range(3)


@dataclass(frozen=True)
class Point:
    """A change: its number, the operation, and the path."""

    number: int
    operation: str
    path: str


@dataclass(frozen=True)
class Blow:
    """What is done to a run, and at which point (0: nothing)."""

    point: int = 0
    action: Action = Action.COUNT
    when: When = When.BEFORE
    error: int = errno.ENOSPC

    def __str__(self) -> str:
        return f"{self.action.name} {self.when.name} at {self.point}"


@dataclass(frozen=True)
class Ran:
    """A run that ended: exit code (negative: the signal), its points, pieces of work begun, what it said."""

    code: int
    points: list[Point]
    work: int
    stdout: str
    stderr: str
    scratch: Path

    @property
    def litter(self) -> list[str]:
        """What is left in the temporary folder."""
        return sorted(path.name for path in self.scratch.iterdir())


def seed() -> int:
    """The seed of the choices; printed."""
    given = int(os.environ.get("SPLATCLIP_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"SPLATCLIP_TEST_SEED={given}")
    return given


def shim(folder: Path) -> Path:
    """fault_shim.c, compiled."""
    path = folder / "fault_shim.so"
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(path)]
    subprocess.run([*command, str(HERE / "fault_shim.c"), "-ldl"], check=True)
    return path


class ForkServer:
    """Runs commands in forked children of one process; a context manager. modules: imported before the first fork."""

    def __init__(self, folder: Path, modules: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._modules, self._number = folder, modules, 0

    def __enter__(self) -> ForkServer:
        env = os.environ | {
            "LD_PRELOAD": str(shim(self._folder)),
            "OMP_NUM_THREADS": "1",
            "SPLATCLIP_TRACKING": "off",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self._errors = (self._folder / "server.txt").open("wb")
        command = [sys.executable, str(HERE / "fault_server.py"), "components.__main__"]
        command += ["components.runner", "components.params"]
        self._process = subprocess.Popen(
            [*command, *self._modules], env=env, text=True, cwd=self._folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._reply()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _reply(self) -> Any:
        line = self._process.stdout.readline()
        assert line, (self._folder / "server.txt").read_text()
        return json.loads(line)

    def run(self, argv: Sequence[str], store: str, blow: Blow = Blow(), **more: Any) -> Ran:
        """One command, its store struck as told."""
        [ran] = self.run_all([argv], store, [blow], **more)
        return ran

    def run_all(
        self,
        commands: Sequence[Sequence[str]],
        store: str,
        blows: Sequence[Blow],
        *,
        scratch: Path | None = None,
        port: int = 0,
        plant: str = "",
        also: str = "",
        part_size: int = 0,
    ) -> list[Ran]:
        """Commands at the same time, each with its blow.

        port: of an S3 server; plant: a mistake of fault_planted.py; also: a folder whose points count, too ("/": all);
        part_size: bytes above which a file is uploaded in parts, else the store's own 16 MiB.
        """
        of_s3 = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        cases = []
        for argv, blow in zip(commands, blows, strict=True):
            self._number += 1
            place = self._folder / f"run{self._number}"
            place.mkdir()
            tmp = scratch or place / "tmp"
            tmp.mkdir(exist_ok=True)
            cases.append(
                {
                    "argv": list(argv), "tmp": str(tmp), "env": {"TMPDIR": str(tmp), **of_s3},
                    "folders": [str(tmp), *filter(None, [also]), *([] if "://" in store else [store])],
                    "point": blow.point, "action": blow.action, "when": blow.when, "error": blow.error, "port": port,
                    "plant": plant, "part_size": part_size,
                    **{name: str(place / name) for name in ("stdout", "stderr", "work", "points", "modules")},
                }
            )  # fmt: skip
        self._ask({"cases": cases, "seconds": LONGEST_S})
        return [self._ran(case, code) for case, code in zip(cases, self._reply(), strict=True)]

    def _ask(self, request: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def learn(self) -> None:
        """Import what the last command imported, so that the next one has it."""
        names = (self._folder / f"run{self._number}" / "modules").read_text().split()
        self._ask({"cases": [], "seconds": 0, "learn": names})
        self._reply()

    def _ran(self, case: dict[str, Any], code: int) -> Ran:
        texts = {}
        for name in ("stdout", "stderr", "work", "points"):
            path = Path(case[name])
            texts[name] = path.read_text(errors="replace") if path.exists() else ""
        points = [Point(int(n), op, path) for n, op, path in (x.split(" ", 2) for x in texts["points"].splitlines())]
        points.sort(key=lambda point: point.number)
        work = sum(map(int, texts["work"].split()))
        return Ran(code, points, work, texts["stdout"], texts["stderr"], Path(case["tmp"]))

    def tidy(self) -> None:
        """Drop what earlier runs left."""
        for path in self._folder.glob("run*"):
            shutil.rmtree(path)


@dataclass
class Command:
    """A stage's command. repeats: work that one interval or shard is, at most; varies: threads decide on its points."""

    name: str
    stage: str
    args: list[str]
    repeats: int
    varies: bool = False

    def argv(self, store: str) -> list[str]:
        """Its arguments with a store."""
        return [self.name, *self.args, "--store", store]


def command(stage: str, folder: Path, params: Mapping[str, Any], repeats: int, **inputs: str) -> Command:
    """A stage's command with its parameters, in a file below `folder`."""
    path = folder / f"{stage}.yaml"
    path.write_text(yaml.safe_dump({stage: dict(params)}))
    args = ["--params", str(path)]
    for name, url in inputs.items():
        args += [f"--{name}", url]
    return Command(stage.replace("_", "-"), stage, args, repeats)


def contents(store: str) -> dict[str, str]:
    """sha256 of every file of a store, those still being written too, by name."""
    place = open_store(store)
    if "://" in store:
        return {file.name: sha256_bytes(place.get_bytes(file.name)) for file in place.entries()}
    return {
        path.relative_to(store).as_posix(): sha256_bytes(path.read_bytes())
        for path in sorted(Path(store).rglob("*"))
        if path.is_file()
    }


def manifests(files: Mapping[str, str]) -> dict[str, str]:
    """Those that are manifests."""
    return {name: digest for name, digest in files.items() if name.rpartition("/")[2] == MANIFEST}


def is_sound(store: str, finished: bool) -> None:
    """`splatclip verify` finds no damage; where nothing is finished, it says so."""
    if finished:
        found = verify(store)
        assert not found.damaged, list(found.lines())
    else:
        with pytest.raises(PermanentError, match="no finished output lies there"):
            verify(store)


def tidied(store: str) -> dict[str, str]:
    """What is left in a store once `splatclip gc` was there, two days later."""
    collect(store, dry_run=False, now=time.time() + 2 * DAY_S)
    return contents(store)


def in_order(points: Sequence[Point], store: str) -> None:
    """Nothing gets its name in the store before its bytes are on the disk, and no name waits for long.

    Every rename follows an fsync of the file after its last write, and is followed by an fsync of the folder.
    """
    inside = [point for point in points if point.path.startswith(f"{store}/")]
    synced: dict[str, bool] = {}  # by folder: the temporary file's state
    for number, point in enumerate(inside):
        folder, _, last = point.path.rpartition("/")
        if last.startswith(".tmp-") and point.operation in {"write", "fsync"}:
            synced[folder] = point.operation == "fsync"
        elif point.operation == "rename":
            assert synced.pop(folder, False), f"{point.path} has its name before its bytes are on the disk"
            after = next((later for later in inside[number + 1 :] if later.operation == "fsync"), None)
            assert after is not None, f"{point.path}: its folder is not synced"
            assert after.path == folder, f"{point.path}: its folder is not synced"
        else:
            assert point.operation != "write", f"{point.path} is written to under its own name"


@dataclass
class Whole:
    """An undisturbed run: its store's files, its points, and the work it did."""

    files: dict[str, str]
    ran: Ran

    @property
    def kinds(self) -> str:
        """How many points of each operation."""
        counts = Counter(point.operation for point in self.ran.points)
        return ", ".join(f"{operation} {number}" for operation, number in sorted(counts.items()))


def undisturbed(server: ForkServer, what: Command, store: str, **more: Any) -> Whole:
    """Run a command and count its points."""
    ran = server.run(what.argv(store), store, **more)
    assert ran.code == 0, ran.stderr
    assert not ran.litter
    server.learn()
    files = contents(store)
    assert manifests(files)
    is_sound(store, finished=True)
    return Whole(files, ran)


def killing(points: Sequence[Point], bar: int, rng: random.Random) -> list[Blow]:
    """At least `bar` blows, over all points where they are fewer: each point, then (point, kind) pairs by chance.

    Of the first blows at a point half are before it, half after it or in its midst; every fifth is a SIGTERM.
    """
    pairs = [
        (point, action, when)
        for point in points
        for action in (Action.KILL, Action.TERM)
        for when in When
        if when is not When.TORN or point.operation not in CANNOT_TEAR
    ]
    if len(points) > bar:
        spread = {round(i * (len(points) - 1) / (bar // 2 - 1)) for i in range(bar // 2)} if bar > 3 else {0}
        rest = [i for i in range(len(points)) if i not in spread]
        chosen = [points[i] for i in sorted(spread | set(rng.sample(rest, bar - len(spread))))]
    else:
        chosen = list(points)
    turn = rng.randrange(1000)
    first = []
    for i, point in enumerate(chosen, turn):
        after = When.AFTER if point.operation in CANNOT_TEAR else When.TORN
        first.append((point, Action.TERM if i % 5 == 0 else Action.KILL, When.BEFORE if i % 2 == 0 else after))
    left = [pair for pair in pairs if pair not in set(first)]
    rng.shuffle(left)
    every = first + left[: max(0, bar - len(first))]
    return [Blow(point.number, action, when) for point, action, when in every]


def _expected(blow: Blow) -> int:
    return -signal.SIGKILL if blow.action is Action.KILL else 143


def _passing(name: str) -> bool:
    """Whether a file lies there only until its stage has finished: it is no output, and no reader opens it."""
    return "/_checkpoint/" in name or name.endswith(f"/{AT_WORK}")


def survives_kill(server: ForkServer, what: Command, whole: Whole, store: str, blow: Blow, **more: Any) -> int:
    """The row "kill -9 / SIGTERM": strike, look, run again, look. How many uploads in parts the blow left behind."""
    ran = server.run(what.argv(store), store, blow, **more)
    while what.varies and ran.code == 0 and len(ran.points) < blow.point:  # it had fewer points this time
        blow, store = replace(blow, point=blow.point - 5), f"{store}x"
        ran = server.run(what.argv(store), store, blow, **more)
    where = f"{what.stage}: {blow} ({ran.points[-1]})"
    assert ran.code == _expected(blow), f"{where}: exit {ran.code}\n{ran.stderr}"
    there, left = contents(store), len(open_store(store).uploads())
    temporary = {name for name in there if name.rpartition("/")[2].startswith(".tmp-")}
    for name in there.keys() - temporary:
        undone = f"{where}: {name} is visible and not the undisturbed run's"
        assert there[name] == whole.files.get(name) or _passing(name), undone
    is_sound(store, finished=bool(manifests(there)))
    if blow.action is Action.TERM:
        assert not ran.litter, f"{where}: left in the temporary folder: {ran.litter}"
        assert not temporary, f"{where}: left in the store: {temporary}"
        assert not left, f"{where}: left in the store: {left} uploads in parts"
        assert "run the same command again" in ran.stderr, f"{where}: {ran.stderr}"
        assert "Traceback" not in ran.stderr, f"{where}: {ran.stderr}"
    again = server.run(what.argv(store), store, **more)
    assert again.code == 0, f"{where}: {again.stderr}"
    repeated = ran.work + again.work - whole.ran.work
    assert repeated <= what.repeats, f"{where}: {repeated} pieces of work were done twice; {what.repeats} at most"
    assert tidied(store) == whole.files, f"{where}: the rerun differs"
    assert not open_store(store).uploads(), f"{where}: uploads in parts are still there"
    is_sound(store, finished=True)
    return left


def finished_before(store: str, stage: str) -> str:
    """Put a finished output of another stage than `stage` into a store; the store."""
    from picture_sets import commit_images, png_samples

    other = "splat_fit" if stage == "download" else "download"
    shards = [("train", png_samples(0, 2, 8, 8)), ("test", png_samples(2, 2, 8, 8))]
    commit_images(store, shards, source="finished before", stage=other)
    return store


def survives_full_disk(server: ForkServer, what: Command, whole: Whole, store: str, blow: Blow, **more: Any) -> None:
    """The row "disk full": a typed exit that says where and what to do, nothing partial, the rerun as undisturbed.

    What lies in the store before stays as it is.
    """
    where = f"{what.stage}: {blow}, {errno.errorcode[blow.error]} ({whole.ran.points[blow.point - 1]})"
    earlier = contents(store)
    files = earlier | whole.files
    ran = server.run(what.argv(store), store, blow, **more)
    if ran.code == 0 and blow.action is not Action.FULL:  # a short write, or a file that could as well not be removed
        assert tidied(store) == files, where
        return
    assert ran.code == 75, f"{where}: exit {ran.code}\n{ran.stderr}"
    assert "free some space" in ran.stderr, f"{where}: {ran.stderr}"
    named = re.search(r"(/[^\s:]+): (?:No space left on device|Disk quota exceeded)", ran.stderr)
    assert named, f"{where}: {ran.stderr}"
    assert named[1].startswith((store, str(ran.scratch))), f"{where}: {ran.stderr}"
    assert "Traceback" not in ran.stderr, f"{where}: {ran.stderr}"
    assert not ran.litter, f"{where}: left in the temporary folder: {ran.litter}"
    there = contents(store)
    assert there.items() >= earlier.items(), f"{where}: an output that was finished before is another"
    for name, digest in there.items():
        assert files.get(name) == digest or _passing(name), f"{where}: {name}"
    is_sound(store, finished=bool(manifests(there)))
    again = server.run(what.argv(store), store, **more)
    assert again.code == 0, f"{where}: {again.stderr}"
    assert tidied(store) == files, f"{where}: the rerun differs"
