"""Kubernetes objects as kustomize renders them, and what must hold for all of them: each rule lists what breaks it."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from components import yaml_text

Object = dict[str, Any]
LABELS = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "version", "component", "part-of", "managed-by")}
# Made by hand or by an operator in a cluster; the names that users must know (docs/cluster.md).
EXTERNAL_SECRETS = {
    "splatclip-store": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "splatclip-mlflow-db": {"password"},
}
FIT_JOB, FIT_JOB_KEY = "splatclip-fit-job", "job.yaml"
LAUNCHER = "splatclip-launcher"
CLUSTER_SCOPED = {"Namespace", "ClusterQueue", "ResourceFlavor"}
RIGHTS = {  # all that anybody has: (group, resource) -> verbs
    ("batch", "jobs"): {"create", "get", "list", "watch", "delete"},
    ("", "pods"): {"get", "list"},
    ("", "pods/log"): {"get"},
    ("", "events"): {"list"},
    ("", "configmaps"): {"get"},
}


_UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_UNITS |= {f"{unit}i": 1024 ** (1 + place) for place, unit in enumerate("KMGTPE")}


def quantity(text: Any) -> float:
    """A Kubernetes quantity as a number: cores or bytes."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # deprecated fields
    loader, objects = yaml.CSafeLoader(done.stdout), []  # the C one: five times as fast
    try:
        while loader.check_data():
            objects.append(loader.get_data())
    finally:
        loader.dispose()
    return objects


def name_of(one: Object) -> str:
    return f"{one['kind']} {one['metadata'].get('namespace', '-')}/{one['metadata']['name']}"


def find(objects: list[Object], kind: str, name: str, namespace: str = "splatclip") -> Object:
    """The object of that kind and name."""
    found = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return next(one for one in found if kind in CLUSTER_SCOPED or one["metadata"].get("namespace") == namespace)


def fit_job(objects: list[Object]) -> Object:
    """The Job from which a fleet is made."""
    return copy.deepcopy(_job(find(objects, "ConfigMap", FIT_JOB)["data"][FIT_JOB_KEY]))


@lru_cache
def _job(text: str) -> Object:
    job: Object = yaml_text.parse(text, FIT_JOB_KEY)
    return job


def templates(objects: list[Object]) -> Iterator[tuple[str, str, Object]]:
    """Each pod template: whose it is, its namespace, itself."""
    for one in objects:
        namespace = one["metadata"].get("namespace", "")
        if one["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet"}:
            yield name_of(one), namespace, one["spec"]["template"]
        elif one["kind"] == "CronJob":
            yield name_of(one), namespace, one["spec"]["jobTemplate"]["spec"]["template"]
        elif one["kind"] == "Pod":
            yield name_of(one), namespace, one
        elif one["kind"] == "ConfigMap" and FIT_JOB_KEY in one["data"]:
            yield name_of(one), namespace, _job(one["data"][FIT_JOB_KEY])["spec"]["template"]


def containers(template: Object) -> list[Object]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"], *spec.get("ephemeralContainers", [])]


def labels(objects: list[Object]) -> list[str]:
    """Every object and every pod has Kubernetes' recommended labels."""
    bad = [(name_of(one), one["metadata"].get("labels", {})) for one in objects]
    bad += [(f"pods of {owner}", pod["metadata"].get("labels", {})) for owner, _, pod in templates(objects)]
    return [f"{who}: without {', '.join(sorted(LABELS - set(has)))}" for who, has in bad if not set(has) >= LABELS]


