"""Violations planted into what k8s/ renders to: each rule finds its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import manifests
import pytest
import yaml
from manifests import FIT_JOB, FIT_JOB_KEY, Object, find, fit_job
from pod_security import restricted
from test_k8s_network import wrong

Change = Callable[[list[Object]], None]


def mlflow(objects: list[Object]) -> Object:
    spec: Object = find(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]
    return spec


def box(objects: list[Object]) -> Object:
    found: Object = mlflow(objects)["containers"][0]
    return found


def fitter(change: Callable[[Object], Any]) -> Change:
    """The same in the template of the fitters' Job, which is text."""

    def planted(objects: list[Object]) -> None:
        job = fit_job(objects)
        change(job["spec"]["template"])
        find(objects, "ConfigMap", FIT_JOB)["data"][FIT_JOB_KEY] = yaml.safe_dump(job)

    return planted


def role(objects: list[Object]) -> Object:
    found: Object = find(objects, "Role", "splatclip-launcher")
    return found


def put(where: Callable[[list[Object]], Any], **values: Any) -> Change:
    return lambda objects: where(objects).update(values)


def pod_context(objects: list[Object]) -> Object:
    found: Object = mlflow(objects)["securityContext"]
    return found


def context(objects: list[Object]) -> Object:
    found: Object = box(objects)["securityContext"]
    return found


def add(kind: str, name: str, **more: Any) -> Change:
    labels = dict.fromkeys(manifests.LABELS, "x")
    about = {"name": name, "namespace": "splatclip", "labels": labels}
    return lambda objects: objects.append({"kind": kind, "apiVersion": "v1", "metadata": about, **more})


def policy(objects: list[Object], name: str) -> Object:
    found: Object = find(objects, "NetworkPolicy", name)["spec"]
    return found


def volume(**source: Any) -> Change:
    return lambda objects: mlflow(objects)["volumes"].append({"name": "x", **source})


def open_up(server: str, client: str) -> Change:
    """One policy lets everybody in, another one out to everywhere."""

    def planted(objects: list[Object]) -> None:
        policy(objects, server)["ingress"] = [{}]
        policy(objects, client)["egress"] = [{}]

    return planted


def blocks(objects: list[Object]) -> list[Object]:
    return [peer["ipBlock"] for peer in policy(objects, "public")["egress"][0]["to"]]


def nodes(objects: list[Object]) -> list[Object]:
    found = policy(objects, "nodes")
    return [
        found["podSelector"],
        found["ingress"][0]["from"][0]["podSelector"],
        found["egress"][0]["to"][0]["podSelector"],
    ]


