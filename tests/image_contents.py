"""What an image of ours may hold and say of itself, read from its configuration and its files."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from conftest import ROOT

FOLDER = ROOT / "build/image"
ENVIRONMENT = {
    **os.environ,
    "CONTAINERS_CONF": str(ROOT / "tests/image/containers.conf"),
    "CONTAINERS_STORAGE_CONF": str(FOLDER / "storage.conf"),
    "BUILDAH_ISOLATION": "chroot",
}
LOCKED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")
TOOLS = re.compile(
    r"(\w+-linux-gnu-)?(gcc|g\+\+|cc|c\+\+|cpp|clang|ld|as|make|cmake|ninja|nvcc|ptxas|cicc|git|pip[\d.]*)"
    r"(-[\d.]+)?"
)
LEFT_OVERS = (
    *("root/.cache", "root/.config", "src", "out", "wheels", "scripts", "toolkit", "mnt", "tmp"),
    *("var/tmp", "var/lib/apt/lists", "var/cache/apt"),
)
BIN = ("bin", "sbin", "libexec")
SITE = "opt/splatclip/lib/python3.11/site-packages"


def podman(*words: str | Path, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run podman with the tests' own store of images."""
    done = subprocess.run(
        ["podman", *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False, **more
    )
    assert not check or done.returncode == 0, f"podman {' '.join(map(str, words))}: {done.stdout}{done.stderr}"
    return done


@contextmanager
def files_of(image: str) -> Iterator[Path]:
    """The root of the image's files, to be read."""
    try:
        yield Path(podman("image", "mount", image).stdout.strip())
    finally:
        podman("image", "unmount", image)


def findings(image: str, lock: Callable[[], dict[str, str]]) -> list[str]:
    """What is wrong with the image, a line each."""
    with files_of(image) as root:
        return [*configuration(image), *_files(root), *_packages(root, lock())]


def configuration(image: str) -> Iterator[str]:
    """What is wrong with what the image says of itself."""
    (about,) = json.loads(podman("image", "inspect", image).stdout)
    config, labels = about["Config"], about["Labels"] or {}
    user = config.get("User", "")
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
        yield f"user {user!r} is not a number above 0: Kubernetes refuses it as runAsNonRoot"
    if config.get("Entrypoint"):
        yield f"entrypoint {config['Entrypoint']}: Kubeflow's local runner does not replace it"
    for name in ("title", "description", "licenses", "version", "revision", "created"):
        if not labels.get(f"org.opencontainers.image.{name}"):
            yield f"label {name} is missing"
    given = dict(entry.partition("=")[::2] for entry in config["Env"])
    for name in given:
        if re.match(r"PIP_|TORCH_INDEX|.*(SECRET|TOKEN|PASSWORD)", name):
            yield f"variable {name} is left from the build"
    for name in ("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME"):
        if not f"{given.get(name)}/".startswith("/tmp/"):
            yield f"{name}={given.get(name)} is not below /tmp"


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            yield os.path.relpath(path, root), os.lstat(path)


def _files(root: Path) -> Iterator[str]:
    for path, about in _walk(root):
        mode = about.st_mode
        regular = stat.S_ISREG(mode)
        if regular and mode & (stat.S_ISUID | stat.S_ISGID):
            yield f"{path} lends its owner's rights ({stat.filemode(mode)})"
        folder, name = os.path.split(path)
        if TOOLS.fullmatch(name) and mode & 0o111 and not stat.S_ISDIR(mode) and os.path.basename(folder) in BIN:
            yield f"{path} is a tool for building"
        if path.startswith("opt/splatclip") and not stat.S_ISLNK(mode):
            if mode & 0o022:
                yield f"{path} can be changed by others ({stat.filemode(mode)})"
            if not mode & 0o004 or (stat.S_ISDIR(mode) and not mode & 0o001):
                yield f"{path} cannot be read by everyone ({stat.filemode(mode)})"
    for name in LEFT_OVERS:
        there = root / name
        left = (
            [path for path in there.rglob("*") if not path.is_dir() and path.lstat().st_size] if there.is_dir() else []
        )
        if left:
            yield f"{name} holds {left[0].relative_to(root)} and {len(left) - 1} more"
    if (root / "usr/include/stdio.h").exists():
        yield "usr/include holds C's headers"
    for name in ("components/__init__", "torch/__init__", "kfp/__init__"):
        package, module = name.split("/")
        if not (root / SITE / package / f"__pycache__/{module}.cpython-311.pyc").is_file():
            yield f"{package} is not compiled, and nobody can later"


def _packages(root: Path, lock: dict[str, str]) -> Iterator[str]:
    installed = distributions(path=[str(root / SITE)])
    found = {re.sub(r"[-_.]+", "-", one.name).lower(): one.version.partition("+")[0] for one in installed}
    for name, version in found.items():
        if name != "splatclip" and lock.get(name) != version:
            yield f"{name} {version} is not what is locked: {lock.get(name)}"
    for name in ("splatclip", "torch", "kfp", "mlflow"):
        if name not in found:
            yield f"{name} is not installed"
    for name in ("pytest", "ruff", "mypy", "moto", "pip", "cmake", "scikit-build-core"):
        if name in found:
            yield f"{name} is installed"


def run_locked(
    image: str, *command: str, options: Sequence[str] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in the image as a cluster's restricted pods do: only /tmp can be written."""
    return podman("run", "--rm", *LOCKED, "--tmpfs=/tmp:mode=1777", *options, image, *command, check=check)
