"""The fitting of a pipeline's run by one step, by groups side by side, and by a Job: one graph, the same bytes."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from fleets import PARAMS, fitted, picture_set
from kube import a_cluster

from components.cluster_params import ClusterParams, Resources
from components.config import SplatFitParams
from components.errors import UsageError
from components.params import load_params
from components.splat_fit import stage, ways
from pipelines import client, fitting

SPOT = ClusterParams(spot_node_selector=("spot=true",))
SCRIPT = """
import sys, json
from kfp import dsl, local
from components.config import Params
from components.fleet_params import FleetParams
from pipelines import fitting
from pipelines.placing import Placing

given = json.loads(sys.argv[1])
FITTED = Params(fleet=FleetParams(**given["fleet"]))
placing = Placing.of(FITTED, "splatclip-python:dev", local=True)

@dsl.pipeline(name="fitting")
def pipeline(store: str, params: dict, tracking: dict):
    images = dsl.importer(artifact_uri=given["images"], artifact_class=dsl.Dataset, reimport=False).output
    common = {"run_id": "1", "store": store, "tracking": tracking, "params": params, "images": images}
    fitting.fit(FITTED.fleet, placing, "splat_fit", common, [])

local.init(local.SubprocessRunner(use_venv=False), pipeline_root=given["root"], workspace_root=given["root"] + "w")
pipeline(store=given["store"], params=given["params"], tracking={})
"""


def run_graph(tmp_path: Path, images: str, fleet: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    given = {"images": images, "store": str(tmp_path / "store"), "params": PARAMS, "fleet": fleet}
    given["root"] = str(tmp_path / "root")
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(given)],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "executor", ["groups", pytest.param("job", marks=pytest.mark.full), pytest.param("task", marks=pytest.mark.full)]
)
def test_whoever_fits_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    images = picture_set(tmp_path / "in", shards=4, per_shard=2)
    stage.run(SplatFitParams(**PARAMS), images=images.url, store=str(tmp_path / "whole"))
    manifest = str(Path(images.url, "manifest.json"))
    fleet = {"executor": executor, "groups": 2, "shards_per_index": 2, "template": ""}
    with a_cluster() as kube:
        monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(tmp_path / "kubeconfig")))
        result = run_graph(tmp_path, manifest, fleet)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(kube.created) == (executor == "job")
    assert fitted(tmp_path / "store") == fitted(tmp_path / "whole")


def test_the_graph_of_groups_compiles(tmp_path: Path) -> None:
    params = load_params(ROOT / "params.yaml", ["fleet.executor=groups", "fleet.groups=32", "fleet.parallelism=4"])
    client.compile_pipeline(params, tmp_path / "p.yaml")
    text, *_ = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    tasks = text["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    loops = {name: task for name, task in tasks.items() if "parameterIterator" in task}
    assert len(loops) == 1, "of the set that is trained on"
    for loop in loops.values():
        assert loop["iteratorPolicy"] == {"parallelismLimit": 4}
        items = json.loads(loop["parameterIterator"]["items"]["raw"])
        assert items == [f"{i}/32" for i in range(32)]
    names = {task["taskInfo"]["name"] for task in tasks.values()}
    spot = replace(params, resources=replace(params.resources, splat_fit=Resources(spot=True)), cluster=SPOT)
    with pytest.raises(UsageError, match=r"resources\.splat_fit\.spot is true and fleet\.executor 'groups'"):
        client.compile_pipeline(spot, tmp_path / "p.yaml")
    assert {"splat_fit", "splat_fit_eval", "train_adapter", "zero_shot_eval"} <= names, "the step is called as ever"


def test_a_graph_that_kubernetes_would_not_take_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BYTES", 50_000)
    with pytest.raises(UsageError, match=r"p\.yaml: the pipeline compiles to \d+ bytes; .* at most 50000"):
        client.compile_pipeline(load_params(ROOT / "params.yaml"), tmp_path / "p.yaml")
    assert not (tmp_path / "p.yaml").exists()


@pytest.mark.full
def test_the_page_says_how_large_the_graphs_are(tmp_path: Path) -> None:
    sizes = []
    for executor in ("task", "groups", "job"):
        params = load_params(ROOT / "params.yaml", [f"fleet.executor={executor}", "fleet.groups=32"])
        for out in (tmp_path / "one.yaml", tmp_path / "other.yaml"):
            client.compile_pipeline(params, out)
        assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "other.yaml").read_bytes()
        sizes.append(f"{len((tmp_path / 'one.yaml').read_bytes()) / 1000:.0f}")
    row = f"| pipeline as compiled: task, groups (32), job | {', '.join(sizes)} kB |"
    assert row in (ROOT / "docs/scale.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("executor", "component"), [("job", "splat-fit-job"), ("groups", "splat-fit-finalise")])
def test_who_works_out_a_readers_metric_has_room_for_the_teacher(tmp_path: Path, executor: str, component: str) -> None:
    given = [f"fleet.executor={executor}", "splat_fit.reader=s3://b/train_teacher/x", "splat_fit.reader_weight=1"]
    asked = ["resources.splat_fit.memory=24Gi", "resources.splat_fit.gpus=1", "resources.splat_fit.scratch=30Gi"]
    client.compile_pipeline(load_params(ROOT / "params.yaml", given + asked), tmp_path / "p.yaml")
    text, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    label = text["components"][f"comp-{component}"]["executorLabel"]
    resources = text["deploymentSpec"]["executors"][label]["container"]["resources"]
    assert (resources["cpuLimit"], resources["memoryLimit"]) == (8.0, 25.769803776)
    assert "accelerator" not in resources
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][label]
    assert [one["sizeLimit"] for one in pod["emptyDirMounts"]] == ["30Gi"]


def test_the_graph_of_a_job_compiles(tmp_path: Path) -> None:
    chosen = ["fleet.executor=job", "fleet.queue=fits", "fleet.timeout_h=2", "cluster.store_secret=theirs"]
    params = load_params(ROOT / "params.yaml", [*chosen, "cluster.image_pull_secrets=[registry]"])
    client.compile_pipeline(params, tmp_path / "p.yaml", image="registry/splatclip-python@sha256:" + "0" * 64)
    text, *_ = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    task = next(
        task for task in text["components"]["comp-exit-handler-1"]["dag"]["tasks"].values()
        if task["taskInfo"]["name"] == "splat_fit"
    )  # fmt: skip
    given = {name: one.get("runtimeValue", {}).get("constant") for name, one in task["inputs"]["parameters"].items()}
    assert given["fleet"]["queue"] == "fits"
    assert given["image"].endswith("0" * 64)
    work = ways.in_job(*(given[name] for name in ("fleet", "resources", "cluster", "image")))
    assert isinstance(work, functools.partial)
    assert work.keywords["pods_have"] == params.cluster
    executor = text["deploymentSpec"]["executors"][text["components"]["comp-splat-fit-job"]["executorLabel"]]
    assert executor["container"]["resources"]["cpuLimit"] == 1.0, "it fits nothing itself"
    _, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    longest = str(round(3600 * fitting.LONGEST_H))
    pod = pods[text["components"]["comp-splat-fit-job"]["executorLabel"]]
    assert pod["activeDeadlineSeconds"] == longest, "it sees the Job's own end"
