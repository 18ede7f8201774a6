"""The work list and the Job's body: how shards are cut into groups, and what a cluster is asked for."""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from kube_rules import check_job, numbers

from components.cluster_params import ClusterParams, Resources
from components.config import SplatFitParams
from components.entries import canonical
from components.errors import PermanentError, UsageError
from components.fleet_params import FleetParams
from components.params import params_from_dict
from components.splat_fit import job as jobs
from components.splat_fit import ways
from components.splat_fit.work import (
    JOB_INDEX,
    Share,
    cut,
    num_groups,
    pending,
    read_numbers,
    read_share,
    write_numbers,
)

PARAMS = SplatFitParams()
NAME = "splat-fit-0123456789abcdef-abcdef"


def shards(count: int) -> list[Any]:
    return [SimpleNamespace(index=i) for i in reversed(range(count))]


@given(count=st.integers(0, 300), total=st.integers(1, 64))
def test_every_shard_is_in_one_group_and_groups_differ_by_one(count: int, total: int) -> None:
    groups = cut(shards(count), total)
    assert [one.index for group in groups for one in group] == list(range(count))
    sizes = {len(group) for group in groups}
    assert len(groups) == total
    assert max(sizes) - min(sizes) <= 1


@given(count=st.integers(0, 2000), size=st.integers(1, 40))
def test_a_group_has_no_more_shards_than_asked_for(count: int, size: int) -> None:
    assert max(len(group) for group in cut(shards(count), num_groups(count, size))) <= size


@given(count=st.integers(1, 100), total=st.integers(1, 20), done=st.sets(st.integers(0, 99)))
def test_pending_groups_are_those_that_miss_a_shard(count: int, total: int, done: set[int]) -> None:
    todo = pending(shards(count), done, total)
    assert {one.index for one in Share(total, tuple(todo)).of(shards(count))} >= {*range(count)} - done
    for number in todo:
        assert any(one.index not in done for one in Share(total, (number,)).of(shards(count)))


@settings(deadline=None)
@given(st.sets(st.integers(0, 5000)))
def test_numbers_as_kubernetes_writes_them(values: set[int]) -> None:
    assert read_numbers(write_numbers(values)) == sorted(values)
    assert read_numbers(numbers(values)) == sorted(values)


def test_numbers_of_a_failed_job() -> None:
    assert read_numbers("1,3-5,7") == [1, 3, 4, 5, 7]
    assert read_numbers("") == []
    for text in ("1;3", "5-3", "-1", "0-99999999", "1-", "a"):
        with pytest.raises(ValueError, match=r"neither a number|backwards|beyond"):
            read_numbers(text)


def test_a_share_from_the_command_and_from_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_INDEX, raising=False)
    assert read_share("3/8") == Share(8, (3,))
    assert str(read_share("0-3,7/8")) == "0-3,7/8"
    for text in ("8/8", "3", "/8", "3/0", "a/8", "3/8/9", "5-3/8"):
        with pytest.raises(UsageError, match="write which of how many"):
            read_share(text)
    monkeypatch.setenv(JOB_INDEX, "4")
    assert read_share("0-3,7/8") == Share(8, (7,))
    with pytest.raises(UsageError, match="JOB_COMPLETION_INDEX is 4, but '3/8' names 1 groups"):
        read_share("3/8")


def body(fleet: FleetParams, share: Share, template: dict[str, Any] | None = None, image: str = "") -> dict[str, Any]:
    args = jobs.arguments(PARAMS, share, images="s3://b/s/download/x", store="s3://b/s", output="splat_fit/x")
    return jobs.job_body(template or jobs.built_in(Resources()), fleet, share, name=NAME, args=args, image=image)


