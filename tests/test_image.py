"""The container image, built from the Dockerfile for real, looked through, and run as a cluster runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from image_contents import ENVIRONMENT, FOLDER, SITE, configuration, findings, podman, run_locked
from test_bill import script

from components import STAGES

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]  # from nothing, on cores that others use too
CPU, GPU = IMAGES = ("localhost/splatclip-python:cpu", "localhost/splatclip-python:gpu")
# What makes an image that is not fit, and how that is told.
PLANTED = {
    "USER root": "user 'root' is not a number",
    "USER splatclip": "user 'splatclip' is not a number",
    'ENTRYPOINT ["splatclip"]': "entrypoint",
    "ENV PIP_INDEX_URL=https://name:password@index.invalid": "variable PIP_INDEX_URL is left",
    "ENV HOME=/root": "HOME=/root is not below /tmp",
    'LABEL org.opencontainers.image.revision=""': "label revision is missing",
    "RUN touch /usr/bin/gcc-12 && chmod +x /usr/bin/gcc-12": "usr/bin/gcc-12 is a tool for building",
    "RUN chmod u+s /usr/bin/passwd": "usr/bin/passwd lends its owner's rights",
    "RUN mkdir -p /root/.cache/pip && echo > /root/.cache/pip/wheel": "root/.cache holds root/.cache/pip/wheel",
    "RUN chmod o+w /opt/splatclip/lib": "opt/splatclip/lib can be changed by others",
    "RUN chmod o-r /opt/splatclip/bin/splatclip": "opt/splatclip/bin/splatclip cannot be read by everyone",
    "RUN mkdir -p /usr/include && touch /usr/include/stdio.h": "usr/include holds C's headers",
    f"RUN rm /{SITE}/kfp/__pycache__/__init__.cpython-311.pyc": "kfp is not compiled",
    f"RUN mv /{SITE}/mlflow-*.dist-info /tmp/": "mlflow is not installed",
    f"RUN cd /{SITE} && sed -i 's/^Version: .*/Version: 0.0.1/' aiohttp-*/METADATA": "aiohttp 0.0.1 is not",
    f"RUN mkdir /{SITE}/pytest-8.0.dist-info && cd /{SITE}/pytest-8.0.dist-info && "
    "printf 'Metadata-Version: 2.1\\nName: pytest\\nVersion: 8.0\\n' > METADATA": "pytest is installed",
}


def locked() -> dict[str, str]:
    pins: dict[str, str] = script("sbom").locked(ROOT / "requirements.lock")
    return pins


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Both targets, in the tests' own store of images."""
    done = subprocess.run(
        [ROOT / "tests/image/build.sh", FOLDER],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)  # with the images' sizes and digests
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("image", IMAGES)
def test_it_holds_what_it_should_and_nothing_else(image: str) -> None:
    assert findings(image, locked) == []


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    """All of it in one image; a second user in another one, of which only the configuration is looked at."""
    users = [line for line in PLANTED if line.startswith("USER")]
    others = [line for line in PLANTED if line not in users]

    def planted(user: str) -> str:
        (tmp_path / "Dockerfile").write_text("\n".join([f"FROM {CPU}", "USER root", *others, user]))
        podman("build", "--quiet", "--layers", "--tag", "localhost/planted", tmp_path)
        return "localhost/planted"

    found = findings(planted(users[0]), locked)
    for user in users[1:]:
        found += configuration(planted(user))
    missed = [line for line, words in PLANTED.items() if not any(one.startswith(words) for one in found)]
    assert missed == []
    podman("image", "rm", "localhost/planted")


@pytest.mark.parametrize(("image", "uid"), [(CPU, "1234567890:0"), (GPU, "")])  # as OpenShift makes them up; its own
def test_anybody_can_run_it_with_nothing_but_tmp(image: str, uid: str) -> None:
    options = ["--volume", f"{ROOT}/tests/image/probe.py:/probe.py:ro", *(["--user", uid] if uid else [])]
    about = json.loads(run_locked(image, "python3", "/probe.py", options=options).stdout)
    assert about["uid"] == int(uid.partition(":")[0] or 65532)
    assert about["user"] == "splatclip"
    assert about["capabilities"] == 0
    assert about["no_new_privileges"]
    assert about["writable"] == ["/tmp", "/tmp"]  # the second is HOME
    assert not {"", "/tmp", "/"} & {*about["path"]}
    assert about["cuda_kernels"] is (image == GPU)
    assert about["modules"] > 100
    git = ["git", "-C", str(ROOT)]
    sha = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert about["origin"]["git.sha"] == sha
    assert about["origin"]["git.dirty"] in ("true", "false")


@pytest.mark.parametrize("image", IMAGES)
def test_the_command_answers(image: str) -> None:
    assert run_locked(image, "splatclip", "--version").stdout == f"splatclip {version('splatclip')}\n"
    assert "zero-shot-eval" in run_locked(image).stdout  # without a command: the help
    failed = run_locked(image, "splatclip", "run", "--params", "/none.yaml", check=False)
    assert failed.returncode == 2
    assert "/none.yaml" in failed.stderr


@pytest.fixture
def docker_socket(tmp_path: Path) -> Iterator[str]:
    """Podman, answering as Docker's daemon does."""
    socket = tmp_path / "podman.sock"
    with subprocess.Popen(
        ["podman", "system", "service", "--time", "0", f"unix://{socket}"], env=ENVIRONMENT
    ) as service:
        try:
            deadline = time.monotonic() + 60
            while not socket.exists():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield f"unix://{socket}"
        finally:
            service.terminate()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_kubeflows_steps_make_in_it_what_they_make_here(tmp_path: Path, docker_socket: str) -> None:
    """The pipeline as locked containers of another user, and the command on this machine: the same bytes."""
    about: dict[str, Any] = {"params": str(ROOT / "tests/tiny.yaml"), "image": CPU, "user": "65532:65532"}
    for name in ("store", "root"):
        about[name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents[:2]):  # pytest's are its own user's
        folder.chmod(folder.stat().st_mode | 0o011)
    (tmp_path / "about.json").write_text(json.dumps(about))
    environment = {**os.environ, "DOCKER_HOST": docker_socket, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "tests/image/kfp_run.py", tmp_path / "about.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    here = ["--params", about["params"], "--store", f"{tmp_path}/here", "--out", f"{tmp_path}/out", "--no-tracking"]
    subprocess.run([sys.executable, "-m", "components", "run", *here], cwd=ROOT, check=True, capture_output=True)
    for stage in STAGES:
        made = tree(tmp_path / "store" / stage)
        assert any(name.endswith("manifest.json") for name in made)
        assert made == tree(tmp_path / "here" / stage)
    assert any(name.endswith(".tar") for name in tree(tmp_path / "store" / "splat_fit"))
    assert {path.stat().st_uid for path in (tmp_path / "store").rglob("*")} == {65532}
