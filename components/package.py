"""A model package: the splat reader, its teacher and their scores in one folder, as `promote` commits it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.errors import PermanentError, UsageError
from components.manifest import Artifact, open_artifact
from components.store import open_store

if TYPE_CHECKING:
    from components.adapter import SplatClip
    from components.openclip import LoadedTeacher

MAKER = "promote"
CARD, SCORES = "README.md", "scores.json"
ADAPTER_FILES = ("adapter.json", "adapter.safetensors")
TEACHER_FILES = ("config.json", "model.safetensors")
SCORES_FORMAT = 1


@dataclass(frozen=True)
class Package:
    """A model that can be used.

    model: encodes splats and texts; teacher: its tokenizer, and the CLIP that reads photographs; scores: scores.json;
    class_names, templates: what it was scored with, empty after retrieval.
    """

    model: SplatClip
    teacher: LoadedTeacher
    scores: dict[str, Any]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


def load_package(ref: str, store: str = ".", device: str = "cpu") -> Package:
    """Load a package for use, in evaluation mode.

    ref: its folder (in a store, or downloaded from MLflow) or s3:// prefix, or its manifest, looked up under `store`.
    Raises UsageError where it is no package, PermanentError where it is damaged.
    """
    from components.adapter import load_adapter
    from components.openclip import load_teacher

    artifact = open_artifact(ref, open_store(store))
    if artifact.manifest.stage != MAKER:
        raise UsageError(f"{ref} was made by {artifact.manifest.stage}; give {MAKER}'s output, a model package")
    teacher = load_teacher(artifact, device)
    scores = read_scores(artifact)
    return Package(
        model=load_adapter(artifact, teacher, device),
        teacher=teacher,
        scores=scores,
        class_names=tuple(scores["class_names"]),
        templates=tuple(scores["templates"]),
    )


def read_scores(artifact: Artifact) -> dict[str, Any]:
    """scores.json of a package or an evaluation; PermanentError if it is none or of another format."""
    where = f"{artifact.url}/{SCORES}"
    with artifact.local(SCORES) as path:
        try:
            scores = json.loads(path.read_bytes())
        except ValueError as error:
            raise PermanentError(f"{where} is not JSON: {error}; run zero-shot-eval again") from None
    if not isinstance(scores, dict) or scores.get("format") != SCORES_FORMAT:
        raise PermanentError(f"{where} is not of format {SCORES_FORMAT}; run zero-shot-eval again with this version")
    return scores


def splats_row(scores: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The row of the splat reader; PermanentError if there is none."""
    found = next((row for row in scores["rows"] if row["name"] == "splats"), None)
    if found is None:
        raise PermanentError(f"{where}: {SCORES} has no row 'splats'; run zero-shot-eval again")
    row: Mapping[str, Any] = found
    return row
