"""tests/e2e/kind.sh and what runs there: pods that the machine has room for, and an end where they find none."""

from __future__ import annotations

import os
import re
import subprocess
from itertools import chain, combinations
from pathlib import Path

import pytest
from conftest import ROOT
from manifests import Object, containers, find, fit_job, quantity, templates

from components import FLOW
from components.config import Params
from components.params import load_params

KIND = ROOT / "params/kind.yaml"
OF_KUBEFLOW = {"cpu": 2.0, "memory": 4.0 * 2**30}  # and of Kubernetes itself: about what their manifests ask for
BEFORE: dict[str, set[str]] = {}
for step in FLOW:
    direct = {*step.inputs.values(), *step.after}
    BEFORE[step.name] = direct.union(*(BEFORE[one] for one in direct))


def machine() -> dict[str, float]:
    """What all places say that it takes."""
    said = set()
    for name in ("tests/e2e/kind.sh", "docs/untested.md", "docs/cluster.md", "params/kind.yaml"):
        text = re.sub(r"[\s#]+", " ", (ROOT / name).read_text("utf-8"))
        said |= {(int(cores), int(gib)) for cores, gib in re.findall(r"(\d+) cores and (\d+) GiB", text)}
    ((cores, gib),) = said
    return {"cpu": float(cores), "memory": float(gib << 30)}


def requests(pod: Object, kind: str) -> float:
    return sum(quantity(container["resources"]["requests"][kind]) for container in containers(pod))


def most_at_once(params: Params, kind: str) -> float:
    """What those steps ask for that no step between them keeps apart, at most."""
    asked = {step.name: quantity(getattr(getattr(params.resources, step.stage), kind)) for step in FLOW}
    sets = chain.from_iterable(combinations(asked, size) for size in range(1, len(asked) + 1))
    apart = (names for names in sets if not any(BEFORE[one] & {*names} for one in names))
    return max(sum(asked[name] for name in names) for names in apart)


def room(objects: list[Object], kind: str) -> float:
    """What is left beside all that runs always."""
    standing = sum(
        requests(pod, kind) for owner, _, pod in templates(objects) if owner.startswith(("Deployment", "StatefulSet"))
    )
    assert standing > 0
    return machine()[kind] - OF_KUBEFLOW[kind] - standing


@pytest.mark.parametrize("kind", ["cpu", "memory"])
def test_the_machine_has_room_for_all_steps_that_run_at_once(rendered: dict[str, list[Object]], kind: str) -> None:
    left = room(rendered["overlays/kind"], kind)
    assert most_at_once(load_params(KIND), kind) <= left
    assert most_at_once(load_params(ROOT / "params.yaml"), kind) > left, "that is why there is a profile for kind"


def test_quota_and_machine_have_room_for_fitters(rendered: dict[str, list[Object]]) -> None:
    objects, fleet = rendered["overlays/kind"], load_params(KIND).fleet
    quota = find(objects, "ResourceQuota", "splatclip")["spec"]["hard"]
    fitter = fit_job(objects)["spec"]["template"]
    assert fleet.namespace == "splatclip", "pipeline-runner may start them there alone"
    for kind, launcher in (("cpu", 1.0), ("memory", 4.0 * 2**30)):
        wanted = fleet.parallelism * requests(fitter, kind)
        assert wanted + launcher <= room(objects, kind)
        assert wanted + machine()[kind] - room(objects, kind) <= quantity(quota[f"requests.{kind}"])


def test_what_the_script_looks_for_in_a_log_is_written_there() -> None:
    """Steps' lines go to stderr only beside --json (pipelines/follow.py)."""
    lines = re.sub(r"\\\n *", "", (ROOT / "tests/e2e/kind.sh").read_text("utf-8")).splitlines()
    followed = [line for line in lines if "2> >(tee" in line]
    assert len(followed) == 3
    for line in followed:
        assert "--follow --json" in line


def test_a_run_whose_pods_wait_for_ever_ends_the_script(tmp_path: Path) -> None:
    script, programs = tmp_path / "tests/e2e/kind.sh", tmp_path / "bin"
    for path in (script, *(ROOT / "k8s/overlays/kind").glob("*.example")):
        source = ROOT / path.relative_to(tmp_path if path == script else ROOT)
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    programs.mkdir()
    waiting = 'case "$*" in *submit*) echo "$@" > "$ASKED"; exec sleep 60 ;; esac\n'
    for name in ("kind", "kubectl", "docker", "openssl", "splatclip"):
        (programs / name).write_text(f"#!/bin/sh\n{waiting if name == 'splatclip' else ''}")
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "BIN": str(programs), "TMPDIR": str(tmp_path),
        "ASKED": str(tmp_path / "asked"), "LIMIT": "0.2",
    }  # fmt: skip
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    asked = (tmp_path / "asked").read_text("utf-8")
    assert f"no end within 0.2: splatclip {asked}" in done.stderr
    assert "--params params/kind.yaml" in asked
    assert "--follow" in asked
    assert not list(tmp_path.rglob("*.env")), "its secrets"
