"""`make image`, short of the building: which builder it takes, what it hands on, what it refuses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

TOOLS = ("bash", "sh", "dirname", "sed", "git", "date", "make", "cat")
# Answers `info` as it is told to, and says what else it was asked.
BUILDER = """#!/bin/sh
case $1 in
  info) exit {info} ;;
  build) printf '%s\\n' "{name}" "$@" > "$ASKED" ;;
  image) echo "12345678 sha256:abc" ;;
esac
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def builder(programs: Path, name: str, info: int = 0) -> None:
    (programs / name).write_text(BUILDER.format(name=name, info=info))
    (programs / name).chmod(0o755)


def make(programs: Path, *variables: str) -> tuple[int, str, list[str]]:
    """Its exit code, what it said, and what the builder was asked, the builder's name first."""
    asked = programs.parent / "asked"
    command = ["make", "--no-print-directory", "image", *variables]
    environment = {"PATH": str(programs), "ASKED": str(asked)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr, asked.read_text().splitlines() if asked.exists() else []


def test_without_a_builder_it_says_what_to_install(programs: Path) -> None:
    builder(programs, "docker", info=1)  # the client, without its daemon
    code, said, asked = make(programs)
    assert code != 0
    assert "neither docker (with its daemon), podman nor buildah works here" in said
    assert asked == []


def test_whoever_builds_for_the_cpu_is_told_where_its_torch_comes_from() -> None:
    """From where everything else comes it is torch for CUDA, and the build ends with .ci/image/check.py."""
    found = []
    for name in ("Dockerfile", "README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))):
        text = (ROOT / name).read_text("utf-8")
        found += [(name, line) for line in text.splitlines() if re.search(r"(--target|TARGET)[ =]cpu", line)]
    assert {"Dockerfile", "docs/image.md"} <= {name for name, _ in found}
    assert [(name, line) for name, line in found if "TORCH_INDEX_URL=ADDRESS" not in line] == []


def test_the_first_that_works_builds_for_gpus(programs: Path) -> None:
    builder(programs, "docker", info=1)
    builder(programs, "podman")
    code, said, asked = make(programs)
    assert code == 0, said
    assert asked[:6] == ["podman", "build", "--target", "gpu", "--tag", "splatclip-python:dev"]
    sha = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert [one.removesuffix("-dirty") for one in asked if one.startswith("GIT_SHA=")] == [f"GIT_SHA={sha.strip()}"]
    assert asked[-1] == "."
    assert "image: splatclip-python:dev (gpu, " in said
    assert "): 12 MB, sha256:abc" in said


def test_what_is_given_is_handed_on(programs: Path, tmp_path: Path) -> None:
    builder(programs, "docker")
    builder(programs, "podman")
    (tmp_path / "pip.conf").touch()
    given = {
        "PYTHON_IMAGE": "python@sha256:1",
        "BUILD_IMAGE": "python@sha256:2",
        "CUDA_IMAGE": "cuda@sha256:3",
        "CUDA_ARCHITECTURES": "80-real;90-real",
        "TORCH_INDEX_URL": "https://torch.invalid",
        "PIP_INDEX_URL": "https://rest.invalid",
        "PIP_NO_INDEX": "1",
    }
    others = ["BUILDER=podman", "TARGET=cpu", "IMAGE=us", f"WHEELS={tmp_path}", f"PIP_CONFIG={tmp_path}/pip.conf"]
    code, said, asked = make(programs, *others, *(f"{name}={value}" for name, value in given.items()))
    assert code == 0, said
    assert asked[:6] == ["podman", "build", "--target", "cpu", "--tag", "us"]
    assert {f"{name}={value}" for name, value in given.items()} <= {*asked}
    assert {f"wheels={tmp_path}", f"id=pip,src={tmp_path}/pip.conf", "--secret", "--build-context"} <= {*asked}
    assert 'no "python" in us' in said


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("TARGET=tpu", "there are the targets cpu and gpu"),
        ("BUILDER=kaniko", "there is no such program here"),
        ("WHEELS=/none", "no such folder"),
        ("PIP_CONFIG=/none", "no such file"),
    ],
)
def test_what_cannot_be_is_refused(programs: Path, given: str, told: str) -> None:
    builder(programs, "docker")
    code, said, asked = make(programs, given)
    assert code != 0
    assert f"image: {given}: {told}" in said
    assert asked == []


def test_every_argument_of_the_dockerfile_can_be_given() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    arguments = {one.partition("=")[0] for line in lines if line.startswith("ARG ") for one in line.split()[1:]}
    script = (ROOT / ".ci/image.sh").read_text()
    assert {name for name in arguments if name not in script} == set()
    assert "CUDA_ARCHITECTURES" in arguments


def test_mounts_have_names_of_their_own() -> None:
    """podman 4.3.1 deletes all of a step's files where the mount's name leads to its own images on its machine."""
    targets = set(re.findall(r"--mount=\S*target=([^\s,]+)", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    assert targets == {"/wheels", "/scripts", "/toolkit", "/etc/pip.conf"}
