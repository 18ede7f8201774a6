"""k8s/: what kustomize makes of it is restricted, complete, without secrets, and reaches what it should and no more."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import kustomized
import manifests
import pytest
import yaml
from conftest import ROOT
from kustomized import KINDS
from manifests import EXTERNAL_SECRETS, Object, find, fit_job, name_of, quantity, templates
from network_policies import Pod, reaches
from pod_security import restricted
from test_k8s_secrets import without_keys

from components.params import load_params

VALIDATE = ROOT / "build" / "tools" / "bin" / "kubernetes-validate"  # `make test-full` installs it
NOT_KUBERNETES = {"kueue.x-k8s.io/v1beta2", "external-secrets.io/v1"}  # of operators: no schema here
NAME = "app.kubernetes.io/name"
RULES = (
    restricted,
    manifests.labels,
    manifests.namespaces,
    manifests.resources,
    manifests.images,
    manifests.references,
    manifests.selectors,
    manifests.access,
    manifests.secrets,
)


@pytest.mark.full
def test_kubectl_is_at_hand() -> None:
    assert shutil.which("kubectl") is not None, "the tests of k8s/ need kubectl"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_it_holds(rendered: dict[str, list[Object]], kind: str, rule: Any) -> None:
    assert rule(rendered[kind]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_object_is_there_twice(rendered: dict[str, list[Object]], kind: str) -> None:
    names = [name_of(one) for one in rendered[kind]]
    assert len(names) == len(set(names))
    assert len(list(templates(rendered[kind]))) >= 4  # MLflow, Postgres, the check, the fitters


def test_the_version_is_the_projects(rendered: dict[str, list[Object]]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for one in rendered["everything"]:
        if one["metadata"]["labels"]["app.kubernetes.io/name"] == "splatclip":
            assert one["metadata"]["labels"]["app.kubernetes.io/version"] == version, name_of(one)
    assert fit_job(rendered["base"])["metadata"]["labels"]["app.kubernetes.io/version"] == version


def test_mlflow_is_the_version_that_is_locked(rendered: dict[str, list[Object]]) -> None:
    locked = re.search(r"(?m)^mlflow==(.+)$", (ROOT / "requirements.lock").read_text("utf-8"))
    assert locked is not None
    pod = find(rendered["base"], "Deployment", "mlflow")["spec"]["template"]
    assert pod["spec"]["containers"][0]["image"] == f"ghcr.io/mlflow/mlflow:v{locked[1]}-full"
    assert pod["metadata"]["labels"]["app.kubernetes.io/version"] == locked[1]


@pytest.mark.parametrize("kind", ["base", "overlays/kind"])
def test_postgres_has_connections_for_all_of_mlflow(rendered: dict[str, list[Object]], kind: str) -> None:
    deployment = find(rendered[kind], "Deployment", "mlflow")["spec"]
    server = deployment["template"]["spec"]["containers"][0]
    env = {one["name"]: one.get("value") for one in server["env"]}
    workers = int(next(arg.partition("=")[2] for arg in server["args"] if arg.startswith("--workers")))
    assert env["MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"] == "0"
    assert deployment["strategy"]["rollingUpdate"]["maxSurge"] == 0
    most = deployment["replicas"] * workers * int(env["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"])
    args = find(rendered[kind], "StatefulSet", "postgres")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert most + 10 <= int(next(arg.partition("=")[2] for arg in args if arg.startswith("max_connections")))


def test_a_steps_scratch_is_not_cut_short_by_a_default(rendered: dict[str, list[Object]]) -> None:
    """Kubeflow's steps say nothing of ephemeral storage, so a LimitRange's default holds for them, /tmp included."""
    profiles = [ROOT / "params.yaml", *(ROOT / "params").glob("*.yaml")]
    asked = [load_params(path).resources for path in profiles]
    largest = max(quantity(getattr(one, stage.name).scratch) for one in asked for stage in fields(one))
    assert largest >= 400 << 30
    for kind in ("base", "overlays/kind", "everything"):
        for item in find(rendered[kind], "LimitRange", "splatclip")["spec"]["limits"]:
            for bound in ("default", "max"):
                assert quantity(item.get(bound, {}).get("ephemeral-storage", "8Ei")) >= largest, kind


# --- the fitters' Job


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_job_goes_on_where_it_can_and_stops_where_it_cannot(
    rendered: dict[str, list[Object]], kind: str
) -> None:
    job = fit_job(rendered[kind])
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert [container["name"] for container in spec["template"]["spec"]["containers"]] == ["splat-fit"]
    assert spec["backoffLimitPerIndex"] > 0
    assert 0 < spec["maxFailedIndexes"] <= spec["completions"]  # else Kubernetes refuses it
    assert spec["ttlSecondsAfterFinished"] > 0
    ignored, bad_input, usage = spec["podFailurePolicy"]["rules"]
    assert ignored == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    for rule, action, code in ((bad_input, "FailIndex", 42), (usage, "FailJob", 2)):
        assert rule["action"] == action
        assert rule["onExitCodes"] == {"containerName": "splat-fit", "operator": "In", "values": [code]}
    assert spec["template"]["metadata"]["labels"]["splatclip.io/role"] == "fitter"


def test_the_other_fit_jobs_differ_only_in_size_and_hardware(rendered: dict[str, list[Object]]) -> None:
    def without_hardware(kind: str) -> Object:
        job = copy.deepcopy(fit_job(rendered[kind]))
        pod = job["spec"]["template"]["spec"]
        del pod["containers"][0]["resources"], pod["volumes"][0]["emptyDir"]["sizeLimit"]
        if kind == "overlays/gpu":
            assert pod.pop("nodeSelector") == {"nvidia.com/gpu.present": "true"}
            assert pod.pop("tolerations") == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
            assert pod["volumes"].pop() == {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}
            assert pod["containers"][0]["volumeMounts"].pop() == {"name": "shm", "mountPath": "/dev/shm"}
        return job

    assert without_hardware("overlays/kind") == without_hardware("overlays/gpu") == without_hardware("base")


def test_gpus_are_asked_for_by_the_name_that_the_cluster_has(rendered: dict[str, list[Object]]) -> None:
    def limits(kind: str) -> set[str]:
        (container,) = fit_job(rendered[kind])["spec"]["template"]["spec"]["containers"]
        return {name for name in container["resources"]["limits"] if "/" in name}

    def quota(kind: str) -> dict[str, str]:
        hard: dict[str, str] = find(rendered[kind], "ResourceQuota", "splatclip")["spec"]["hard"]
        return hard

    assert limits("base") == set()
    assert limits("overlays/gpu") == {"nvidia.com/gpu"}
    assert limits("slices") == {"nvidia.com/mig-1g.10gb"}
    assert "requests.nvidia.com/gpu" in quota("overlays/gpu")
    assert "requests.nvidia.com/mig-1g.10gb" in quota("slices")


def test_a_digest_given_once_is_in_every_image(tmp_path: Path, rendered: dict[str, list[Object]]) -> None:
    tree = kustomized.copy(tmp_path / "k8s")
    release = tree / "components/release/kustomization.yaml"
    digest, name = f"sha256:{'5e' * 32}", "registry.example.com/team/splatclip-python"
    text = release.read_text("utf-8").replace("newName: splatclip-python\n", f"newName: {name}\n")
    release.write_text(re.sub(r"newTag: .*", f"digest: {digest}", text), encoding="utf-8")
    for kind in ("everything", "slices"):
        found = {
            box["image"] for _, _, pod in templates(manifests.render(tree / kind)) for box in manifests.containers(pod)
        }
        assert all(image.endswith(f"@{digest}") for image in found)
        assert f"{name}@{digest}" in found
        assert not any("splatclip-python:dev" in image for image in found)
    before = {box["image"] for _, _, pod in templates(rendered["everything"]) for box in manifests.containers(pod)}
    assert "splatclip-python:dev" in before


def test_queues_cover_what_a_fitter_asks_for(rendered: dict[str, list[Object]]) -> None:
    objects = rendered["everything"]
    assert {one["apiVersion"] for one in objects if "kueue" in one["apiVersion"]} == {"kueue.x-k8s.io/v1beta2"}
    queue = find(objects, "ClusterQueue", "splatclip")["spec"]
    (group,) = queue["resourceGroups"]
    limits = fit_job(objects)["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert set(limits) <= set(group["coveredResources"])
    flavors = {one["metadata"]["name"] for one in objects if one["kind"] == "ResourceFlavor"}
    assert {flavor["name"] for flavor in group["flavors"]} == flavors
    for flavor in group["flavors"]:  # Kueue wants the same resources in the same order
        assert [one["name"] for one in flavor["resources"]] == group["coveredResources"]
    assert queue["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "splatclip"}}
    assert find(objects, "LocalQueue", "splatclip")["spec"]["clusterQueue"] == "splatclip"


# --- beyond kustomize


def validated(objects: list[Object], file: Path, version: str) -> subprocess.CompletedProcess[str]:
    """What the schemas of a version of Kubernetes say; what no schema knows, of operators, is left out."""
    known = [one for one in objects if one["apiVersion"] not in NOT_KUBERNETES]
    file.write_text(yaml.safe_dump_all(known), encoding="utf-8")
    command = [VALIDATE, "--strict", "--kubernetes-version", version, file]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "version"), [("everything", "1.33"), *((kind, "1.37") for kind in KINDS)])
def test_kubernetes_knows_every_field(
    rendered: dict[str, list[Object]], kind: str, version: str, tmp_path: Path
) -> None:
    objects = [*rendered[kind], fit_job(rendered[kind])]
    assert len(objects) > 30
    done = validated(objects, tmp_path / "objects.yaml", version)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.parametrize("where", ["Deployment", "Job", "Service"])
def test_a_misspelt_field_is_found(rendered: dict[str, list[Object]], where: str, tmp_path: Path) -> None:
    planted = copy.deepcopy({
        "Deployment": find(rendered["base"], "Deployment", "mlflow"),
        "Job": fit_job(rendered["base"]),
        "Service": find(rendered["overlays/minio"], "Service", "store"),
    }[where])  # fmt: skip
    inner, field = planted["spec"], "externalName"
    if where != "Service":
        inner, field = inner["template"]["spec"]["containers"][0], "securityContext"
    inner[field[:-1]] = inner.pop(field)
    done = validated([planted], tmp_path / "objects.yaml", "1.37")
    assert done.returncode != 0
    assert f"'{field[:-1]}'" in done.stdout + done.stderr


def test_the_pages_own_overlay_works(tmp_path: Path, rendered: dict[str, list[Object]]) -> None:
    overlay, patch = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text("utf-8"), re.DOTALL)
    kustomized.copy(tmp_path / "k8s")
    (tmp_path / "kustomization.yaml").write_text(overlay + patch, encoding="utf-8")
    objects = manifests.render(tmp_path)
    for rule in RULES:
        assert rule(objects) == []
    assert without_keys(objects) == set()
    policies = {one["metadata"]["name"]: str(one["spec"]) for one in objects if one["kind"] == "NetworkPolicy"}
    assert "192.0.2.1" in str(rendered["everything"])
    assert "192.0.2.1/32" not in str(policies)
    assert sum("10.0.0.1/32" in spec for spec in policies.values()) == 5  # three here, two in Kubeflow's namespace
    assert {name for name, spec in policies.items() if "198.51.100.7/32" in spec} == {
        "store-mlflow",
        "store-steps",
        "splatclip-store-steps",
    }
    controller, mlflow = (Pod(space, {NAME: name}) for space, name in (("ingress-nginx", "x"), ("splatclip", "mlflow")))
    assert reaches(objects, controller, mlflow, 5000)
    assert not reaches(objects, controller, mlflow, 22)
    assert not reaches(objects, controller, Pod("splatclip", {NAME: "postgres"}), 5432)
    assert not reaches(rendered["everything"], controller, mlflow, 5000)


def test_the_page_names_what_has_to_be_made_by_hand() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    folders = [
        path.parent for path in (ROOT / "k8s").glob("*/*/kustomization.yaml") if path.parent.parent.name != "base"
    ]
    assert len(folders) > 10
    for folder in folders:
        assert f"{folder.parent.name}/{folder.name}" in page, folder
    for namespace in ("splatclip", "kubeflow"):
        assert f"kubectl -n {namespace} create secret generic splatclip-store " in page
    for name, keys in EXTERNAL_SECRETS.items():
        assert name in page
        assert all(key in page for key in keys)
