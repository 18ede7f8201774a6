"""What the compiled pipelines ask of a cluster: read from the YAML, as Kubeflow reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from manifests import LABELS

from components import FLOW
from components.errors import UsageError
from components.params import load_params, params_from_dict
from pipelines import client
from pipelines.placing import ROLE, ROLES

COMMITTED = ROOT / "pipelines/train_eval.yaml"
ROLLBACK = ROOT / "pipelines/rollback.yaml"
STEPS = {step.name: step for step in FLOW}
KEYS = {
    "splatclip-store": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
    | {"AWS_ENDPOINT_URL", "AWS_REGION"},
    "splatclip-tracking": {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"},
    "splatclip-hub": {"HF_TOKEN"},
    "splatclip-webhook": {"SPLATCLIP_WEBHOOK_URL"},
}


class Task:
    """A task as Kubeflow is told: its spec in the graph, its container, and what it asks of Kubernetes."""

    def __init__(self, pipeline: dict[str, Any], spec: dict[str, Any]) -> None:
        component = pipeline["components"][spec["componentRef"]["name"]]
        label = component["executorLabel"]
        self.name: str = spec["taskInfo"]["name"]
        self.spec = spec
        self.container = pipeline["deploymentSpec"]["executors"][label]["container"]
        self.pod = pipeline["platforms"]["kubernetes"]["deploymentSpec"]["executors"][label]

    @property
    def environment(self) -> dict[str, tuple[str, str]]:
        """Variables by name: what they come from, and its name. A variable given twice fails."""
        found: dict[str, tuple[str, str]] = {}
        for kind, name, key in (
            ("secretAsEnv", "secretName", "secretKey"),
            ("configMapAsEnv", "configMapName", "configMapKey"),
        ):
            for source in self.pod.get(kind, []):
                assert source["optional"] is True
                for pair in source["keyToEnv"]:
                    assert pair["envVar"] == pair[key]
                    assert pair["envVar"] not in found
                    found[pair["envVar"]] = (kind, source[name])
        assert not {*found} & {given["name"] for given in self.container.get("env", [])}
        return found


def tasks(pipeline: dict[str, Any]) -> dict[str, Task]:
    def below(dag: dict[str, Any]) -> Iterator[Task]:
        for spec in dag["tasks"].values():
            inner = pipeline["components"][spec["componentRef"]["name"]].get("dag")
            if inner:
                yield from below(inner)
            else:
                yield Task(pipeline, spec)

    found = list(below(pipeline["root"]["dag"]))
    assert len({task.name for task in found}) == len(found)
    return {task.name: task for task in found}


@pytest.fixture(scope="module")
def golden() -> dict[str, Task]:
    return tasks(client.documents(COMMITTED)) | tasks(client.documents(ROLLBACK))


@pytest.fixture(scope="module")
def datacomp(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    out = tmp_path_factory.mktemp("datacomp") / "p.yaml"
    client.compile_pipeline(load_params(ROOT / "params/datacomp-small.yaml"), out)
    assert len(out.read_bytes()) < 256 << 10
    return tasks(client.documents(out))


def compiled(tmp_path: Path, *overrides: str, profile: str = "params.yaml") -> dict[str, Task]:
    client.compile_pipeline(load_params(ROOT / profile, overrides), tmp_path / "p.yaml")
    return tasks(client.documents(tmp_path / "p.yaml"))


def test_every_step_and_no_other_task_is_there(golden: dict[str, Task], datacomp: dict[str, Task]) -> None:
    assert {*datacomp} == {*STEPS, "announce", "finish"}
    assert {*golden} == {*datacomp, "rollback"}


@pytest.mark.parametrize("which", ["golden", "datacomp"])
def test_every_task_has_bounds_and_is_never_cached(which: str, request: pytest.FixtureRequest) -> None:
    for task in request.getfixturevalue(which).values():
        asked = task.container["resources"]
        for kind in ("Cpu", "Memory"):
            assert asked[f"resource{kind}Request"] == asked[f"resource{kind}Limit"], task.name
        assert task.spec["cachingOptions"] == {}, "enableCache: the store is the cache"
        assert int(task.pod["activeDeadlineSeconds"]) >= 3600
        assert {"mountPath": "/tmp", "volumeName": "scratch"}.items() <= task.pod["emptyDirMounts"][0].items()
        assert task.pod["emptyDirMounts"][0]["sizeLimit"]
        assert task.pod["securityContext"] == {"runAsNonRoot": True}


@pytest.mark.parametrize("which", ["golden", "datacomp"])
def test_a_retry_has_time_to_run(which: str, request: pytest.FixtureRequest) -> None:
    """Argo counts from the first try's beginning, and an hour is what Kubeflow says: a day's work had no retry."""
    found = request.getfixturevalue(which)
    assert {name for name, task in found.items() if "retryPolicy" in task.spec} == {*STEPS}
    for name in STEPS:
        policy, pod = found[name].spec["retryPolicy"], found[name].pod
        tries = policy["maxRetryCount"] + 1
        assert tries >= 3
        assert int(policy["backoffMaxDuration"].removesuffix("s")) >= tries * int(pod["activeDeadlineSeconds"])
        assert (policy["backoffDuration"], policy["backoffFactor"]) == ("60s", 2.0)


def test_the_end_is_told_however_the_steps_ended(golden: dict[str, Task]) -> None:
    finish = golden["finish"].spec
    assert finish["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert finish["dependentTasks"] == ["exit-handler-1"]
    assert finish["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}


def test_only_a_champion_is_announced() -> None:
    pipeline = client.documents(COMMITTED)
    inner = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    promote = next(name for name, spec in inner.items() if spec["taskInfo"]["name"] == "promote")
    (gate,) = (spec for spec in inner.values() if "condition" in spec.get("triggerPolicy", {}))
    condition = gate["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--promote-Output'] == 'champion'"
    given = gate["inputs"]["parameters"]
    for name, key in (("Output", "Output"), ("version", "version")):
        made = given[f"pipelinechannel--promote-{name}"]["taskOutputParameter"]
        assert made == {"outputParameterKey": key, "producerTask": promote}
    announcing = pipeline["components"][gate["componentRef"]["name"]]["dag"]["tasks"]
    assert [spec["taskInfo"]["name"] for spec in announcing.values()] == ["announce"]


def test_gpus_of_the_datacomp_profile(datacomp: dict[str, Task]) -> None:
    asked = {
        name: (given["resourceType"], given["resourceCount"])
        for name, task in datacomp.items()
        if (given := task.container["resources"].get("accelerator"))
    }
    one, eight = ("nvidia.com/gpu", "1"), ("nvidia.com/gpu", "8")
    assert asked == {
        "train_teacher": eight,
        "train_adapter": eight,
        "splat_fit": one,
        "splat_fit_eval": one,
        "zero_shot_eval": one,
    }
    for name, task in datacomp.items():
        env = {given["name"]: given["value"] for given in task.container.get("env", [])}
        assert env == ({"SPLATCLIP_PROCESSES": "8"} if asked.get(name) == eight else {})
        shared = [one for one in task.pod["emptyDirMounts"] if one["mountPath"] == "/dev/shm"]
        size = {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "32Gi", "volumeName": "shm"}
        assert shared == ([size] if asked.get(name) == eight else [])


def test_nodes_of_the_datacomp_profile(datacomp: dict[str, Task]) -> None:
    gpu, spot = "nvidia.com/gpu", "cloud.google.com/gke-spot"
    for name, task in datacomp.items():
        taints = {one["key"]: one for one in task.pod.get("tolerations", [])}
        wanted = task.pod.get("nodeSelector", {}).get("labels", {})
        if "accelerator" not in task.container["resources"]:
            assert (taints, wanted) == ({}, {}), name
            continue
        assert taints[gpu] == {"key": gpu, "operator": "Exists", "effect": "NoSchedule"}
        assert "nvidia.com/gpu.product" in wanted
        preempted = name != "zero_shot_eval"
        assert (spot in taints, spot in wanted) == (preempted, preempted)
        if preempted:
            assert taints[spot] == {"key": spot, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
            assert wanted[spot] == "true"
            assert task.spec["retryPolicy"]["maxRetryCount"] >= 10


def test_secrets_are_named_and_each_role_gets_what_it_needs(golden: dict[str, Task]) -> None:
    for name, task in golden.items():
        role = task.pod["podMetadata"]["labels"][ROLE]
        stage = STEPS[name].stage if name in STEPS else ""
        assert role == ROLES.get(stage, "notifier"), name
        wanted = {"splatclip-store", "splatclip-tracking"}
        wanted |= {"splatclip-hub"} if role == "downloader" else set()
        wanted |= {"splatclip-webhook"} if role == "notifier" else set()
        expected = {key: ("secretAsEnv", secret) for secret in wanted for key in KEYS[secret]}
        expected["MLFLOW_TRACKING_URI"] = ("configMapAsEnv", "splatclip-tracking")
        assert task.environment == expected
    texts = COMMITTED.read_text() + ROLLBACK.read_text()
    assert not re.search(r"(?i)(password|secret_access_key|token|webhook_url): +\S", texts)


def test_labels_are_labels(tmp_path: Path, golden: dict[str, Task]) -> None:
    found = [task.pod["podMetadata"]["labels"] for task in golden.values()]
    assert [one["app.kubernetes.io/component"] for one in found] == [*golden]
    for environment in ("a" * 80, f"{'b' * 52}-c"):
        params = load_params(ROOT / "params.yaml", [f"tracking.environment={environment}"])
        client.compile_rollback(params, tmp_path / "p.yaml")
        (task,) = tasks(client.documents(tmp_path / "p.yaml")).values()
        found.append(task.pod["podMetadata"]["labels"])
        assert found[-1]["app.kubernetes.io/instance"].startswith(f"splatclip-{environment[0]}")
    for labels in found:
        assert {*labels} == LABELS | {ROLE}
        assert labels["app.kubernetes.io/version"] == version("splatclip")
        for value in labels.values():
            assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value), value


def test_names_and_identity_are_the_clusters_own(tmp_path: Path) -> None:
    named = ("store_secret=my-store", "tracking_config=", "tracking_secret=", "hub_secret=", "webhook_secret=")
    more = ("image_pull_policy=Always", "image_pull_secrets=[registry]", "run_as_user=1000", "run_as_group=3000")
    found = compiled(tmp_path, *(f"cluster.{one}" for one in (*named, *more)))
    for task in found.values():
        assert {source for _, source in task.environment.values()} == {"my-store"}
        assert task.pod["imagePullPolicy"] == "Always"
        assert [secret["secretName"] for secret in task.pod["imagePullSecret"]] == ["registry"]
        assert task.pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": "1000", "runAsGroup": "3000"}


def test_a_step_of_its_own(tmp_path: Path) -> None:
    mine = "node_selector: [disk=ssd, zone=], tolerations: [dedicated=ml:NoExecute, any, kept=a]"
    task = compiled(tmp_path, f"resources.promote={{{mine}, retries: 0, timeout_h: 0.5}}")["promote"]
    assert task.pod["nodeSelector"] == {"labels": {"disk": "ssd", "zone": ""}}
    assert task.pod["tolerations"] == [
        {"key": "dedicated", "operator": "Equal", "value": "ml", "effect": "NoExecute"},
        {"key": "any", "operator": "Exists"},
        {"key": "kept", "operator": "Equal", "value": "a"},
    ]
    assert "retryPolicy" not in task.spec
    assert task.pod["activeDeadlineSeconds"] == "1800"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"node_selector": ["gpu"]}, "resources.promote.node_selector has 'gpu'; write a node's label as key=value"),
        ({"node_selector": "a=b"}, "expected a list"),
        ({"tolerations": ["nvidia.com/gpu:NoShedule"]}, "effects: NoSchedule, PreferNoSchedule, NoExecute"),
        ({"tolerations": ["=x:NoSchedule"]}, "write a taint as key:Effect"),
        ({"timeout_h": 0}, "resources.promote.timeout_h is 0.0; it must be from 0.02 to 8760"),
        ({"retries": -1}, "resources.promote.retries is -1"),
        ({"shm": "1G B"}, "resources.promote.shm is '1G B'"),
        ({"scratch": ""}, "resources.promote.scratch is ''"),
        ({"spot": True}, "resources.promote.spot is true, and nothing says which nodes are spot nodes"),
    ],
)
def test_what_no_cluster_takes_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        params_from_dict({"resources": {"promote": values}})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"store_secret": "My Store"}, "cluster.store_secret is 'My Store'; give the name of a Kubernetes object"),
        ({"image_pull_secrets": [""]}, "cluster.image_pull_secrets is ''"),
        ({"image_pull_policy": "Sometimes"}, "choose one of"),
        ({"run_as_user": -1}, "cluster.run_as_user is -1"),
        ({"spot_tolerations": ["a:b"]}, "cluster.spot_tolerations has 'a:b'"),
        ({"spot_node_selector": ["a b=c"]}, "cluster.spot_node_selector has 'a b=c'"),
    ],
)
def test_what_no_namespace_has_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        params_from_dict({"cluster": values})


def test_on_one_machine_nothing_of_it_counts(tmp_path: Path) -> None:
    """kfp.local would wait a minute before it tried a failing step again, and hand the number of processes on."""
    from kfp import compiler

    from pipelines.train_eval import build

    params = load_params(ROOT / "params/datacomp-small.yaml")
    out = tmp_path / "local.yaml"
    compiler.Compiler().compile(build(params, one_by_one=True), str(out))
    pipeline = client.documents(out)
    assert "platforms" not in pipeline
    assert "retryPolicy" not in out.read_text()
    assert "SPLATCLIP_PROCESSES" not in out.read_text()
