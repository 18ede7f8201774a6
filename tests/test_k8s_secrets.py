"""k8s/: secrets stay in Secrets, and lie wherever pods look for them."""

from __future__ import annotations

import base64
import json
import re
import subprocess

import pytest
from conftest import ROOT
from kustomized import KINDS, PLANTED
from manifests import EXTERNAL_SECRETS, Object, find, name_of


def test_secrets_stay_in_secrets(rendered: dict[str, list[Object]]) -> None:
    for kind in KINDS:
        objects = rendered[kind]
        made = [one for one in objects if one["kind"] == "Secret"]
        assert {name_of(one) for one in made} == (
            {
                "Secret splatclip/splatclip-store",
                "Secret splatclip/splatclip-mlflow-db",
                "Secret kubeflow/splatclip-store",
            }
            if kind == "overlays/kind"
            else set()
        )
        for one in made:
            assert set(one["data"]) >= EXTERNAL_SECRETS[one["metadata"]["name"]]
            assert PLANTED in {base64.b64decode(value).decode() for value in one["data"].values()}
        encoded = base64.b64encode(PLANTED.encode()).decode()
        text = json.dumps([one for one in objects if one["kind"] != "Secret"])
        assert PLANTED not in text
        assert encoded not in text


def spaces(objects: list[Object], kinds: set[str], name: str) -> set[str]:
    return {one["metadata"]["namespace"] for one in objects if one["kind"] in kinds and one["metadata"]["name"] == name}


def without_keys(objects: list[Object]) -> set[str]:
    """Namespaces where steps run and look for the store's keys, which nothing makes there."""
    of_steps = {one["metadata"]["namespace"] for one in objects if one["metadata"]["name"].endswith("store-steps")}
    return of_steps - spaces(objects, {"Secret", "ExternalSecret"}, "splatclip-store")


@pytest.mark.parametrize("kind", ["overlays/kind", "everything"])
def test_steps_find_the_stores_keys_wherever_they_run(rendered: dict[str, list[Object]], kind: str) -> None:
    objects = rendered[kind]
    assert without_keys(objects) == set()
    assert without_keys([one for one in objects if one["kind"] == "NetworkPolicy"]) == {"splatclip", "kubeflow"}
    stores = [one for one in objects if one["metadata"]["name"] == "splatclip-store"]
    assert all(one.get("spec", one.get("data")) == stores[0].get("spec", stores[0].get("data")) for one in stores)


def test_mlflow_waits_for_keys_that_a_vault_has(rendered: dict[str, list[Object]]) -> None:
    """Elsewhere it may have an identity of its own; where keys are made by hand, the database's come last."""

    def optional(kind: str) -> bool:
        (container,) = find(rendered[kind], "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
        (source,) = container["envFrom"]
        assert source["secretRef"]["name"] == "splatclip-store"
        return bool(source["secretRef"].get("optional"))

    assert {kind: optional(kind) for kind in ("base", "overlays/gpu", "everything")} == {
        "base": True, "overlays/gpu": True, "everything": False
    }  # fmt: skip


def test_git_ignores_what_holds_secrets_and_keeps_the_examples() -> None:
    for example in sorted((ROOT / "k8s/overlays/kind").glob("*.example")):
        told = subprocess.run(["git", "check-ignore", "-q", example.with_suffix("")], cwd=ROOT, check=False)
        kept = subprocess.run(["git", "check-ignore", "-q", example], cwd=ROOT, check=False)
        assert (told.returncode, kept.returncode) == (0, 1), example
        for line in example.read_text("utf-8").splitlines():
            assert not re.match(r"(password|AWS_SECRET_ACCESS_KEY)=.", line)
