"""Several evaluation sets together: figures by set, means over sets, and their ratios to control and teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from components import scores
from components.errors import PermanentError
from components.evalsets import SETS, EvalSet
from components.manifest import Artifact
from components.scores import FloatArray
from components.zero_shot_eval.page_data import content
from components.zero_shot_eval.predictions import NAME, Predictions, draw, read_predictions
from components.zero_shot_eval.rows import DIGITS, written

FORMAT = 1
BASES = ("control", "teacher")
GROUPS = {"classification": ("classification", "multilabel"), "retrieval": ("retrieval",)}
NOTE = (
    "95 %, resamplings of each set's pictures, independent from set to set and paired between rows; "
    "other sets and other training runs are not covered"
)


@dataclass(frozen=True)
class Evaluated:
    """One set's evaluation: the set, the splats' budget, scores.json, predictions.csv, where it lies in the store."""

    one: EvalSet
    num_gaussians: int
    path: str
    scores: dict[str, Any]
    predictions: Predictions


def read_evaluated(one: EvalSet, artifact: Artifact) -> Evaluated:
    """Read what zero_shot_eval committed. Raises PermanentError where it is damaged, or of another task."""
    found = json.loads(content(artifact, "scores.json"))
    if found["task"] != one.task:
        raise PermanentError(
            f"{artifact.url}: {one.name} is a set for {one.task}, but what was found there was scored by "
            f"{found['task']}; is its dataset_type.txt missing, or another set in its place?"
        )
    budget = int(found["splats"]["num_gaussians_budget"])
    seen = read_predictions(content(artifact, NAME), f"{artifact.url}/{NAME}")
    return Evaluated(one, budget, artifact.manifest.path, found, seen)


@dataclass(frozen=True)
class _Column:
    """A metric over S sets: row -> values [S], and samples [S, num_bootstrap]; chance [S]."""

    values: dict[str, FloatArray]
    samples: dict[str, FloatArray]
    chance: FloatArray


def _figures(one: Evaluated, row: str, metric: str) -> Mapping[str, Any]:
    figures = next(found["figures"] for found in one.scores["rows"] if found["name"] == row)
    figure: Mapping[str, Any] = figures[metric]
    return figure


def _rows(found: Sequence[Evaluated]) -> list[str]:
    """The rows that all evaluations have, in order."""
    names = [[row["name"] for row in one.scores["rows"]] for one in found]
    return [name for name in names[0] if all(name in other for other in names)]


def _column(found: Sequence[tuple[Evaluated, str]], rows: Sequence[str], num_bootstrap: int, seed: int) -> _Column:
    """found: evaluations, and the metric of each."""
    order = list(SETS)
    drawn = [
        draw(metric, [(one.predictions, row) for row in rows], num_bootstrap, seed + 1 + order.index(one.one.name))
        for one, metric in found
    ]
    return _Column(
        {row: np.array([_figures(one, row, metric)["value"] for one, metric in found]) for row in rows},
        {row: np.stack([samples[i] for samples in drawn]) for i, row in enumerate(rows)},
        np.array([one.scores["chance"][metric] for one, metric in found]),
    )


def _relative(column: _Column, row: str, base: str) -> dict[str, Any]:
    """A row against a base: both readings of a relative score over sets, and the first with chance taken off.

    None where a base cannot be told from nothing (or from guessing); sets: how many ratios the mean of ratios is of.
    """
    values, samples = (part[row] for part in (column.values, column.samples))
    base_values, base_samples = (part[base] for part in (column.values, column.samples))
    kept = [i for i in range(len(values)) if base_values[i] > 0 and (base_samples[i] > 0).all()]
    of_means = [
        scores.ratio(float(values.mean()), samples.mean(0), float(base_values.mean()), base_samples.mean(0), floor)
        for floor in (0.0, float(column.chance.mean()))
    ]
    ratios = None
    if kept:
        each = samples[kept] / base_samples[kept]
        ratios = scores.estimate(float((values[kept] / base_values[kept]).mean()), each.mean(0))
    return {
        "ratio_of_means": written(of_means[0]),
        "mean_of_ratios": written(ratios),
        "mean_of_ratios_sets": len(kept),
        "chance_corrected_ratio_of_means": written(of_means[1]),
    }


def _mean(column: _Column, rows: Sequence[str]) -> dict[str, Any]:
    bases = [base for base in BASES if base in rows]
    return {
        "chance": round(float(column.chance.mean()), DIGITS),
        "rows": {
            row: written(scores.estimate(float(column.values[row].mean()), column.samples[row].mean(0))) for row in rows
        },
        "relative": {
            row: {f"to_{base}": _relative(column, row, base) for base in bases if base != row} for row in rows
        },
    }


def _set(one: Evaluated) -> dict[str, Any]:
    values = one.scores
    rows = [row["name"] for row in values["rows"]]
    return {
        "set": one.one.name,
        "task": values["task"],
        "num_pictures": values["num_pictures"],
        "left_out": values["left_out"]["counts"],
        "psnr_db_mean": values["splats"]["psnr_db_mean"],
        "settings": {row["name"]: row["setting"] for row in values["rows"]},
        "evaluation": one.path,
        "metrics": {
            metric: {
                "chance": values["chance"][metric],
                "rows": {
                    row: {key: _figures(one, row, metric)[key] for key in ("value", "interval", "ratio")}
                    for row in rows
                },
            }
            for metric in one.one.metrics
        },
    }


def summarise(found: Sequence[Evaluated], num_bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """Figures by set, and means over sets, for each number of Gaussians; the keys of summary.json's `budgets`.

    Sets of classes are averaged over the metric that each is reported by; of retrieval, each metric by itself.
    """
    budgets = []
    for budget in dict.fromkeys(one.num_gaussians for one in found):
        mine = [one for one in found if one.num_gaussians == budget]
        means: dict[str, Any] = {}
        for group, tasks in GROUPS.items():
            members = [one for one in mine if one.one.task in tasks]
            if not members:
                continue
            rows = _rows(members)
            metrics = members[0].one.metrics if group == "retrieval" else ("",)
            columns = {
                metric: _column([(one, metric or one.one.metrics[0]) for one in members], rows, num_bootstrap, seed)
                for metric in metrics
            }
            each = {metric or "score": _mean(column, rows) for metric, column in columns.items()}
            means[group] = {"sets": len(members), "metrics": each}
        budgets.append({"num_gaussians": budget, "sets": [_set(one) for one in mine], "means": means})
    return budgets