def namespaces(objects: list[Object]) -> list[str]:
    """Everything lies in our namespace, or where Kubeflow runs our steps; ours enforces the restricted standard."""
    bad = [
        f"{name_of(one)}: in no namespace of ours"
        for one in objects
        if one["kind"] not in CLUSTER_SCOPED and one["metadata"].get("namespace") not in {"splatclip", "kubeflow"}
    ]
    enforced = find(objects, "Namespace", "splatclip")["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
    return bad if enforced == "restricted" else [*bad, f"Namespace splatclip: enforces {enforced}"]


def resources(objects: list[Object]) -> list[str]:
    """Every container has requests and limits of cpu, memory and disk; scratch space is limited, too."""
    bad = []
    for owner, _, pod in templates(objects):
        for container in containers(pod):
            for kind in ("requests", "limits"):
                has = container.get("resources", {}).get(kind, {})
                bad += [
                    f"{owner}: {container['name']} has no {kind} of {item}"
                    for item in ("cpu", "memory", "ephemeral-storage")
                    if item not in has
                ]
        bad += [
            f"{owner}: emptyDir {volume['name']} has no limit"
            for volume in pod["spec"].get("volumes", [])
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]
        ]
    return bad


def images(objects: list[Object]) -> list[str]:
    """Every image is named by an exact version or a digest."""
    bad = []
    for owner, _, pod in templates(objects):
        for container in containers(pod):
            tagged = re.fullmatch(r"[^@]+?(:(?P<tag>[\w.-]+))?(@sha256:[0-9a-f]{64})?", container["image"])
            exact = tagged and (tagged["tag"] or "@" in container["image"])
            if not exact or (tagged and tagged["tag"] and "latest" in tagged["tag"]):
                bad.append(f"{owner}: {container['image']} is no exact version")
    return bad


def _keys(objects: list[Object], kind: str, namespace: str) -> dict[str, set[str] | None]:
    """Names of a kind in a namespace, with the keys they hold; None: whatever is asked for."""
    found: dict[str, set[str] | None] = {
        one["metadata"]["name"]: {*one.get("data", {}), *one.get("stringData", {})}
        for one in objects
        if one["kind"] == kind and one["metadata"].get("namespace") == namespace
    }
    if kind == "Secret":
        found |= {name: None for name in EXTERNAL_SECRETS if name not in found}
    return found


def _references(pod: Object) -> Iterator[tuple[str, str, str | None]]:
    """What a pod refers to: kind, name, key."""
    spec = pod["spec"]
    yield "ServiceAccount", spec.get("serviceAccountName", "default"), None
    for container in containers(pod):
        for source in container.get("envFrom", []):
            for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                if field in source:
                    yield kind, source[field]["name"], None
        for variable in container.get("env", []):
            for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if field in variable.get("valueFrom", {}):
                    chosen = variable["valueFrom"][field]
                    yield kind, chosen["name"], chosen["key"]
    for volume in spec.get("volumes", []):
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], None
            yield from (("Secret", volume["secret"]["secretName"], item["key"]) for item in volume["secret"]["items"])
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], None
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None


def references(objects: list[Object]) -> list[str]:
    """Every Secret, ConfigMap, ServiceAccount and claim that a pod names is there, or known to be made elsewhere."""
    bad = []
    for owner, namespace, pod in templates(objects):
        for kind, name, key in _references(pod):
            known = _keys(objects, kind, namespace)
            if name not in known:
                bad.append(f"{owner}: no {kind} {name}")
            elif key and (keys := known[name]) is not None and key not in keys:
                bad.append(f"{owner}: {kind} {name} has no {key}")
            elif key and known[name] is None and key not in EXTERNAL_SECRETS[name]:
                bad.append(f"{owner}: nobody is told to put {key} into Secret {name}")
        mounted = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", [])}
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        claims = {
            claim["metadata"]["name"]
            for one in objects
            if name_of(one) == owner
            for claim in one.get("spec", {}).get("volumeClaimTemplates", [])
        }
        bad += [f"{owner}: no volume {name}" for name in sorted(mounted ^ (volumes | claims))]
    return bad


