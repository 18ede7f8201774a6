"""What is rendered for the tests: k8s/ with a local cluster's Secrets, and components put together as users do."""

from __future__ import annotations

import shutil
from pathlib import Path

from conftest import ROOT
from manifests import Object, render

PLANTED = "planted-0f3c9a"  # the value of every secret
KINDS = ("base", "overlays/kind", "overlays/gpu", "overlays/minio", "overlays/seaweedfs", "everything", "slices")
OVERLAYS = {  # components in the order that docs/cluster.md tells
    "everything": (
        "kubeflow-standalone",
        "seaweedfs",
        "gpu",
        "kueue",
        "external-secrets",
        "external-secrets/kubeflow",
        "release",
    ),
    "slices": ("kubeflow-standalone", "minio", "gpu", "mig", "release"),
}


def copy(folder: Path) -> Path:
    """k8s/ with what a user adds: the files that git ignores, and overlays of his own."""
    shutil.copytree(ROOT / "k8s", folder, ignore=shutil.ignore_patterns("*.env"))
    for example in (folder / "overlays/kind").glob("*.env.example"):
        lines = [line for line in example.read_text("utf-8").splitlines() if "=" in line]
        filled = [line + PLANTED if line.endswith("=") else line for line in lines]
        example.with_suffix("").write_text("\n".join(filled) + "\n", encoding="utf-8")
    for name, components in OVERLAYS.items():
        paths = "\n".join(f"- ../components/{one}" for one in components)
        (folder / name).mkdir()
        (folder / name / "kustomization.yaml").write_text(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
            f"resources: [../base]\ncomponents:\n{paths}\n"
        )
    return folder


class Rendered(dict[str, list[Object]]):
    """Every kustomization's objects, by KINDS; each rendered when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._tree = copy(folder)

    def __missing__(self, kind: str) -> list[Object]:
        self[kind] = render(self._tree / kind)
        return self[kind]
