"""Write a software bill of materials (CycloneDX, JSON) of what .venv, or an image, holds: `make sbom`.

Every component is one that requirements.lock pins, with its licence as its own metadata declares it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "build" / "tools" / "bin"
NOT_LOCKED = {"pip", "setuptools", "wheel", "splatclip"}  # what a virtual environment brings, and the project itself


def plain(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(path: Path) -> dict[str, str]:
    """Name -> version of a lock file."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {plain(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def strangers(bill: dict[str, Any], lock: dict[str, str]) -> list[str]:
    """Components that the lock has not, or in another version; a build's label (+cpu) is none."""
    found = []
    for one in bill["components"]:
        name, version = plain(one["name"]), one["version"].partition("+")[0]
        if name not in NOT_LOCKED and lock.get(name) != version:
            found.append(f"{name} {version} (locked: {lock.get(name, 'not at all')})")
    return found


def unlicensed(bill: dict[str, Any]) -> list[str]:
    """Components whose metadata declares no licence."""
    return sorted(plain(one["name"]) for one in bill["components"] if not one.get("licenses"))


@contextmanager
def python_of(site: Path) -> Iterator[Path]:
    """What says, when it is asked as a Python would be, that it finds its modules in `site`, and runs nothing of it."""
    with TemporaryDirectory(prefix="splatclip-sbom-") as folder:
        script = Path(folder, "python")
        script.write_text(f"#!{sys.executable}\nprint({json.dumps([str(site.resolve())])!r})\n", encoding="utf-8")
        script.chmod(0o700)
        yield script


def main() -> int:
    """Returns the exit code: 0, or 1 where the environment holds what is not locked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=str(ROOT / ".venv" / "bin" / "python"), help="of the environment")
    parser.add_argument("--site", type=Path, help="instead: a folder site-packages, such as an image's")
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock")
    parser.add_argument("--tools", type=Path, default=TOOLS)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "sbom.cdx.json")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if given.site and not given.site.is_dir():
        parser.error(f"--site {given.site}: no such folder")
    options = ["--output-reproducible", "--validate", "--output-format", "JSON", "--output-file", given.out]
    with python_of(given.site) if given.site else nullcontext(given.python) as python:
        command = [given.tools / "cyclonedx-py", "environment", python, "--pyproject", ROOT / "pyproject.toml"]
        done = subprocess.run([*command, *options], check=False)
    if done.returncode:
        print(f"sbom: cyclonedx-py ended with {done.returncode}", file=sys.stderr)
        return 1
    bill = json.loads(given.out.read_text(encoding="utf-8"))
    without = unlicensed(bill)
    print(f"sbom: {given.out}: {len(bill['components'])} components, CycloneDX {bill['specVersion']}")
    print(f"sbom: {len(without)} declare no licence in their metadata: {', '.join(without) or 'none'}")
    if others := strangers(bill, locked(given.lock)):
        print(f"sbom: not as {given.lock.name} pins them: {', '.join(others)}; run `make lock`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
