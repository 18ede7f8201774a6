"""Runs of the pipeline on a cluster: submitting, taking up again, finding, listing."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import kfp_server_api

from components import FLOW
from components.config import Params, semantic
from components.errors import PermanentError, UsageError
from components.manifest import canonical, sha256_bytes
from components.redaction import redacted
from pipelines import notes
from pipelines.api import Api, equals
from pipelines.api_errors import NotThereError
from pipelines.client import arguments, without_secrets
from pipelines.steps import UNKNOWN, StepState, time_of
from pipelines.train_eval import NAME
from pipelines.versions import Package, Version, experiment, upload

SUCCEEDED, FAILED, CANCELED, SKIPPED = "SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"
ENDED = {SUCCEEDED, FAILED, CANCELED, SKIPPED}
SUBMIT, DATA, RESUMES = "submit.id", "data.version", "resumes"  # data.version: of the store, too
_RUN_NAME = re.compile(r"(.+)-\d{8}T\d{6}Z")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Submitted:
    """A run that was made, or with --if-changed the one that makes it needless (new: false).

    why: with --if-changed, what became of the newest run of the same data, store, params, commit and image; "" without.
    """

    run_id: str
    name: str
    version: str
    experiment: str
    page: str = ""
    new: bool = True
    why: str = ""


def params_hash(params: Params) -> str:
    """Of the parameters that decide the results; MLflow's parent run has the same."""
    hashes = {step.name: sha256_bytes(canonical(semantic(getattr(params, step.section)))) for step in FLOW}
    return sha256_bytes(canonical(hashes))


def data_asked_for(params: Params) -> str:
    """A hash of what data the params ask for, without looking at them: the cluster does."""
    return sha256_bytes(canonical([semantic(params.download), semantic(params.download_eval)]))


def data_version(params: Params) -> str:
    """A hash of what the sources hold now: listings and contents, as far as the download step's own key goes.

    Raises what opening a source raises: UsageError, PermanentError, TransientError.
    """
    from components.download.sources import open_source

    found = []
    for section in (params.download, params.download_eval):
        with open_source(section) as source:
            found.append([semantic(section), source.fingerprint])
    return sha256_bytes(canonical(found))


def submit(
    api: Api, package: Package, params: Params, store: str, *, service_account: str = "", if_changed: bool = False
) -> Submitted:
    """Upload the version if it is not there, and start a run of it with the params as its arguments.

    if_changed: only where data, store, parameters, commit or image differ from those of the last run that succeeded,
    and of those at work.
    Raises UsageError for a store that pods cannot reach, and as upload, data_version and Api.call do.
    """
    params.require_squares()
    given = run_arguments(params, store, package)
    name = experiment_name(params, package.name)
    data = data_version(params) if if_changed else ""
    tags = {**package.tags, "params.hash": params_hash(params), SUBMIT: secrets.token_hex(4)}
    if data:  # what a run in another store made is not here; a description has no room for a tag more
        tags[DATA] = sha256_bytes(canonical([data, store.rstrip("/")]))
    tags = notes.brief(tags)
    version = upload(api, package)
    experiment_id = experiment(api, name)
    why = ""
    if if_changed:
        last, needless = _same(api, experiment_id, tags)
        if last is not None:
            known = f"run {last.display_name} ({last.run_id})"
            why = f"{known} of the same data, store, params, commit and image: {last.state}"
        if needless:
            page = api.connection.page(last.run_id)
            return Submitted(last.run_id, last.display_name, version.name, name, page, new=False, why=why)
    body = kfp_server_api.V2beta1Run(
        display_name=run_name(package.version[:7], (data or data_asked_for(params))[:7]),
        description=notes.written("By splatclip.", tags),
        experiment_id=experiment_id,
        pipeline_version_reference=reference(version),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=given),
        service_account=service_account or None,
    )
    run = _create(api, body, tags[SUBMIT])
    return Submitted(run.run_id, body.display_name, version.name, name, api.connection.page(run.run_id), why=why)


def run_arguments(params: Params, store: str, package: Package) -> dict[str, Any]:
    """What a run of the package is given. Raises UsageError for a secret in it and for a store that is no place."""
    if not (store.startswith(("s3://", "/"))):
        raise UsageError(f"store {store!r}: pods read and write it; give s3://bucket/prefix, or a path that all mount")
    if redacted(store) != store:
        raise UsageError("the store's address holds a password; steps take credentials from their environment")
    return {"store": store, **without_secrets(arguments(params)), "git_sha": package.version}


def experiment_name(params: Params, pipeline: str = NAME) -> str:
    """Also that of the run in MLflow."""
    return f"splatclip/{params.tracking.environment}/{pipeline}"


def run_name(git: str, data: str) -> str:
    """Such as 58f8e2c-d51422a-20261129T075628Z."""
    return f"{git}-{data}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def reference(version: Version) -> Any:
    """A version as runs name it."""
    return kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
    )