def selectors(objects: list[Object]) -> list[str]:
    """Services, budgets, Deployments and StatefulSets select pods that are there; a Service's ports are theirs."""
    pods = [(namespace, pod) for _, namespace, pod in templates(objects)]
    bad = []
    for one in objects:
        spec, namespace = one.get("spec", {}), one["metadata"].get("namespace")
        if one["kind"] == "Service" and spec.get("type") != "ExternalName":
            wanted = spec["selector"]
        elif one["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
            wanted = spec["selector"]["matchLabels"]
        else:
            continue
        has = [pod for where, pod in pods if where == namespace and wanted.items() <= pod["metadata"]["labels"].items()]
        if not has:
            bad.append(f"{name_of(one)}: selects nothing")
        if "template" in spec and spec["template"] not in has:
            bad.append(f"{name_of(one)}: does not select its own pods")
        for port in spec.get("ports", []) if one["kind"] == "Service" else []:
            names = {found.get("name") for pod in has for box in containers(pod) for found in box.get("ports", [])}
            if port["targetPort"] not in names:
                bad.append(f"{name_of(one)}: its pods have no port {port['targetPort']}")
        if one["kind"] == "StatefulSet" and not any(
            (other["kind"], other["metadata"]["name"]) == ("Service", spec["serviceName"]) for other in objects
        ):
            bad.append(f"{name_of(one)}: no Service {spec['serviceName']}")
    return bad


def access(objects: list[Object]) -> list[str]:
    """Nobody has more than RIGHTS, in our namespace alone; only the launcher has a token."""
    bad = []
    for one in objects:
        if one["kind"] in {"ClusterRole", "ClusterRoleBinding"}:
            bad.append(f"{name_of(one)}: reaches beyond the namespace")
        elif one["kind"] == "Role":
            for rule in one["rules"]:
                for group in rule["apiGroups"]:
                    for item in rule["resources"]:
                        if not set(rule["verbs"]) <= RIGHTS.get((group, item), set()):
                            bad.append(f"{name_of(one)}: {rule['verbs']} of {group}/{item}")
                        if item == "configmaps" and rule.get("resourceNames") != [FIT_JOB]:
                            bad.append(f"{name_of(one)}: all ConfigMaps")
        elif one["kind"] == "RoleBinding":
            roles = [other["metadata"]["name"] for other in objects if other["kind"] == "Role"]
            if one["roleRef"]["kind"] != "Role" or one["roleRef"]["name"] not in roles:
                bad.append(f"{name_of(one)}: no Role {one['roleRef']['name']}")
            allowed = {("ServiceAccount", "splatclip", LAUNCHER), ("ServiceAccount", "kubeflow", "pipeline-runner")}
            bad += [
                f"{name_of(one)}: for {who['kind']} {who['name']}"
                for who in one["subjects"]
                if (who["kind"], who.get("namespace"), who["name"]) not in allowed
            ]
        elif one["kind"] == "ServiceAccount":
            mounted = one["metadata"]["name"] == LAUNCHER
            bad += [f"{name_of(one)}: its token"] * (one.get("automountServiceAccountToken") is not mounted)
    for owner, _, pod in templates(objects):
        if pod["spec"].get("automountServiceAccountToken") is not False:
            bad.append(f"{owner}: mounts a token")
    return bad


_TELLING = re.compile(r"(?i)(password|passwd|secret|token|access_?key|credential)")


def secrets(objects: list[Object]) -> list[str]:
    """No object but a Secret holds the value of one: no literal in an environment, no password in an address."""
    bad = []
    for owner, _, pod in templates(objects):
        for container in containers(pod):
            for variable in container.get("env", []):
                value = str(variable.get("value", ""))
                file = variable["name"].endswith("_FILE")
                if (value and not file and _TELLING.search(variable["name"])) or re.search(
                    r"://[^/@\s]*:[^/@\s]+@", value
                ):
                    bad.append(f"{owner}: {variable['name']} has a value")
    for one in objects:
        if one["kind"] == "ConfigMap":
            bad += [f"{name_of(one)}: {key}" for key in one["data"] if _TELLING.search(key)]
    return bad
