"""Where a registered version says its package lies, and how it is fetched from there.

A package in s3:// stays there. One in a folder is named by its path where this process writes to the registry's
database itself; a server takes no path of a client's, so the package is then uploaded, as artifact of a run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from components.errors import PermanentError, UsageError
from components.manifest import MANIFEST, Artifact, read_manifest
from components.registry_calls import PACKAGE, Registry
from components.store import open_store
from components.tracking_client import request_timeout

EXPERIMENT = "splatclip/packages"
FOLDER = "package"
UPLOAD_TIMEOUT_S = "600"  # for one request: a server answers an upload when all of it is stored


def package_source(registry: Registry, package: Artifact, run_id: str | None) -> tuple[str, str | None]:
    """The version's source and its run; uploads the package where it has to.

    run_id: of the run that promotes, where there is one: it then is the version's run, and takes the upload.
    """
    if package.url.startswith("s3://"):
        return package.url, run_id
    folder = Path(package.url).expanduser().resolve()
    if not registry.uri.startswith(("http://", "https://")):
        return str(folder), run_id
    run = run_id or registry.call("make a run for the package", lambda: _run(registry, package))
    for entry in package.manifest.files:
        with package.local(entry) as path:  # checked: what is registered is what was committed
            _upload(registry, run, path)
    _upload(registry, run, folder / MANIFEST)
    if run_id is None:
        registry.call("end the package's run", lambda: registry.client.set_terminated(run))
    return f"runs:/{run}/{FOLDER}", run


def _upload(registry: Registry, run_id: str, path: Path) -> None:
    def upload() -> None:
        with request_timeout(UPLOAD_TIMEOUT_S):
            registry.client.log_artifact(run_id, str(path), FOLDER)

    registry.call(f"upload {path.name}", upload)


def _run(registry: Registry, package: Artifact) -> str:
    """A run to hold the package: the one that an earlier try made, or a new one."""
    client: Any = registry.client
    sha = package.manifest.sha256
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    found = client.search_runs([experiment_id], f"tags.`{PACKAGE}` = '{sha}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    return str(client.create_run(experiment_id, tags={PACKAGE: sha}, run_name=f"package-{sha[:7]}").info.run_id)


def fetch(model_uri: str, folder: Path) -> str:
    """The prefix of a registered package: where it lies, or `folder`, filled, where it was uploaded.

    model_uri: models:/NAME@ALIAS or models:/NAME/VERSION. Raises UsageError where there is none, PermanentError where
    what lies there is not what was registered.
    """
    found = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>[0-9]+))", model_uri)
    if found is None:
        raise UsageError(f"{model_uri!r}: write models:/NAME@champion or models:/NAME/VERSION")
    registry = Registry(found["name"])
    version = registry.find(alias=found["alias"], number=found["number"])
    if version is None:
        raise UsageError(f"the registry has no {model_uri}; `splatclip promote` registers a model")
    source = str(version.source)
    if source.startswith("runs:/"):
        run_id, _, path = source.removeprefix("runs:/").partition("/")
        registry.call("download the package", lambda: registry.client.download_artifacts(run_id, path, str(folder)))
        source = str(folder / FOLDER)
    made, registered = read_manifest(open_store(source)).sha256, version.tags.get(PACKAGE)
    if made != registered:
        raise PermanentError(f"{model_uri}: {source} holds package {made}, but {registered} was registered")
    return source
