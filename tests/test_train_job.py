"""docs/train-job.yaml: what it asks of Kubernetes is known there, and its command is one of ours."""

from __future__ import annotations

from typing import Any

import manifests
import pytest
import yaml
from conftest import ROOT
from kube_rules import check_type
from pod_security import restricted
from torch.distributed.run import get_args_parser

from components.__main__ import _parser
from components.config import Params
from components.launch import split
from components.params import load_params

# The fields of trainer.kubeflow.org/v1alpha1 that v2.0 to v2.2 share (kubeflow/trainer, pkg/apis/trainer/v1alpha1).
TRAINER = {"image": "str", "command": "list[str]", "args": "list[str]", "env": "list[V1EnvVar]", "numNodes": "int",
           "resourcesPerNode": "V1ResourceRequirements"}  # fmt: skip


@pytest.fixture
def objects() -> dict[str, Any]:
    text = (ROOT / "docs/train-job.yaml").read_text(encoding="utf-8")
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def test_the_runtime_makes_restricted_pods(objects: dict[str, Any]) -> None:
    spec = objects["TrainingRuntime"]["spec"]
    assert {*spec} == {"mlPolicy", "template"}
    assert spec["mlPolicy"] == {"numNodes": 1, "torch": {}}, "since v2.2 torch has no field"
    assert {*spec["template"]["spec"]} == {"failurePolicy", "replicatedJobs"}
    (job,) = spec["template"]["spec"]["replicatedJobs"]
    check_type(job["template"]["spec"], "V1JobSpec", "job")
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = job["template"]["spec"]["template"]
    assert "sidecar.istio.io/inject" in pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    assert container["name"] == job["name"] == "node", "Trainer fills in that container"
    trainer = objects["TrainJob"]["spec"]["trainer"]
    container |= {"image": trainer["image"], "resources": trainer["resourcesPerNode"]}
    made = {"kind": "Job", "metadata": {"name": "node", "namespace": "splatclip"}, "spec": job["template"]["spec"]}
    for rule in (restricted, manifests.resources, manifests.images):
        assert rule([made]) == []
    disk = container["resources"]["limits"]["ephemeral-storage"]
    assert manifests.quantity(disk) >= manifests.quantity(pod["spec"]["volumes"][0]["emptyDir"]["sizeLimit"])


def test_one_incident_is_one_failure(objects: dict[str, Any]) -> None:
    """Of N nodes all end with the first: a Job would count N failures, and put each pod in its place alone."""
    spec = objects["TrainingRuntime"]["spec"]["template"]["spec"]
    assert spec["failurePolicy"] == {"maxRestarts": 3}
    assert [job["template"]["spec"]["backoffLimit"] for job in spec["replicatedJobs"]] == [0]


def test_its_pods_find_what_steps_find(objects: dict[str, Any]) -> None:
    (job,) = objects["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    names = {next(iter(one)): next(iter(one.values()))["name"] for one in container["envFrom"]}
    cluster = Params().cluster
    assert names == {"secretRef": cluster.store_secret, "configMapRef": cluster.tracking_config}


def test_the_job_trains(objects: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = objects["TrainJob"]["spec"]
    assert spec["runtimeRef"]["name"] == objects["TrainingRuntime"]["metadata"]["name"]
    trainer = dict(spec["trainer"])
    quantities = trainer["resourcesPerNode"]
    trainer["resourcesPerNode"] = {
        kind: {name: str(value) for name, value in asked.items()} for kind, asked in quantities.items()
    }
    for name, value in trainer.items():
        check_type(value, TRAINER[name], name)
    options, command = split(trainer["args"])
    args = _parser().parse_args(command)
    assert args.command == "train-adapter"
    assert load_params(args.params).train_adapter.batch_size == 1024
    for name, value in (("NNODES", "2"), ("NODE_RANK", "1"), ("MASTER_ADDR", "node-0"), ("NPROC_PER_NODE", "8")):
        monkeypatch.setenv(f"PET_{name}", value)
    told = get_args_parser().parse_args([*options, "-m", "components"])
    assert (told.nnodes, told.node_rank, told.master_addr, told.nproc_per_node) == ("2", 1, "node-0", "8")