def _create(api: Api, body: Any, submit_id: str) -> Any:
    def find() -> Any:
        listed = api.pages(
            api.runs.run_service_list_runs,
            "runs",
            experiment_id=body.experiment_id,
            filter=equals(display_name=body.display_name),
        )
        return next((run for run in listed if notes.read(run.description).get(SUBMIT) == submit_id), None)

    return api.create(api.runs.run_service_create_run, body, find=find)


def _same(api: Api, experiment_id: str, tags: Mapping[str, str]) -> tuple[Any, bool]:
    """The newest run that said the same of itself, None without one, and whether it makes another needless.

    It does at work, and as the last run of all that succeeded. One that failed does not: whether for good only the logs
    say.
    """
    failed = None
    for run in api.pages(
        api.runs.run_service_list_runs, "runs", experiment_id=experiment_id, sort_by="created_at desc"
    ):
        told = notes.read(run.description)
        if DATA not in told:
            continue
        kept = (DATA, "params.hash", "git.sha", "git.dirty", "image.digest")
        same = all(told.get(name) == tags[name] for name in kept)
        if same and (run.state == SUCCEEDED or run.state not in ENDED):
            return run, True
        if run.state == SUCCEEDED:
            break
        if same and failed is None:
            failed = run
    return failed, False


def resume(api: Api, ref: str) -> Submitted:
    """Submit a run's version and arguments again: what it has finished the steps find in the store.

    Raises UsageError where it is at work still, PermanentError where there is no such run.
    """
    run = find_run(api, ref)
    if run.state not in ENDED:
        raise UsageError(f"run {run.run_id} is {run.state or UNKNOWN}; cancel it or wait for its end, then resume it")
    told = notes.read(run.description)
    tags = {**told, SUBMIT: secrets.token_hex(4), RESUMES: run.run_id[:8]}
    stem = _RUN_NAME.fullmatch(run.display_name or "")
    body = kfp_server_api.V2beta1Run(
        display_name=f"{stem[1] if stem else run.display_name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}",
        description=notes.written("Resumed.", tags),
        experiment_id=run.experiment_id,
        pipeline_version_reference=run.pipeline_version_reference,
        pipeline_spec=None if run.pipeline_version_reference else run.pipeline_spec,
        runtime_config=run.runtime_config,
        service_account=run.service_account,
    )
    made = _create(api, body, tags[SUBMIT])
    sha = told.get("git.sha", "unknown")
    page = api.connection.page(made.run_id)
    return Submitted(made.run_id, body.display_name, sha, "", page)


def find_run(api: Api, ref: str) -> Any:
    """A run with its details, by id or by name.

    Raises PermanentError where there is none, UsageError where there are several of that name.
    """
    if not _ID.fullmatch(ref):
        listed = api.pages(
            api.runs.run_service_list_runs,
            "runs",
            namespace=api.connection.namespace or None,
            filter=equals(display_name=ref),
        )
        found = [run.run_id for run in listed if run.display_name == ref]
        if len(found) > 1:
            raise UsageError(f"{len(found)} runs are called {ref!r}; give one's id: {', '.join(found[:5])}")
        if not found:
            raise PermanentError(f"there is no run {ref!r}; `splatclip pipeline list` shows what there is")
        ref = found[0]
    try:
        return api.call(api.runs.run_service_get_run, ref)
    except NotThereError:
        raise PermanentError(f"there is no run {ref}; `splatclip pipeline list` shows what there is") from None


def recent(api: Api, limit: int, *, experiment_named: str = "", state: str = "") -> Iterator[Any]:
    """The newest runs first, of an experiment if one is given, and with a state if one is given."""
    experiment_id = None
    if experiment_named:
        listed = api.pages(
            api.experiments.experiment_service_list_experiments,
            "experiments",
            filter=equals(display_name=experiment_named),
            namespace=api.connection.namespace or None,
        )
        experiment_id = next((one.experiment_id for one in listed if one.display_name == experiment_named), None)
        if experiment_id is None:
            raise PermanentError(f"there is no experiment {experiment_named!r}")
    shown = 0
    for run in api.pages(
        api.runs.run_service_list_runs,
        "runs",
        size=min(limit, 100) if not state else 100,
        experiment_id=experiment_id,
        namespace=None if experiment_id else api.connection.namespace or None,
        sort_by="created_at desc",
    ):
        if state and run.state != state:
            continue
        yield run
        shown += 1
        if shown == limit:
            return


def as_json(run: Any, steps: Iterable[StepState] = ()) -> dict[str, Any]:
    """A run for scripts."""
    told = notes.read(run.description)
    return {
        "run_id": run.run_id,
        "name": run.display_name,
        "state": run.state or UNKNOWN,
        "created": stamp(run.created_at),
        "finished": stamp(time_of(run.finished_at)),
        "experiment_id": run.experiment_id,
        "recurring_run_id": run.recurring_run_id,
        "error": run.error.message if run.error else None,
        "tags": {name: value for name, value in told.items() if name != SUBMIT},
        "steps": [{**asdict(step), "started": stamp(step.started), "ended": stamp(step.ended)} for step in steps],
    }


def stamp(value: datetime | None) -> str | None:
    """A time, in UTC, as text."""
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if value else None
