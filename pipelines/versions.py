"""Uploading the pipeline: a version is a commit, and its bytes never change."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kfp_server_api
import yaml

from components.config import Params
from components.errors import PermanentError, UsageError
from components.provenance import NONE, git_version
from pipelines import notes, rollback
from pipelines.api import Api, equals
from pipelines.api_errors import AlreadyThereError
from pipelines.client import NOT_ARGUMENTS, checked_image, compile_pipeline
from pipelines.train_eval import NAME, SUMMARY

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,98}[a-z0-9])?")
BYTES = "bytes.sha256"


@dataclass(frozen=True)
class Package:
    """The pipeline as it is uploaded.

    name: of the pipeline; version: the commit, with -dirty where the code was changed since; data: the YAML, which
    holds the graph, what its steps ask of the cluster, and the image, but neither the commit nor the params: these are
    arguments of each run.
    """

    name: str
    version: str
    image: str
    data: bytes

    @property
    def sha256(self) -> str:
        """Of the YAML."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def tags(self) -> dict[str, str]:
        """Of where it comes from, by the names that MLflow's runs have them under."""
        return {
            "git.sha": self.version.removesuffix("-dirty"),
            "git.dirty": str(self.version.endswith("-dirty")).lower(),
            "image.digest": self.image.partition("@")[2] or NONE,
        }


def make_package(params: Params, image: str, *, name: str = NAME, production: bool = False) -> Package:
    """Compile the graph for an image.

    production: as checked_image has it.
    Raises UsageError for a name that is not this graph's, for a code whose commit is not known, and as checked_image
    and compile_pipeline do.
    """
    checked_image(image, params, production=production)
    if name == rollback.NAME:
        raise UsageError(
            f"pipeline {name!r} is another graph than the one that runs, is uploaded and scheduled by these commands; "
            "`splatclip pipeline compile --image NAME` writes it as rollback.yaml, which Kubeflow takes as it is "
            "(docs/promotion.md)"
        )
    if not _NAME.fullmatch(name):
        raise UsageError(f"pipeline {name!r}: use lower-case letters, digits and '-', 100 at most")
    sha, dirty = git_version()
    if sha == NONE:
        raise UsageError(
            "a version is a commit, and this code's is not known; run it from its git checkout, or set "
            "SPLATCLIP_GIT_SHA"
        )
    graph = replace(Params(), **{part: getattr(params, part) for part in NOT_ARGUMENTS})
    return Package(name, f"{sha}-dirty" if dirty == "true" else sha, image, _compiled(graph, image))


@cache  # it takes seconds, and several schedules share one graph
def _compiled(graph: Params, image: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="splatclip-compile-") as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_pipeline(graph, path, image)
        return path.read_bytes()


@dataclass(frozen=True)
class Version:
    """An uploaded version. new: this call has made it."""

    pipeline_id: str
    version_id: str
    name: str
    new: bool = False


def find_pipeline(api: Api, name: str) -> str | None:
    """A pipeline's id by its name in the connection's namespace; None where there is none."""
    listed = api.pages(
        api.pipelines.pipeline_service_list_pipelines,
        "pipelines",
        filter=equals(display_name=name),
        namespace=api.connection.namespace or None,
    )
    return next((str(one.pipeline_id) for one in listed if one.display_name == name), None)


def _find_version(api: Api, pipeline_id: str, version: str) -> Any:
    listed = api.pages(
        api.pipelines.pipeline_service_list_pipeline_versions,
        "pipeline_versions",
        pipeline_id,
        filter=equals(display_name=version),
    )
    return next((one for one in listed if one.display_name == version), None)


def find_version(api: Api, package: Package) -> Version | None:
    """The package's version where it was uploaded before. Raises PermanentError if what is there has other bytes."""
    pipeline_id = find_pipeline(api, package.name)
    there = _find_version(api, pipeline_id, package.version) if pipeline_id else None
    return _same(there, package) if there else None


def upload(api: Api, package: Package) -> Version:
    """Upload a version, once however often it is called.

    Raises PermanentError if the commit was uploaded before with other bytes, and as Api.call does.
    """
    pipeline_id = find_pipeline(api, package.name) or _make_pipeline(api, package.name)
    there = _find_version(api, pipeline_id, package.version)
    if there is not None:
        return _same(there, package)
    words = f"{SUMMARY} On {package.image}."
    about = notes.written(words, {**package.tags, BYTES: package.sha256}, longest=4096)

    def find() -> Any:
        return _find_version(api, pipeline_id, package.version)

    with tempfile.TemporaryDirectory(prefix="splatclip-upload-") as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_bytes(package.data)
        try:
            made = api.create(
                api.uploads.upload_pipeline_version,
                str(path),
                name=package.version,
                display_name=package.version,
                description=about,
                pipelineid=pipeline_id,
                find=find,
            )
        except AlreadyThereError:  # somebody else was faster
            made = find()
            if made is None:
                raise
    return replace(_same(made, package), new=True)


def _make_pipeline(api: Api, name: str) -> str:
    pipeline = kfp_server_api.V2beta1Pipeline(
        name=name, display_name=name, description=SUMMARY, namespace=api.connection.namespace or None
    )

    def find() -> Any:
        found = find_pipeline(api, name)
        return found and kfp_server_api.V2beta1Pipeline(pipeline_id=found)

    return _made(api, api.pipelines.pipeline_service_create_pipeline, pipeline, find, "pipeline_id")


def _made(api: Api, method: Callable[..., Any], body: Any, find: Callable[[], Any], key: str) -> str:
    """The id of what is made, or of what somebody else made of that name meanwhile."""
    try:
        return str(getattr(api.create(method, body, find=find), key))
    except AlreadyThereError:
        there = find()
        if there is None:
            raise
        return str(getattr(there, key))


def _same(there: Any, package: Package) -> Version:
    told = notes.read(there.description)
    if BYTES in told:
        equal = told[BYTES] == package.sha256
    else:  # uploaded by hand
        graph, *platform = yaml.safe_load_all(package.data)
        equal = there.pipeline_spec == ({"pipeline_spec": graph, "platform_spec": platform[0]} if platform else graph)
    if not equal:
        raise PermanentError(
            f"version {package.version} of pipeline {package.name} was uploaded with other bytes (another image, or "
            "other `resources`), and a version never changes: commit and upload that, or give the image and resources "
            "of then, or another --pipeline name"
        )
    return Version(str(there.pipeline_id), str(there.pipeline_version_id), package.version)


def experiment(api: Api, name: str) -> str:
    """The id of an experiment, made where there is none."""
    namespace = api.connection.namespace or None

    def find() -> Any:
        listed = api.pages(
            api.experiments.experiment_service_list_experiments,
            "experiments",
            filter=equals(display_name=name),
            namespace=namespace,
        )
        return next((one for one in listed if one.display_name == name), None)

    there = find()
    if there is not None:
        return str(there.experiment_id)
    body = kfp_server_api.V2beta1Experiment(display_name=name, namespace=namespace)
    return _made(api, api.experiments.experiment_service_create_experiment, body, find, "experiment_id")
