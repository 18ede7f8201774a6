"""A stand-in of the Kubeflow Pipelines API that holds requests to the API's contract, and keeps state.

The contract is that of the installed client (kfp_server_api, made from the API's OpenAPI description): its paths,
methods, names of queries, models and their fields' types. What the description leaves open is as in the backend's
source (kubeflow/pipelines, backend/src/apiserver): what filters may name, which names are unique, what a schedule may
say, that arguments are those of the pipeline, and the shapes of errors.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from functools import cache
from typing import Any
from urllib.parse import unquote

import yaml
from kubeflow_contract import Refused, Route, check, contract, cron_fields
from kubeflow_objects import kept, listed, there, unique

EPOCH = "1970-01-01T00:00:00Z"
NAMESPACED = {
    "experiments_get", "experiments_post", "pipelines_get", "pipelines_post", "runs_get", "recurringruns_get",
    "recurringruns_post",
}  # fmt: skip


@dataclass
class Fault:
    """What happens to a request instead of an answer, or with it.

    how: a status; "drop" (the connection ends before anything is done), "lose" (after it is done), "slow", "html",
    "to" (a redirection), "garbage"; times: how often.
    """

    method: str
    path: str
    how: int | str
    times: int = 1


@dataclass
class Kubeflow:
    """The server's state. Objects are the API's JSON; script: states and steps that a run goes through, one a GET."""

    url: str = ""
    token: str = ""
    forbidden: bool = False
    profile: str = ""  # the one namespace of an installation for several users
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    scripts: dict[str, list[Callable[[dict[str, Any]], None]]] = field(default_factory=dict)
    default_script: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)  # runs whose schedule was deleted under them
    lock: threading.RLock = field(default_factory=threading.RLock)
    clock: int = 0

    def now(self) -> str:
        self.clock += 1  # so that no two times are equal
        return f"{datetime.fromtimestamp(1_790_000_000 + self.clock, UTC):%Y-%m-%dT%H:%M:%SZ}"

    def trigger(self, recurring_id: str, state: str = "RUNNING") -> str:
        """A run that a schedule has started."""
        job = self.recurring[recurring_id]
        run_id = str(uuid.uuid4())
        self.runs[run_id] = {
            "run_id": run_id,
            "display_name": f"{job['display_name']}-{len(self.runs)}",
            "experiment_id": job["experiment_id"],
            "recurring_run_id": recurring_id,
            "created_at": self.now(),
            "finished_at": EPOCH,
            "state": state,
        }
        return run_id

    def answer(self, method: str, path: str, queries: dict[str, str], body: bytes, content: str) -> dict[str, Any]:
        """What a request is answered with; Refused where it breaks the contract."""
        matching = [(route, route.pattern.match(path)) for route in contract() if route.method == method]
        # /pipelines/upload is both a path and a pipeline's id
        found = sorted(((r, m) for r, m in matching if m), key=lambda pair: pair[0].path.count("{"))
        if not found:
            raise Refused(404, "Not Found")
        route, match = found[0]
        assert match is not None
        if unknown := {*queries} - route.queries:
            raise Refused(400, f"unknown query {sorted(unknown)}")
        given: Any = None
        if route.upload:
            given = _uploaded(body, content)
        elif route.body:
            given = json.loads(body)
            check(given, route.body, route.body)
        elif body and json.loads(body):
            raise Refused(400, f"{path} takes no body")
        if self.profile and _name(route) in NAMESPACED:
            where = given if route.body else queries
            if where.get("namespace") != self.profile and "experiment_id" not in queries:
                raise Refused(400, "Invalid input error: namespace is required in multi-user mode")
        handler = getattr(self, "_" + _name(route))
        result: dict[str, Any] = handler(*(unquote(part) for part in match.groups()), queries=queries, given=given)
        if route.answer and route.answer != "object":
            check(result, route.answer, "answer")  # the stand-in keeps to the contract, too
        return result

    # experiments, pipelines, versions

    def _experiments_get(self, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        return listed("experiments", "experiments", self.experiments, queries)

    def _experiments_post(self, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        unique(self.experiments, given["display_name"], "experiment")
        return kept(self.experiments, {"experiment_id": str(uuid.uuid4()), "created_at": self.now(), **given})

    def _pipelines_get(self, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        return listed("pipelines", "pipelines", self.pipelines, queries)

    def _pipelines_post(self, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        unique(self.pipelines, given["display_name"], "pipeline")
        _tags(given.get("tags", {}))
        return kept(self.pipelines, {"pipeline_id": str(uuid.uuid4()), "created_at": self.now(), **given})

    def _pipelines_id_versions_get(self, pipeline_id: str, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        there(self.pipelines, pipeline_id, "pipeline")
        own = {key: one for key, one in self.versions.items() if one["pipeline_id"] == pipeline_id}
        return listed("versions", "pipeline_versions", own, queries)

    def _pipelines_id_versions_id_get(
        self, pipeline_id: str, version_id: str, *, queries: dict[str, str], given: Any
    ) -> dict[str, Any]:
        there(self.pipelines, pipeline_id, "pipeline")
        return there(self.versions, version_id, "pipeline version")

    def _pipelines_upload_version_post(self, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        pipeline_id = queries.get("pipelineid", "")
        there(self.pipelines, pipeline_id, "pipeline")
        own = {key: one for key, one in self.versions.items() if one["pipeline_id"] == pipeline_id}
        unique(own, queries["name"], "pipeline version", upload=True)
        _tags(json.loads(queries.get("tags", "{}")))
        documents = json.loads(_documents(given))
        spec = documents[0] if len(documents) == 1 else {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        version = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": str(uuid.uuid4()),
            "name": queries["name"],
            "display_name": queries.get("display_name", queries["name"]),
            "description": queries.get("description", ""),
            "created_at": self.now(),
            "pipeline_spec": spec,
        }
        self.versions[version["pipeline_version_id"]] = version
        return version

    # runs

    def _runs_get(self, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        own = self.runs
        if "experiment_id" in queries:
            own = {key: run for key, run in own.items() if run["experiment_id"] == queries["experiment_id"]}
        return listed("runs", "runs", own, queries)

    def _runs_post(self, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        self._check_job(given)
        run_id = str(uuid.uuid4())
        self.scripts[run_id] = list(self.default_script)
        self.runs[run_id] = {
            **given,
            "run_id": run_id,
            "created_at": self.now(),
            "finished_at": EPOCH,
            "state": "PENDING",
        }
        return self.runs[run_id]

    def _runs_id_get(self, run_id: str, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        run = there(self.runs, run_id, "run")
        if self.scripts.get(run_id):
            self.scripts[run_id].pop(0)(run)
        return run

    def _check_job(self, given: dict[str, Any]) -> None:
        if len(given.get("description", "")) > 255:
            raise Refused(500, "Error 1406: Data too long for column 'Description' at row 1")
        there(self.experiments, given.get("experiment_id", ""), "experiment")
        named = given.get("pipeline_version_reference", {})
        version = there(self.versions, named.get("pipeline_version_id", ""), "pipeline version")
        if version["pipeline_id"] != named.get("pipeline_id"):
            raise Refused(400, "the pipeline version belongs to another pipeline")
        spec = version["pipeline_spec"].get("pipeline_spec", version["pipeline_spec"])
        wanted = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        values = given.get("runtime_config", {}).get("parameters", {})
        kinds = {"STRUCT": dict, "STRING": str, "LIST": list, "BOOLEAN": bool}
        for name, value in values.items():
            if name not in wanted:
                raise Refused(400, f"input parameter {name} is not of the pipeline")
            if not isinstance(value, kinds.get(wanted[name]["parameterType"], object)):
                raise Refused(400, f"input parameter {name} requires type {wanted[name]['parameterType']}")
        for name, asked in wanted.items():
            if name not in values and "defaultValue" not in asked and not asked.get("isOptional"):
                raise Refused(400, f"input parameter {name} is missing")

    # schedules

    def _recurringruns_get(self, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        return listed("recurringruns", "recurringRuns", self.recurring, queries)

    def _recurringruns_post(self, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        self._check_job(given)
        if not 1 <= int(given.get("max_concurrency", "0")) <= 10:
            raise Refused(400, "The max concurrency of the recurring run is out of range. Support 1-10")
        trigger = given["trigger"]
        if "cron_schedule" in trigger:
            cron_fields(trigger["cron_schedule"]["cron"])
        elif int(trigger["periodic_schedule"]["interval_second"]) < 1:
            raise Refused(400, "Found invalid period schedule interval")
        recurring_id = str(uuid.uuid4())
        enabled = given.get("mode") == "ENABLE"
        self.recurring[recurring_id] = {
            **{key: value for key, value in given.items() if key != "mode"},
            "recurring_run_id": recurring_id,
            "status": "ENABLED" if enabled else "DISABLED",
            "created_at": self.now(),
        }
        return self.recurring[recurring_id]

    def _recurringruns_id_get(self, recurring_id: str, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        return there(self.recurring, recurring_id, "recurring run")

    def _recurringruns_id_delete(self, recurring_id: str, *, queries: dict[str, str], given: Any) -> dict[str, Any]:
        there(self.recurring, recurring_id, "recurring run")
        for run in self.runs.values():
            if run.get("recurring_run_id") == recurring_id and run["state"] in ("PENDING", "RUNNING"):
                if queries.get("propagation_policy") != "ORPHAN":
                    run["state"] = "FAILED"
                self.killed.append(run["run_id"])
        del self.recurring[recurring_id]
        return {}

    def _recurringruns_id_enable_post(
        self, recurring_id: str, *, queries: dict[str, str], given: Any
    ) -> dict[str, Any]:
        there(self.recurring, recurring_id, "recurring run")["status"] = "ENABLED"
        return {}

    def _recurringruns_id_disable_post(
        self, recurring_id: str, *, queries: dict[str, str], given: Any
    ) -> dict[str, Any]:
        there(self.recurring, recurring_id, "recurring run")["status"] = "DISABLED"
        return {}


def _name(route: Route) -> str:
    path = re.sub(r"\{[^}]+\}", "id", route.path.removeprefix("/apis/v2beta1/"))
    return re.sub(r"[/:]", "_", f"{path}_{route.method.lower()}")


@cache
def _documents(data: bytes) -> str:
    """Of a YAML file, as JSON: parsed once, as that takes half a second."""
    return json.dumps(list(yaml.safe_load_all(data)))


def _tags(tags: dict[str, str]) -> None:
    if any(len(key) > 20 or len(value) > 20 for key, value in tags.items()):
        raise Refused(400, "tag keys and values have at most 20 characters")


def _uploaded(body: bytes, content: str) -> bytes:
    form = message_from_bytes(b"Content-Type: " + content.encode() + b"\r\n\r\n" + body)
    parts = form.get_payload()
    assert isinstance(parts, list)
    if len(parts) != 1 or parts[0].get_param("name", header="content-disposition") != "uploadfile":
        raise Refused(400, "Failed to read pipeline from file")
    file: bytes = parts[0].get_payload(decode=True)
    return file
