"""From per-picture hits of several models to the rows of scores.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from components import scores
from components.scores import Estimate, FloatArray

BASES = ("control", "control_stage1", "teacher")  # what ratios are taken to, where there
LABELS = {
    "teacher": "RGB teacher, untouched",
    "control": "RGB control",
    "control_stage1": "RGB control, stage 1's steps too",
    "rendered": "splats rendered, untouched teacher",
    "splats": "splats",
}
RECALL_AT = (1, 5)
DIGITS = 6


@dataclass(frozen=True)
class Row:
    """One model on the n scored pictures.

    name: a key of LABELS; setting: in which sense it was tested (see wording.py); metrics: what CLIP_benchmark reports;
    hits: metric -> value a picture [n]; class_recall [C], NaN for a class without pictures, None in retrieval;
    predictions [n], None in retrieval; text_ranks [n], image_ranks [captions]: as scores.Retrieval has them, None in
    classification.
    """

    name: str
    setting: str
    metrics: dict[str, float]
    hits: dict[str, FloatArray]
    class_recall: FloatArray | None = None
    predictions: scores.IntArray | None = None
    text_ranks: scores.IntArray | None = None
    image_ranks: scores.IntArray | None = None


def classification_row(name: str, setting: str, logits: Any, targets: Any) -> Row:
    """Score logits [n, C] against class numbers [n]."""
    result = scores.classify(logits, targets)
    metrics = {"acc1": result.acc1, "acc5": result.acc5, "mean_per_class_recall": result.mean_per_class_recall}
    hits = {"acc1": result.hits1.astype(np.float64), "acc5": result.hits5.astype(np.float64)}
    return Row(name, setting, metrics, hits, scores.per_class_recall(result.confusion), result.predictions)


def classification_chance(num_classes: int) -> dict[str, float]:
    """What guessing scores: 1 / C, and min(5, C) / C."""
    return {"acc1": 1.0 / num_classes, "acc5": min(5, num_classes) / num_classes}


def retrieval_row(name: str, setting: str, similarity: Any, text_image: Any) -> Row:
    """Score similarities [T, I] of captions and pictures, text_image [T]."""
    result = scores.retrieve(similarity, text_image)
    metrics, hits = {}, {}
    for k in RECALL_AT:
        metrics[f"image_retrieval_recall@{k}"] = result.image_recall(k)
        metrics[f"text_retrieval_recall@{k}"] = result.text_recall(k)
        hits[f"image_retrieval_recall@{k}"] = result.image_hits(k)[0]
        hits[f"text_retrieval_recall@{k}"] = (result.text_ranks < k).astype(np.float64)
    return Row(name, setting, metrics, hits, text_ranks=result.text_ranks, image_ranks=result.image_ranks)


def retrieval_chance(text_image: Any) -> dict[str, float]:
    """What a random order scores."""
    images = {f"image_retrieval_recall@{k}": scores.image_chance(text_image, k) for k in RECALL_AT}
    return images | {f"text_retrieval_recall@{k}": scores.text_chance(text_image, k) for k in RECALL_AT}


def _number(value: float) -> float:
    return round(float(value), DIGITS)


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"value": _number(found.value), "interval": [_number(found.low), _number(found.high)]}


def _figure(
    metric: str, row: Row, bases: Mapping[str, Row], samples: Mapping[str, FloatArray], chance: float
) -> dict[str, Any]:
    value = row.metrics[metric]
    found = scores.estimate(value, samples[row.name])
    ratios: dict[str, Any] = {"ratio": {}, "chance_corrected_ratio": {}}
    for base, other in bases.items():
        if base == row.name:
            continue
        for kind, floor in (("ratio", 0.0), ("chance_corrected_ratio", chance)):
            figure = scores.ratio(value, samples[row.name], other.metrics[metric], samples[base], floor)
            ratios[kind][f"to_{base}"] = _estimate(figure)
    corrected = _number(scores.chance_corrected(value, chance)) if chance < 1 else None
    return {
        "value": _number(value),
        "interval": [_number(found.low), _number(found.high)],
        "chance_corrected": corrected,
        **ratios,
    }


def compare(
    rows: Sequence[Row],
    chance: Mapping[str, float],
    weights: Mapping[str, FloatArray],
    num_bootstrap: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The rows of scores.json, each figure with its interval and its ratios to the other rows in BASES.

    weights: metric -> what a picture weighs in the mean [n] (its captions, in image retrieval); absent: 1.
    A ratio is None where its base is not above chance (or 0) in every resampling.
    """
    bases = {row.name: row for base in BASES for row in rows if row.name == base}
    samples: dict[str, dict[str, FloatArray]] = {}
    for metric in rows[0].hits:
        hits = np.stack([row.hits[metric] for row in rows])
        means = scores.bootstrap_means(hits, num_bootstrap, seed, weights.get(metric))
        samples[metric] = {row.name: means[i] for i, row in enumerate(rows)}
    return [
        {
            "name": row.name,
            "label": LABELS[row.name],
            "setting": row.setting,
            "n": len(next(iter(row.hits.values()))),
            "metrics": {name: _number(value) for name, value in row.metrics.items()},
            "figures": {metric: _figure(metric, row, bases, samples[metric], chance[metric]) for metric in row.hits},
        }
        for row in rows
    ]


def flat_metrics(rows: Sequence[Mapping[str, Any]], headline: Sequence[str]) -> dict[str, float]:
    """The main figures in one level, for `dvc metrics`: acc1_splats, acc1_splats_ratio_to_control ..."""
    found: dict[str, float] = {}
    for row in rows:
        for metric in headline:
            figure = row["figures"][metric]
            name = f"{metric}_{row['name']}"
            found[name] = figure["value"]
            for kind in ("ratio", "chance_corrected_ratio"):
                ratio = figure[kind].get("to_control")
                if row["name"] == "splats" and ratio is not None:
                    found[f"{name}_{kind}_to_control"] = ratio["value"]
                    found[f"{name}_{kind}_to_control_low"], found[f"{name}_{kind}_to_control_high"] = ratio["interval"]
    return found
