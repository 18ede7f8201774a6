"""What Kubernetes' API server refuses: unknown fields, wrong types, Jobs against its rules; how it writes indexes."""

from __future__ import annotations

import json
import re
from typing import Any

from kubernetes import client

LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
MIN_PARALLELISM = "kueue.x-k8s.io/job-min-parallelism"
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def check_type(value: Any, kind: str, where: str) -> None:
    """A value against a type of the client's, recursively; unknown fields are refused, as --validate=strict does."""
    if kind.startswith("list["):
        assert isinstance(value, list), f"{where}: expected a list"
        for i, item in enumerate(value):
            check_type(item, kind[5:-1], f"{where}[{i}]")
    elif kind.startswith("dict("):
        assert isinstance(value, dict), f"{where}: expected a mapping"
        for key, item in value.items():
            check_type(item, kind[5:-1].split(", ")[1], f"{where}.{key}")
    elif kind in {"str", "int", "bool", "float", "object", "datetime"}:
        plain = {"str": str, "int": int, "bool": bool, "float": float, "object": object, "datetime": str}[kind]
        assert isinstance(value, plain), f"{where}: {value!r} is no {kind}"
        assert kind != "int" or not isinstance(value, bool), f"{where}: {value!r} is no int"
    else:
        model = getattr(client, kind)
        assert isinstance(value, dict), f"{where}: expected a {kind}"
        names = {name: attribute for attribute, name in model.attribute_map.items()}
        for name, item in value.items():
            assert name in names, f"{where}.{name}: unknown field of {kind}"
            check_type(item, model.openapi_types[names[name]], f"{where}.{name}")


def check_job(body: dict[str, Any]) -> None:
    """What an API server refuses."""
    check_type(body, "V1Job", "Job")
    assert NAME.fullmatch(body["metadata"]["name"]), body["metadata"]["name"]
    spec = body["spec"]
    pods = spec["template"]
    for labels in (body["metadata"].get("labels", {}), pods["metadata"].get("labels", {})):
        assert all(LABEL.fullmatch(value) for value in labels.values()), labels
    assert pods["spec"]["restartPolicy"] == "Never", "podFailurePolicy needs restartPolicy Never"
    assert spec["completionMode"] == "Indexed"
    assert 1 <= spec["parallelism"] <= 100_000
    assert spec["backoffLimitPerIndex"] >= 0
    assert 0 <= spec["maxFailedIndexes"] <= spec["completions"]
    if spec["completions"] > 100_000:
        assert spec["maxFailedIndexes"] <= 10_000
        assert spec["parallelism"] <= 10_000
    assert len(json.dumps(body)) < 1_500_000, "larger than etcd takes"
    least = body["metadata"].get("annotations", {}).get(MIN_PARALLELISM)
    assert least is None or 0 <= int(least) < spec["parallelism"], "Kueue's webhook"
    containers = {one["name"] for one in pods["spec"]["containers"]}
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in {"Ignore", "FailIndex", "FailJob", "Count"}
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        codes = rule.get("onExitCodes")
        assert codes is None or (codes["operator"] in {"In", "NotIn"} and 0 not in codes["values"])
        assert codes is None or codes.get("containerName") in {None, *containers}


def numbers(values: set[int]) -> str:
    """As Kubernetes writes completedIndexes."""
    runs: list[tuple[int, int]] = []
    for value in sorted(values):
        runs = [*runs[:-1], (runs[-1][0], value)] if runs and runs[-1][1] == value - 1 else [*runs, (value, value)]
    return ",".join(f"{a}" if a == b else f"{a}-{b}" if b - a > 1 else f"{a},{b}" for a, b in runs)
