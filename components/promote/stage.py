"""Stage `promote`: put a scored model into one package, register it, and make it the champion if it is better."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from components import tracking
from components.config import semantic
from components.errors import PermanentError, UsageError
from components.manifest import Artifact, Commit, FileEntry, open_artifact
from components.operations import PromoteParams, TrackingParams
from components.package import ADAPTER_FILES, CARD, SCORES, TEACHER_FILES, read_scores
from components.promote.card import model_card
from components.promote.evaluation import description, version_tags
from components.provenance import NONE
from components.report import Report
from components.signals import Stop, stop_on_sigterm
from components.store import Store, open_store

STAGE = "promote"
VERSION = 1
MAKERS = {"teacher": "train_teacher", "adapter": "train_adapter", "scores": "zero_shot_eval"}
HEADLINE = "splats"
RUN_WAIT_S = 15.0  # for the tracker to have made the run that the version is linked to


def run(params: PromoteParams, *, teacher: str, adapter: str, scores: str, store: str) -> Report:
    """Commit a package of adapter, teacher, scores and model card; then register it and settle who is champion.

    teacher, adapter, scores: outputs of train_teacher, train_adapter and zero_shot_eval. A package that was committed
    before is registered all the same, unless it is already: that is one version. With SPLATCLIP_TRACKING=off nothing
    is registered. Report.facts says model, version, alias and why.
    Raises UsageError where an input is another stage's output, PermanentError where inputs do not belong together or
    MLflow refuses, TransientError where it does not answer; Interrupted on SIGTERM or Ctrl-C.
    """
    started = time.monotonic()
    root = open_store(store)
    given = {"teacher": teacher, "adapter": adapter, "scores": scores}
    inputs = {name: open_artifact(ref, root) for name, ref in given.items()}
    check_inputs(inputs)
    commit = Commit(root, stage=STAGE, version=VERSION, params=semantic(params), inputs=inputs)
    found = commit.finished()
    package = found or _commit(commit, inputs, root)
    with stop_on_sigterm() as stop:
        facts = _register(params, package, inputs, stop)
    return Report(
        stage=STAGE,
        url=package.url,
        manifest_sha256=package.manifest.sha256,
        cached=found is not None,
        metrics=package.manifest.metrics,
        seconds=time.monotonic() - started,
        speeds={},
        manifest=package.manifest,
        facts=facts,
    )


def _register(params: PromoteParams, package: Artifact, inputs: Mapping[str, Artifact], stop: Stop) -> dict[str, str]:
    """Report.facts."""
    if tracking.run_info(TrackingParams()) is None:
        return {"alias": "none", "verdict": "not registered: tracking is switched off"}
    from components.registry import register

    adapter = inputs["adapter"].manifest
    tags = {
        **tracking.current_tags(),
        "data.hash": adapter.inputs.get("images", {}).get("sha256", NONE),
        "params.hash": adapter.params_hash,
        **version_tags(package, inputs["scores"], read_scores(package)),
    }
    outcome = register(
        params.model_name,
        package,
        tags,
        description(tags),
        run_id=lambda: tracking.current_run_id(RUN_WAIT_S),
        stop=stop,
    )
    return {
        "model": outcome.model,
        "version": str(outcome.version),
        "alias": outcome.alias,
        "verdict": outcome.verdict,
    }


def check_inputs(inputs: Mapping[str, Artifact]) -> None:
    """Refuse what does not belong together: scores of another adapter, an adapter of another teacher."""
    for name, artifact in inputs.items():
        if artifact.manifest.stage != MAKERS[name]:
            raise UsageError(
                f"{name}: {artifact.url} was made by {artifact.manifest.stage}; give {MAKERS[name]}'s output"
            )
    for made, source in (("scores", "teacher"), ("scores", "adapter"), ("adapter", "teacher")):
        used = inputs[made].manifest.inputs.get(source, {}).get("sha256", "none")
        have = inputs[source].manifest.sha256
        if used != have:
            raise PermanentError(
                f"{made}: {inputs[made].url} was made from {source} {used}, but the {source} given, "
                f"{inputs[source].url}, is {have}; give the {source} it was made from, or make it again"
            )


def _commit(commit: Commit, inputs: Mapping[str, Artifact], root: Store) -> Artifact:
    scores = read_scores(inputs["scores"])
    files = [_copy(commit, inputs["teacher"], name) for name in TEACHER_FILES]
    files += [_copy(commit, inputs["adapter"], name) for name in ADAPTER_FILES]
    files.append(_copy(commit, inputs["scores"], SCORES))
    card = model_card(inputs, _upstream(inputs, root), scores, files)
    files.append(commit.put_file(CARD, card))
    metrics = {name: value for name, value in inputs["scores"].manifest.metrics.items() if f"_{HEADLINE}" in name}
    size = sum(entry.bytes for entry in files)
    return commit.finalise(shards=[], files=files, metrics={**metrics, "package_bytes": size})


def _copy(commit: Commit, source: Artifact, name: str) -> FileEntry:
    with source.local(name) as path:
        return commit.put_file(name, path)


def _upstream(inputs: Mapping[str, Artifact], root: Store) -> dict[str, Artifact]:
    """What the inputs were made from, by manifest path; without what is no longer in a store."""
    found: dict[str, Artifact] = {}
    waiting = [(artifact, root) for artifact in inputs.values()]
    while waiting:
        artifact, place = waiting.pop()
        own = open_store(artifact.url.rstrip("/").removesuffix(f"/{artifact.manifest.path}"))
        for entry in artifact.manifest.inputs.values():
            for store in (own, place):
                if entry["path"] in found:
                    break
                with contextlib.suppress(PermanentError):
                    made = open_artifact(store.sub(entry["path"]).url, store)
                    if made.manifest.sha256 == entry["sha256"]:
                        found[entry["path"]] = made
                        waiting.append((made, store))
    return found
