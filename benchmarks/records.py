"""Rows of measurements in a JSON file: appended as they are made, found again by a later call."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import splat2d

Row = dict[str, Any]


def processor() -> str:
    """The processor's name, with family and model: virtual machines call processors of several generations the same."""
    cpuinfo = Path("/proc/cpuinfo")
    found: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    if "model name" not in found:
        return platform.machine()
    return f"{found['model name']} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"


def commit() -> str:
    """The checkout's commit, "+" behind it where files differ from it; $COMMIT where git does not know it."""
    found = ""
    if shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty=+"]
        here = Path(__file__).resolve().parent
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.strip()
    return found or os.environ.get("COMMIT", "unknown")


def module_digest() -> str:
    """What the native module and the recipes are: rows of different builds are not mixed."""
    total = hashlib.sha256(repr(splat2d.RECIPES).encode())
    total.update(Path(splat2d._core.__file__ or "").read_bytes())
    return total.hexdigest()[:12]


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; of several processes one at a time."""
    fresh = path.with_suffix(f"{path.suffix}.tmp")
    fresh.write_text(text)
    os.replace(fresh, path)


class Journal:
    """The rows of one JSON file. A row is found again by its key, among rows of the same origin.

    origin: what makes rows comparable (pictures, threads, processor, build). Rows of another origin stay in the file
    and are not used. Each row says when, by which command and from which commit it was made. Several processes may
    add to one file.
    """

    def __init__(self, path: Path | None, origin: Row, command: str = "") -> None:
        self.path, self.origin = path, origin
        self.command = command or shlex.join(["python", *sys.argv])
        self._all = self._read()
        self.resumed = len(self.rows())

    def rows(self) -> list[Row]:
        """Rows of this origin."""
        return [row for row in self._all if row["origin"] == self.origin]

    def everything(self) -> list[Row]:
        """Rows of all origins."""
        return list(self._all)

    @property
    def others(self) -> int:
        """How many rows of another origin the file holds."""
        return len(self._all) - len(self.rows())

    def find(self, key: Row) -> Row | None:
        """The row with this key."""
        return next((row for row in self.rows() if row["key"] == key), None)

    def once(self, key: Row, measure: Callable[[], Row]) -> Row:
        """The row with this key; measured and kept where there is none."""
        found = self.find(key)
        if found is not None:
            return found
        values = measure()
        made = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "commit": commit(),
            "command": self.command,
        }
        row: Row = {"key": key, **values, "made": made, "origin": self.origin}
        if self.path is None:
            self._all.append(row)
            return row
        with self._locked(self.path):
            self._all = self._read()  # another process may have added to it
            if (found := self.find(key)) is not None:
                return found
            self._all.append(row)
            replace_text(self.path, "[\n" + ",\n".join(json.dumps(row) for row in self._all) + "\n]\n")
        return row

    def report(self, made: Callable[[], str]) -> None:
        """Write what `made` says of the rows, those of other processes too, to the file's twin in Markdown."""
        if self.path is None:
            return
        with self._locked(self.path):
            self._all = self._read()
            replace_text(self.path.with_suffix(".md"), made())

    @staticmethod
    @contextmanager
    def _locked(path: Path) -> Iterator[None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> list[Row]:
        found: list[Row] = json.loads(self.path.read_text()) if self.path is not None and self.path.exists() else []
        return found

    def notes(self) -> list[str]:
        """For the head of a report: what made the rows."""
        rows = self.rows()
        made = [row["made"] for row in rows]
        lines = [f"{name}: {value}" for name, value in self.origin.items()]
        lines.append("commit: " + ", ".join(sorted({one["commit"] for one in made})))
        lines += [f"command: `{command}`" for command in sorted({one["command"] for one in made})]
        if made:
            first, last = min(one["date"] for one in made), max(one["date"] for one in made)
            lines.append(f"date: {first} to {last} UTC")
        if self.resumed:
            lines.append(f"{self.resumed} of {len(rows)} rows are from an earlier call; each row in the JSON says when")
        if self.others:
            lines.append(f"the JSON also holds {self.others} rows of other builds, pictures or threads, not used here")
        return lines


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
