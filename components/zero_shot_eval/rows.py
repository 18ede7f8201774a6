"""From per-picture hits of several models to the rows of scores.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components import scores
from components.class_scores import (
    average_precision,
    average_precision_chance,
    bootstrap_average_precision,
    bootstrap_class_recall,
)
from components.evalsets import ACC1, AVERAGE_PRECISION, CLASS_RECALL
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
    n: pictures; hits: metric -> value a picture [n], of figures that are means over pictures; by_class [C]: recall, NaN
    for a class without pictures, or average precision, None in retrieval; predictions [n]: the first guess, None in
    retrieval; class_scores [n, C]: of a multilabel set alone; text_ranks [n], image_ranks [captions]: as
    scores.Retrieval has them, of retrieval alone.
    """

    name: str
    setting: str
    n: int
    metrics: dict[str, float]
    hits: dict[str, FloatArray]
    by_class: FloatArray | None = None
    predictions: scores.IntArray | None = None
    class_scores: FloatArray | None = None
    text_ranks: scores.IntArray | None = None
    image_ranks: scores.IntArray | None = None


def classification_row(name: str, setting: str, logits: Any, targets: Any) -> Row:
    """Score logits [n, C] against class numbers [n]."""
    result = scores.classify(logits, targets)
    metrics = {ACC1: result.acc1, "acc5": result.acc5, CLASS_RECALL: result.mean_per_class_recall}
    hits = {ACC1: result.hits1.astype(np.float64), "acc5": result.hits5.astype(np.float64)}
    recall = scores.per_class_recall(result.confusion)
    return Row(name, setting, len(result.predictions), metrics, hits, recall, result.predictions)


def classification_chance(num_classes: int) -> dict[str, float]:
    """What guessing scores: 1 / C, min(5, C) / C, and 1 / C for each class."""
    return {ACC1: 1.0 / num_classes, "acc5": min(5, num_classes) / num_classes, CLASS_RECALL: 1.0 / num_classes}


def multilabel_row(name: str, setting: str, logits: Any, truth: Any) -> Row:
    """Score logits [n, C] against truth [n, C]: whether each picture shows each class."""
    values = np.asarray(logits, dtype=np.float64)
    precision = average_precision(values, truth)
    metrics = {AVERAGE_PRECISION: float(precision.mean())}
    return Row(name, setting, len(values), metrics, {}, precision, values.argmax(1).astype(np.int64), values)


def multilabel_chance(truth: Any) -> dict[str, float]:
    """What a random order scores."""
    return {AVERAGE_PRECISION: float(average_precision_chance(truth).mean())}


def retrieval_row(name: str, setting: str, similarity: Any, text_image: Any) -> Row:
    """Score similarities [T, I] of captions and pictures, text_image [T]."""
    result = scores.retrieve(similarity, text_image)
    metrics, hits = {}, {}
    for k in RECALL_AT:
        metrics[f"image_retrieval_recall@{k}"] = result.image_recall(k)
        metrics[f"text_retrieval_recall@{k}"] = result.text_recall(k)
        hits[f"image_retrieval_recall@{k}"] = result.image_hits(k)[0]
        hits[f"text_retrieval_recall@{k}"] = (result.text_ranks < k).astype(np.float64)
    n = len(result.text_ranks)
    return Row(name, setting, n, metrics, hits, text_ranks=result.text_ranks, image_ranks=result.image_ranks)


def retrieval_chance(text_image: Any) -> dict[str, float]:
    """What a random order scores."""
    images = {f"image_retrieval_recall@{k}": scores.image_chance(text_image, k) for k in RECALL_AT}
    return images | {f"text_retrieval_recall@{k}": scores.text_chance(text_image, k) for k in RECALL_AT}


def hits_of(metric: str) -> str:
    """The metric whose hits a mean over pictures or classes is made of."""
    return ACC1 if metric == CLASS_RECALL else metric


def resample(
    metric: str,
    values: Sequence[FloatArray | None],
    num_bootstrap: int,
    seed: int,
    *,
    weights: FloatArray | None = None,
    truth: NDArray[np.int64] | NDArray[np.bool_] | None = None,
) -> FloatArray:
    """The metric of each row over pictures drawn with replacement, the same ones for all rows: [rows, num_bootstrap].

    values: of each row the hits [n] under `hits_of(metric)`, or scores [n, C] for mean average precision; truth: as
    `compare` takes it.
    """
    given = [one for one in values if one is not None]
    if metric in (AVERAGE_PRECISION, CLASS_RECALL):
        if truth is None:
            raise ValueError(f"{metric} is resampled by class; what is true of the pictures was not given")
        if metric == AVERAGE_PRECISION:
            return bootstrap_average_precision(given, truth, num_bootstrap, seed)
        return bootstrap_class_recall(np.stack(given), truth, num_bootstrap, seed)
    return scores.bootstrap_means(np.stack(given), num_bootstrap, seed, weights)


def _number(value: float) -> float:
    return round(float(value), DIGITS)


def written(found: Estimate | None) -> dict[str, Any] | None:
    """An estimate as the files have it; None where there is none."""
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
            ratios[kind][f"to_{base}"] = written(figure)
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
    *,
    truth: NDArray[np.int64] | NDArray[np.bool_] | None = None,
) -> list[dict[str, Any]]:
    """The rows of scores.json, each figure with its interval and its ratios to the other rows in BASES.

    weights: metric -> what a picture weighs in the mean [n] (its captions, in image retrieval); absent: 1. truth: class
    numbers [n] or, of a multilabel set, whether a picture shows a class [n, C]; None in retrieval.
    A ratio is None where its base is not above chance (or 0) in every resampling.
    """
    bases = {row.name: row for base in BASES for row in rows if row.name == base}
    samples: dict[str, dict[str, FloatArray]] = {}
    for metric in chance:
        of_metric = hits_of(metric)
        means = resample(
            metric,
            [row.hits.get(of_metric, row.class_scores) for row in rows],
            num_bootstrap,
            seed,
            weights=weights.get(metric),
            truth=truth,
        )
        samples[metric] = {row.name: means[i] for i, row in enumerate(rows)}
    return [
        {
            "name": row.name,
            "label": LABELS[row.name],
            "setting": row.setting,
            "n": row.n,
            "metrics": {name: _number(value) for name, value in row.metrics.items()},
            "figures": {metric: _figure(metric, row, bases, samples[metric], chance[metric]) for metric in samples},
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
