"""What of a stage's report becomes figures, curves and data sets in MLflow."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from components.manifest import Artifact, open_artifact
from components.store import open_store

if TYPE_CHECKING:
    from components.report import Report

CURVE, SCORES = "curve.csv", "scores.json"
EVALUATIONS = ("zero_shot_eval", "download_eval", "splat_fit_eval")
DIGEST = 36  # characters of a data set's digest that MLflow takes
Row = tuple[str, int, dict[str, float]]  # phase, step, values


def key(text: str) -> str:
    """A name as MLflow takes it: "@" becomes "_at_", other signs "_"."""
    return re.sub(r"[^\w/.\- :]", "_", text.replace("@", "_at_"))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested mappings, names joined by dots; texts, lists and truth values are left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[key(f"{prefix}{name}")] = float(value)
    return found


def params_of(section: Any, prefix: str = "") -> dict[str, str]:
    """A section's parameters as MLflow holds them: texts."""
    values = dataclasses.asdict(section)
    return {
        f"{prefix}{name}": text if isinstance(text := value, str) else json.dumps(value)
        for name, value in values.items()
    }


def intervals(report: Report) -> dict[str, float]:
    """The ends of the headline figures' intervals, which only scores.json has: acc1_splats_low, acc1_splats_high ..."""
    artifact = Artifact(report.manifest, open_store(report.url), report.url)
    if not artifact.has(SCORES):
        return {}
    with artifact.local(SCORES) as path:
        scores = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, float] = {}
    for row in scores["rows"]:
        for metric in scores["headline"]:
            low, high = row["figures"][metric]["interval"]
            name = key(f"{metric}_{row['name']}")
            found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def curve(report: Report, told: Collection[tuple[str, int]]) -> Iterator[Row]:
    """The points over time that nobody has been told yet: of a stage that was found done, or went on half-way.

    told: phase and step of those that were.
    """
    artifact = Artifact(report.manifest, open_store(report.url), report.url)
    if artifact.has(CURVE):
        with artifact.local(CURVE) as path, path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                phase, step = row.pop("phase"), int(row.pop("step"))
                if (phase, step) not in told:
                    yield phase, step, {name: float(text) for name, text in row.items() if text}
        return
    shards = [shard for shard in report.manifest.shards if shard.ok and "psnr_db_sum" in shard.metrics]
    done = 0
    for shard in shards[: max(0, len(shards) - len(told))]:  # shards are fitted in order, so the first are the earlier
        done += shard.ok + sum(shard.skipped.values()) + sum(shard.failed.values())
        yield report.stage, done, {"psnr_db": shard.metrics["psnr_db_sum"] / shard.ok}


def images_of(inputs: Mapping[str, str], store: str) -> tuple[str, dict[str, str] | None]:
    """sha256 of the manifest of the images that a step's data come from, and the images it reads as a data set.

    That of the training images, where the step has a model made from them; "" where there are none. Raises what
    opening the inputs raises.
    """
    root = open_store(store)
    dataset = None
    digest = ""
    if "images" in inputs:
        images = open_artifact(inputs["images"], root)
        digest = images.manifest.sha256
        splits: dict[str, int] = {}
        for shard in images.manifest.shards:
            splits[shard.split] = splits.get(shard.split, 0) + shard.ok
        dataset = {
            "name": str(images.manifest.metrics.get("dataset", "unnamed")),
            "digest": digest[:DIGEST],
            "source_type": "s3" if images.url.startswith("s3://") else "local",
            "source": json.dumps({"uri": images.url}),
            "profile": json.dumps({"sha256": digest, "pictures": splits} | _origin(images.manifest.metrics)),
        }
    model = inputs.get("adapter") or inputs.get("teacher")
    if model is not None:
        digest = open_artifact(model, root).manifest.inputs.get("images", {}).get("sha256", digest)
    return digest, dataset


def _origin(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The repository and commit that pictures are from, where they are from one."""
    return {"origin": str(metrics["origin"])} if "origin" in metrics else {}


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Without what is not a number, which no chart can show."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