@pytest.mark.parametrize("completions", [1, 80, 8000, 128_000])
def test_a_cluster_takes_the_job(completions: int) -> None:
    share = Share(completions, tuple(range(completions)))
    made = body(FleetParams(queue="fits", timeout_h=2), share)
    check_job(made)
    spec = made["spec"]
    assert spec["maxFailedIndexes"] == {1: 1, 80: 1, 8000: 80, 128_000: 1280}[completions]
    assert spec["completions"] == completions
    assert spec["parallelism"] == min(32, completions)
    assert (spec["suspend"], spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (True, 7200, 86400)
    assert made["metadata"]["labels"][jobs.QUEUE] == "fits"
    assert made["metadata"]["annotations"] == {}, "with a least parallelism Kueue may hold it there to its end"
    assert jobs.share_of(jobs.container(made, "")["args"]) == share
    assert len(json.dumps(made)) < 5000, "ranges, not numbers"


def test_the_longest_list_of_groups_still_fits() -> None:
    """Every second of 8,000 groups pending: Linux takes arguments of 128 KiB, etcd objects of 1.5 MB."""
    made = body(FleetParams(), Share(8000, tuple(range(0, 8000, 2))))
    assert max(len(word) for word in jobs.container(made, "")["args"]) < 32 << 10
    check_job(made)


def test_without_kueue_nothing_waits_for_it() -> None:
    made = body(FleetParams(), Share(2, (0, 1)))
    assert "suspend" not in made["spec"]
    assert jobs.QUEUE not in made["metadata"]["labels"]
    assert "activeDeadlineSeconds" not in made["spec"]


def test_pods_are_restricted_and_ask_for_what_params_say() -> None:
    resources = Resources(cpu=1.5, memory="3Gi", gpus=2)
    made = body(FleetParams(), Share(1, (0,)), jobs.built_in(resources))
    check_job(made)
    pod = made["spec"]["template"]["spec"]
    (fitter,) = pod["containers"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert fitter["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert "serviceAccountName" not in pod, "which a namespace need not have"
    assert pod["automountServiceAccountToken"] is False
    rules = [rule["action"] for rule in made["spec"]["podFailurePolicy"]["rules"]]
    assert rules == ["Ignore", "FailIndex", "FailJob"], (
        "the first that fits decides: an evicted pod may end with any code"
    )
    asked = {"cpu": "1500m", "memory": "3Gi", "ephemeral-storage": "20Gi", "nvidia.com/gpu": "2"}
    assert fitter["resources"] == {"requests": asked, "limits": asked}
    for labels in (made["metadata"]["labels"], made["spec"]["template"]["metadata"]["labels"]):
        words = {"name", "instance", "version", "component", "part-of", "managed-by"}
        assert {f"app.kubernetes.io/{word}" for word in words} <= {*labels}


def test_the_commands_job_has_what_a_pipelines_steps_have() -> None:
    values = {
        "resources": {"splat_fit": {"spot": True, "tolerations": ["gpu"]}},
        "cluster": {
            "spot_node_selector": ["spot=true"],
            "spot_tolerations": ["spot:NoSchedule"],
            "store_secret": "theirs",
            "image_pull_policy": "Always",
            "image_pull_secrets": ["registry"],
            "run_as_user": 1001,
            "run_as_group": 1002,
        },
    }
    args = argparse.Namespace(processes=0, finalise=False, job=True)
    work = ways.chosen(args, params_from_dict(values))
    assert isinstance(work, functools.partial)
    template = jobs.built_in(work.keywords["resources"], work.keywords["pods_have"])
    check_job(body(FleetParams(), Share(1, (0,)), template))
    pod = template["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"spot": "true"}
    assert [one["key"] for one in pod["tolerations"]] == ["gpu", "spot"]
    (fitter,) = pod["containers"]
    assert fitter["envFrom"] == [{"secretRef": {"name": "theirs", "optional": True}}]
    assert (fitter["imagePullPolicy"], pod["imagePullSecrets"]) == ("Always", [{"name": "registry"}])
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (1001, 1002)
    plain = jobs.built_in(Resources(), ClusterParams(store_secret=""))["spec"]["template"]["spec"]
    assert not {"envFrom", "imagePullPolicy"} & {*plain["containers"][0]}
    assert {*plain["securityContext"]} == {"runAsNonRoot", "seccompProfile"}


def test_the_template_decides_what_params_do_not() -> None:
    template = jobs.built_in(Resources())
    template["metadata"] = {"name": "other", "labels": {jobs.QUEUE: "theirs", "team": "a"}}
    template["spec"]["template"]["spec"]["nodeSelector"] = {"zone": "a"}
    fitter = jobs.container(template, "")
    fitter["image"], fitter["args"] = "registry/theirs@sha256:1", ["--help"]
    template["metadata"]["annotations"] = {jobs.MIN_PARALLELISM: "4", "note": "a"}
    for parallelism, notes in ((4, {"note": "a"}), (5, {"note": "a", jobs.MIN_PARALLELISM: "4"})):
        made = body(FleetParams(parallelism=parallelism), Share(9, tuple(range(9))), template)
        check_job(made)
        assert made["metadata"]["annotations"] == notes, "what Kueue would refuse is left out"
    made = body(FleetParams(), Share(1, (0,)), template)
    check_job(made)
    assert made["metadata"]["name"] == NAME
    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["labels"][jobs.QUEUE] == "theirs"
    assert "suspend" not in made["spec"], "whether there is a Kueue, the template cannot say"
    assert made["spec"]["template"]["spec"]["nodeSelector"] == {"zone": "a"}
    assert jobs.container(made, "")["image"] == "registry/theirs@sha256:1"
    assert jobs.container(made, "")["args"][0] == "splat-fit"
    for image, named, wanted in (
        ("dev:1", "", "registry/theirs@sha256:1"),
        ("a@sha256:2", "", "a@sha256:2"),
        ("a@sha256:2", "b:3", "b:3"),
    ):
        made = body(FleetParams(image=named), Share(1, (0,)), template, image)
        assert jobs.container(made, "")["image"] == wanted
    assert fitter["args"] == ["--help"], "the template itself is left alone"


@pytest.mark.parametrize("place", ["base/pipeline", "components/kind", "components/gpu"])
def test_the_templates_of_k8s_make_jobs(place: str) -> None:
    text = (ROOT / "k8s" / place / "fit-job.yaml").read_text(encoding="utf-8")
    template = jobs.read_template(text, place)
    made = body(FleetParams(), Share(8000, tuple(range(8000))), template, "registry/splatclip@sha256:1")
    quantities = jobs.container(made, place)["resources"]
    for asked in quantities.values():
        asked |= {name: str(value) for name, value in asked.items()}
    check_job(made)
    assert made["spec"]["maxFailedIndexes"] == 80
    assert jobs.container(made, place)["image"] == "registry/splatclip@sha256:1"
    mine, theirs = body(FleetParams(), Share(2, (0, 1)))["spec"], made["spec"]
    for name in ("podFailurePolicy", "podReplacementPolicy"):
        assert mine[name] == theirs[name], "the built-in template is of the same shape"
    labels = [spec["template"]["metadata"]["labels"] for spec in (mine, theirs)]
    assert labels[0] == labels[1]
    assert labels[0]["sidecar.istio.io/inject"] == "false"
    pods = [spec["template"]["spec"] for spec in (mine, theirs)]
    for name in ("automountServiceAccountToken", "securityContext", "restartPolicy"):
        assert pods[0][name] == pods[1][name]
    assert (
        jobs.container(body(FleetParams(), Share(1, (0,))), "")["securityContext"]
        == (jobs.container(made, place)["securityContext"])
    )


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{kind: Job}",
        "apiVersion: batch/v1\nkind: Job\nspec: {template: {spec: {containers: [{name: x}]}}}",
        "{",
        "!!python/none",
    ],
)
def test_a_template_that_is_none(text: str) -> None:
    with pytest.raises(PermanentError, match="here"):
        jobs.read_template(text, "here")


def test_no_secret_in_a_job() -> None:
    secret = replace(PARAMS, reader="https://user:hunter2@host/teacher", reader_weight=1.0)
    with pytest.raises(UsageError, match="hold a password"):
        jobs.arguments(secret, Share(1, (0,)), images="i", store="s", output="o")


def test_what_differs_between_two_jobs() -> None:
    one, other = body(FleetParams(), Share(8, (0, 1))), body(FleetParams(parallelism=2), Share(8, (3,)))
    assert jobs.differences(one, other) == [], "other groups, the same work"
    jobs.container(other, "")["image"] = "new"
    jobs.container(other, "")["args"][2] = "{}"
    found = jobs.differences(one, other)
    assert found[0] == "image splatclip-python:dev there, new wanted"
    assert found[1].endswith("there, {} wanted")


def test_the_name_goes_with_output_and_store() -> None:
    names = {jobs.job_name(f"splat_fit/{key}", store) for key in ("0" * 16, "1" * 16) for store in ("s3://a", "s3://b")}
    assert len(names) == 4
    assert jobs.job_name("splat_fit/" + "0" * 16, "s3://a") in names


@pytest.mark.parametrize(
    ("field", "value"),
    [("executor", "pods"), ("groups", 33), ("groups", 0), ("parallelism", 0), ("max_failed", 1.5), ("queue", "A_b"),
     ("namespace", "-a"), ("backoff", -1), ("ttl_h", 0.5), ("shards_per_index", 0)],
)  # fmt: skip
def test_fleet_refuses(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"fleet\.{field}"):
        FleetParams(**{field: value})


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
flat = scalars | st.lists(scalars, max_size=4) | st.dictionaries(st.text(), scalars, max_size=4)
json_values = flat | st.lists(flat, max_size=4) | st.dictionaries(st.text(), flat, max_size=4) | st.tuples(flat, flat)


@settings(deadline=None)
@given(json_values, st.sampled_from([1, 4]))
def test_indented_json_is_the_standard_library_s(value: Any, indent: int) -> None:
    try:
        text = json.dumps(value, sort_keys=True, indent=indent, separators=(",", ": "), ensure_ascii=False)
        expected = (text + "\n").encode()
    except UnicodeEncodeError:
        return
    assert canonical(value, indent=indent) == expected


def test_the_default_profile_leaves_a_run_as_it_was() -> None:
    assert FleetParams().executor == "task"