PLANTED: dict[str, tuple[Callable[[list[Object]], list[str]], str, Change]] = {
    "host network": (restricted, "hostNetwork", put(mlflow, hostNetwork=True)),
    "host processes": (restricted, "hostPID", put(mlflow, hostPID=True)),
    "host path": (restricted, "hostPath", volume(hostPath={"path": "/"})),
    "host port": (restricted, "port of the host", lambda o: box(o)["ports"][0].update(hostPort=80)),
    "sysctl": (restricted, "sysctl", put(pod_context, sysctls=[{"name": "kernel.msgmax"}])),
    "root": (restricted, "may run as root", lambda o: mlflow(o)["securityContext"].pop("runAsNonRoot")),
    "root, container": (restricted, "may run as root", put(context, runAsNonRoot=False)),
    "user 0": (restricted, "user 0", put(context, runAsUser=0)),
    "privileged": (restricted, "privileged", put(context, privileged=True)),
    "escalation": (restricted, "gain privileges", lambda o: context(o).pop("allowPrivilegeEscalation")),
    "no drop": (restricted, "drop all", lambda o: context(o).pop("capabilities")),
    "capability": (restricted, "adds capabilities", lambda o: context(o)["capabilities"].update(add=["SYS_ADMIN"])),
    "seccomp": (restricted, "seccomp", put(context, seccompProfile={"type": "Unconfined"})),
    "no seccomp": (restricted, "seccomp", lambda o: mlflow(o)["securityContext"].pop("seccompProfile")),
    "AppArmor": (restricted, "AppArmor", put(context, appArmorProfile={"type": "Unconfined"})),
    "SELinux": (restricted, "SELinux", put(context, seLinuxOptions={"type": "spc_t"})),
    "proc": (restricted, "/proc", put(context, procMount="Unmasked")),
    "probe": (restricted, "another host", lambda o: box(o)["livenessProbe"]["httpGet"].update(host="10.0.0.1")),
    "writable": (restricted, "root file system", put(context, readOnlyRootFilesystem=False)),
    "init container": (restricted, "early", put(mlflow, initContainers=[{"name": "early", "image": "a:1"}])),
    "fitter": (restricted, FIT_JOB, fitter(lambda pod: pod["spec"]["containers"][0].pop("securityContext"))),
    "no limits": (manifests.resources, "limits", lambda o: box(o)["resources"].pop("limits")),
    "no memory": (manifests.resources, "memory", lambda o: box(o)["resources"]["requests"].pop("memory")),
    "no disk": (manifests.resources, FIT_JOB, fitter(lambda pod: pod["spec"]["volumes"][0]["emptyDir"].clear())),
    "latest": (manifests.images, "latest", put(box, image="ghcr.io/mlflow/mlflow:latest")),
    "latest-full": (manifests.images, "latest-full", put(box, image="ghcr.io/mlflow/mlflow:latest-full")),
    "no tag": (manifests.images, "registry:5000/mlflow", put(box, image="registry:5000/mlflow")),
    "no label": (manifests.labels, "part-of", lambda o: o[0]["metadata"]["labels"].pop("app.kubernetes.io/part-of")),
    "no pod label": (
        manifests.labels,
        FIT_JOB,
        fitter(lambda pod: pod["metadata"]["labels"].pop("app.kubernetes.io/part-of")),
    ),
    "elsewhere": (manifests.namespaces, "mlflow", lambda o: find(o, "Service", "mlflow")["metadata"].pop("namespace")),
    "baseline": (
        manifests.namespaces,
        "baseline",
        lambda o: o[0]["metadata"]["labels"].update({"pod-security.kubernetes.io/enforce": "baseline"}),
    ),
    "another Secret": (manifests.references, "no Secret", put(box, envFrom=[{"secretRef": {"name": "store"}}])),
    "another key": (
        manifests.references,
        "PASSWORD",
        lambda o: box(o)["env"][0]["valueFrom"]["secretKeyRef"].update(key="PASSWORD"),
    ),
    "no account": (manifests.references, "ServiceAccount", put(mlflow, serviceAccountName="melflow")),
    "no ConfigMap": (
        manifests.references,
        "no ConfigMap",
        fitter(lambda pod: pod["spec"]["containers"][0]["envFrom"].append({"configMapRef": {"name": "tracking"}})),
    ),
    "no claim": (
        manifests.references,
        "PersistentVolumeClaim",
        volume(persistentVolumeClaim={"claimName": "mlflow"}),
    ),
    "no volume": (manifests.references, "no volume", lambda o: mlflow(o)["volumes"].clear()),
    "Service of nobody": (
        manifests.selectors,
        "Service splatclip/mlflow",
        lambda o: find(o, "Service", "mlflow")["spec"]["selector"].update({"app.kubernetes.io/name": "melflow"}),
    ),
    "another port": (
        manifests.selectors,
        "no port",
        lambda o: find(o, "Service", "postgres")["spec"]["ports"][0].update(targetPort="psql"),
    ),
    "budget of nobody": (
        manifests.selectors,
        "PodDisruptionBudget",
        lambda o: find(o, "PodDisruptionBudget", "mlflow")["spec"]["selector"]["matchLabels"].update(app="mlflow"),
    ),
    "all verbs": (manifests.access, "'*'", lambda o: role(o)["rules"][0].update(verbs=["*"])),
    "all resources": (manifests.access, "batch/*", lambda o: role(o)["rules"][0].update(resources=["*"])),
    "secrets": (manifests.access, "/secrets", lambda o: role(o)["rules"][1]["resources"].append("secrets")),
    "exec": (
        manifests.access,
        "pods/exec",
        lambda o: role(o)["rules"].append({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]}),
    ),
    "all ConfigMaps": (manifests.access, "all ConfigMaps", lambda o: role(o)["rules"][3].pop("resourceNames")),
    "cluster role": (manifests.access, "beyond", add("ClusterRole", "x", rules=[])),
    "everybody": (
        manifests.access,
        "Group",
        lambda o: find(o, "RoleBinding", "splatclip-launcher")["subjects"].append(
            {"kind": "Group", "name": "system:authenticated"}
        ),
    ),
    "a token": (
        manifests.access,
        "splatclip-trainer",
        lambda o: find(o, "ServiceAccount", "splatclip-trainer").update(automountServiceAccountToken=True),
    ),
    "a pod's token": (manifests.access, "mounts a token", lambda o: mlflow(o).pop("automountServiceAccountToken")),
    "password": (
        manifests.secrets,
        "PGPASSWORD",
        lambda o: box(o)["env"].append({"name": "PGPASSWORD", "value": "x"}),
    ),
    "password in an address": (
        manifests.secrets,
        "BACKEND_STORE",
        lambda o: box(o)["env"][1].update(value="postgresql://mlflow:x@postgres/mlflow"),
    ),
    "key in a ConfigMap": (
        manifests.secrets,
        "AWS_SECRET_ACCESS_KEY",
        lambda o: find(o, "ConfigMap", "splatclip-tracking")["data"].update(AWS_SECRET_ACCESS_KEY="x"),
    ),
    "allowed by default": (wrong, "no role, names", lambda o: o.remove(find(o, "NetworkPolicy", "default-deny"))),
    "private network": (wrong, "splatclip, 10.0.0.1", lambda o: blocks(o)[0]["except"].remove("10.0.0.0/8")),
    "metadata service": (wrong, "169.254.169.254", lambda o: blocks(o)[0]["except"].remove("169.254.0.0/16")),
    "carrier's NAT": (wrong, "100.64.0.1", lambda o: blocks(o)[0]["except"].remove("100.64.0.0/10")),
    "all of IPv6": (wrong, "fc00::1", lambda o: blocks(o)[1].update(cidr="::/0")),
    "every port": (wrong, "8.8.8.8:22", lambda o: policy(o, "public")["egress"][0].pop("ports")),
    "every role": (
        wrong,
        "trainer of splatclip, 8.8.8.8",
        lambda o: policy(o, "public").update(podSelector=policy(o, "steps")["podSelector"]),
    ),
    "MLflow for all": (wrong, "stranger, MLflow", lambda o: policy(o, "mlflow")["ingress"][0].pop("from")),
    "MLflow, any namespace": (
        wrong,
        "stranger, MLflow",
        lambda o: policy(o, "mlflow")["ingress"][0]["from"][0].update(namespaceSelector={}),
    ),
    "MLflow, out": (wrong, "MLflow, public", lambda o: policy(o, "mlflow")["egress"].append({})),
    "nodes of every role": (wrong, "fitter of a JobSet, node", lambda o: [one.pop("matchLabels") for one in nodes(o)]),
    "all trainers": (wrong, "trainer, node", lambda o: [one.pop("matchExpressions") for one in nodes(o)]),
    "nodes alone": (wrong, "node, node", lambda o: policy(o, "nodes").pop("ingress")),
    "Postgres for all": (wrong, "Postgres", open_up("postgres", "steps")),
    "no store": (wrong, "trainer of splatclip, store", lambda o: o.remove(find(o, "NetworkPolicy", "store-steps"))),
    "the Service's port": (
        wrong,
        "splatclip, store",
        lambda o: policy(o, "store-steps")["egress"][0]["ports"][0].update(port=9000),
    ),
    "SeaweedFS's own": (wrong, "own ports", open_up("seaweedfs", "store-steps")),
    "names by TCP alone": (wrong, "names", lambda o: policy(o, "steps")["egress"][0]["ports"].pop(0)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(rendered: dict[str, list[Object]], name: str) -> None:
    rule, told, change = PLANTED[name]
    objects = copy.deepcopy(rendered["everything"])
    change(objects)
    found = rule(objects)
    assert any(told in line for line in found), found


def test_an_exception_outside_of_its_block_is_refused(rendered: dict[str, list[Object]]) -> None:
    objects = copy.deepcopy(rendered["everything"])
    blocks(objects)[1]["except"].append("fc00::/7")
    with pytest.raises(ValueError, match="fc00::/7 is no part of 2000::/3"):
        wrong(objects)
