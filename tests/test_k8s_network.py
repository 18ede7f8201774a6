"""NetworkPolicies of k8s/: each role reaches what it needs, the downloader the public network alone."""

from __future__ import annotations

import ipaddress

import yaml
from conftest import ROOT
from manifests import Object, find
from network_policies import Peer, Pod, reaches

from components.download import addresses


def step(role: str, namespace: str = "splatclip", **more: str) -> Pod:
    kubeflow = {"workflows.argoproj.io/workflow": "w"} if namespace == "kubeflow" or more.pop("kubeflow", "") else {}
    return Pod(namespace, {"splatclip.io/role": role, **kubeflow, **more})


def named(name: str, namespace: str = "splatclip") -> Pod:
    key = "app" if namespace in {"kubeflow", "minio"} else "app.kubernetes.io/name"
    return Pod(namespace, {key: name})


DNS = Pod("kube-system", {"k8s-app": "kube-dns"})
MLFLOW, POSTGRES, SEAWEEDFS = named("mlflow"), named("postgres"), named("seaweedfs")
KFP_API = named("ml-pipeline", "kubeflow")
METADATA = Pod("kubeflow", {"component": "metadata-grpc-server"})
API = "192.0.2.1"
ROLES = ("downloader", "fitter", "trainer", "notifier", "launcher", "submitter")
PUBLIC, PRIVATE = (
    ("8.8.8.8", "2606:4700::1111"),
    ("10.0.0.1", "169.254.169.254", "172.31.0.1", "192.168.1.1", "100.64.0.1"),
)
JOBSET = {"jobset.sigs.k8s.io/jobset-name": "train-adapter"}  # the label that JobSet gives each pod
NODE = step("trainer", **JOBSET)
STRANGER = Pod("elsewhere", {"splatclip.io/role": "trainer"})
EVERYWHERE = [(role, space) for role in ROLES for space in ("splatclip", "kubeflow")]


def connections() -> list[tuple[str, Peer, Peer, int, bool]]:
    """In "everything": which, from, to, port, whether it may be."""
    rows: list[tuple[str, Peer, Peer, int, bool]] = []
    for role, space in EVERYWHERE:
        pod = step(role, space)
        rows += [(f"{role} of {space}, {what}", pod, peer, port, may) for what, peer, port, may in (
            ("MLflow", MLFLOW, 5000, True), ("store", SEAWEEDFS, 8333, True), ("names", DNS, 53, True),
            ("MinIO", named("minio", "minio"), 9000, False), ("Postgres", POSTGRES, 5432, False),
            ("SeaweedFS's own ports", SEAWEEDFS, 8888, False), ("another pod", step("trainer", space), 22, False),
        )]  # fmt: skip
        out = role in {"downloader", "notifier", "submitter"}
        rows += [(f"{role} of {space}, {ip}:{port}", pod, ip, port, out) for ip in PUBLIC for port in (80, 443)]
        rows += [(f"{role} of {space}, {ip}:{port}", pod, ip, port, False) for ip in PUBLIC for port in (22, 8080)]
        rows += [(f"{role} of {space}, {ip}", pod, ip, 443, False) for ip in (*PRIVATE, "fc00::1", "fe80::1", "::1")]
        at_home = space == "kubeflow"
        rows += [(f"{role} of {space}, Kubeflow", pod, peer, port, at_home) for peer, port in (
            (KFP_API, 8887), (METADATA, 8080)
        )]  # fmt: skip
        rows += [(f"{role} of {space}, Kubeflow's API", pod, KFP_API, 8888, at_home or role == "submitter")]
        rows += [(f"{role} of {space}, mysql", pod, named("mysql", "kubeflow"), 3306, False)]
        rows += [(f"{role} of {space}, Kubernetes", pod, API, 6443, at_home or role == "launcher")]
    agent = Pod("splatclip", {"workflows.argoproj.io/workflow": "w", "workflows.argoproj.io/component": "agent"})
    driver = Pod("splatclip", {"workflows.argoproj.io/workflow": "w", "workflows.argoproj.io/completed": "false"})
    for what, pod in (("agent", agent), ("driver", driver)):
        rows += [
            (f"{what}, Kubeflow", pod, KFP_API, 8887, True),
            (f"{what}, metadata", pod, METADATA, 8080, True),
            (f"{what}, names", pod, DNS, 53, True),
            (f"{what}, Kubernetes", pod, API, 443, True),
            (f"{what}, public", pod, "8.8.8.8", 443, False),
            (f"{what}, store", pod, SEAWEEDFS, 8333, False),
        ]
    for port in (22, 29500, 45123):  # torchrun's, and any: NCCL takes what is free
        rows += [
            ("node, node", NODE, step("trainer", **JOBSET), port, True),
            ("node, trainer", NODE, step("trainer"), port, False),
            ("trainer, node", step("trainer"), NODE, port, False),
            ("fitter of a JobSet, node", step("fitter", **JOBSET), NODE, port, False),
            ("node of elsewhere, node", Pod("elsewhere", NODE.labels), NODE, port, False),
            ("node, node of Kubeflow's namespace", NODE, Pod("kubeflow", NODE.labels), port, False),
        ]
    rows += [
        ("submitter of Kubeflow's namespace", Pod("kubeflow", {"splatclip.io/role": "submitter"}), KFP_API, 8888, True),
        ("MLflow, Postgres", MLFLOW, POSTGRES, 5432, True),
        ("MLflow, store", MLFLOW, SEAWEEDFS, 8333, True),
        ("MLflow, public", MLFLOW, "8.8.8.8", 443, False),
        ("Postgres, public", POSTGRES, "8.8.8.8", 443, False),
        ("Postgres, MLflow", POSTGRES, MLFLOW, 5000, False),
        ("SeaweedFS, public", SEAWEEDFS, "8.8.8.8", 443, False),
        ("stranger, MLflow", STRANGER, MLFLOW, 5000, False),
        ("stranger, store", STRANGER, SEAWEEDFS, 8333, False),
        ("MLflow of elsewhere, Postgres", named("mlflow", "elsewhere"), POSTGRES, 5432, False),
        ("MLflow of elsewhere, store", named("mlflow", "elsewhere"), SEAWEEDFS, 8333, False),
        ("address, MLflow", "10.0.0.9", MLFLOW, 5000, False),
        ("no role, MLflow", Pod("splatclip", {}), MLFLOW, 5000, False),
        ("no role, names", Pod("splatclip", {}), DNS, 53, False),
        ("no role of kubeflow, MLflow", Pod("kubeflow", {"app": "ml-pipeline"}), MLFLOW, 5000, False),
        ("no role of kubeflow, public", Pod("kubeflow", {"app": "ml-pipeline"}), "8.8.8.8", 443, True),  # not ours
    ]
    return rows


