"""What a version is registered with: its score, and a hash of all that makes two scores comparable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.manifest import Artifact, canonical, sha256_bytes
from components.package import splats_row
from components.registry_calls import EVALUATION, HIGH, LOW, METRIC, PACKAGE, SCORE


def evaluation_hash(scored: Artifact, scores: Mapping[str, Any], metric: str) -> str:
    """Equal exactly where two models were scored on the same pictures, in the same task, with the same prompts.

    scored: zero_shot_eval's output; scores: its scores.json.
    """
    parts = {
        "images": scored.manifest.inputs["images"]["sha256"],
        "metric": metric,
        **{name: scores[name] for name in ("split", "task", "class_names", "templates", "num_pictures")},
    }
    return sha256_bytes(canonical(parts))


def version_tags(package: Artifact, scored: Artifact, scores: Mapping[str, Any]) -> dict[str, str]:
    """Tags of the version: the splat reader's first headline figure, the evaluation, the package."""
    metric = scores["headline"][0]
    row = splats_row(scores, scored.url)
    figure = row["figures"][metric]
    return {
        METRIC: metric,
        SCORE: repr(float(figure["value"])),
        LOW: repr(float(figure["interval"][0])),
        HIGH: repr(float(figure["interval"][1])),
        EVALUATION: evaluation_hash(scored, scores, metric),
        PACKAGE: package.manifest.sha256,
        "package.url": package.url if "://" in package.url else str(Path(package.url).expanduser().resolve()),
        "eval.dataset": str(scores["dataset"]),
        "eval.split": str(scores["split"]),
        "eval.pictures": str(scores["num_pictures"]),
        "eval.setting": str(row["setting"]),
        "model.teacher": str(scores["model"]["name"]),
    }


def description(tags: Mapping[str, str]) -> str:
    """A line for the registry's page."""
    low, high = float(tags[LOW]), float(tags[HIGH])
    return (
        f"{tags[METRIC]} of splats {float(tags[SCORE]):.4f} [{low:.4f}, {high:.4f}] on {tags['eval.pictures']} "
        f"pictures of {tags['eval.dataset']}, split {tags['eval.split']} ({tags['eval.setting']}). "
        "The package's README.md is its model card."
    )
