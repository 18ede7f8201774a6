"""docs/train-job.yaml: what it asks of Kubernetes is known there, and its command is one of ours."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from conftest import ROOT
from kube import check_type
from torch.distributed.run import get_args_parser

from components.__main__ import _parser
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
    (job,) = spec["template"]["spec"]["replicatedJobs"]
    check_type(job["template"]["spec"], "V1JobSpec", "job")
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == job["name"] == "node", "Trainer fills in that container"
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip


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