def wrong(objects: list[Object]) -> list[str]:
    """The connections that are not as they should be."""
    return [
        f"{what}: {'not ' if may else ''}possible"
        for what, source, target, port, may in connections()
        if reaches(objects, source, target, port, "UDP" if target is DNS else "TCP") is not may
    ]


def test_everybody_reaches_what_he_needs_and_nothing_else(rendered: dict[str, list[Object]]) -> None:
    assert wrong(rendered["everything"]) == []
    assert len(connections()) > 200


def test_a_downloader_reaches_what_the_download_stage_would_connect_to(rendered: dict[str, list[Object]]) -> None:
    objects = rendered["base"]
    rule = find(objects, "NetworkPolicy", "public")["spec"]["egress"][0]["to"]
    edges = {"2000::", "3fff:ffff::", "4000::", "::ffff:8.8.8.8", "ff02::1"}
    for block in rule:
        for text in block["ipBlock"]["except"]:
            network = ipaddress.ip_network(text)
            first, last = int(network.network_address), int(network.broadcast_address)
            make = type(network.network_address)
            edges |= {
                str(make(value))
                for value in (first - 1, first, last, last + 1)
                if 0 <= value < 2**network.max_prefixlen
            }
    assert len(edges) > 60
    for address in edges - {"::ffff:8.8.8.8"}:  # which no network carries: it is IPv4
        assert reaches(objects, step("downloader"), address, 443) is not addresses.blocked(address), address


def test_nodes_of_the_train_job_are_what_the_policy_selects(rendered: dict[str, list[Object]]) -> None:
    runtime = next(yaml.safe_load_all((ROOT / "docs/train-job.yaml").read_text("utf-8")))
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    node = Pod("splatclip", {**job["template"]["spec"]["template"]["metadata"]["labels"], **JOBSET})
    for target in (node, MLFLOW):
        assert reaches(rendered["base"], node, target, 5000)
    assert reaches(rendered["base"], node, DNS, 53, "UDP"), "the first node's address is a name"


def test_minio_and_kind_change_only_what_they_are_for(rendered: dict[str, list[Object]]) -> None:
    minio = named("minio", "minio")
    for kind, store in (("everything", False), ("slices", True)):
        for pod in (step("trainer"), step("trainer", "kubeflow"), MLFLOW):
            assert reaches(rendered[kind], pod, minio, 9000) is store
            assert not reaches(rendered[kind], pod, minio, 9001)
    local = rendered["overlays/kind"]
    assert reaches(local, step("trainer", kubeflow="yes"), "172.18.0.2", 6443)
    assert not reaches(local, step("trainer", kubeflow="yes"), "172.18.0.2", 443)
    assert not reaches(local, step("trainer"), "172.18.0.2", 6443)
