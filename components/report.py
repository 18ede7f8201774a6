"""What a stage hands back to whoever called it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of one stage.

    stage: the stage's name; url: the prefix that holds its output; manifest_sha256: of that prefix's manifest.json;
    cached: the work had been committed before and nothing was done now; metrics: as in the manifest;
    seconds: wall time of this call; speeds: figures of this call that differ from run to run (images_per_s ...);
    facts: what this call did outside its prefix, by name, for people (the alias a model was given ...).
    """

    stage: str
    url: str
    manifest_sha256: str
    cached: bool
    metrics: dict[str, Any]
    seconds: float
    speeds: dict[str, float]
    manifest: Manifest
    facts: dict[str, str] = field(default_factory=dict)
