"""How two evaluations differ: in their scores, with intervals, and in what they were made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.figures import base_of
from components.scores import Estimate, FloatArray, estimate
from components.zero_shot_eval.page_data import ROLES, Run
from components.zero_shot_eval.page_origin import backends, written
from components.zero_shot_eval.predictions import draw

NORMAL = 1.959964  # standard deviations either side that hold 95 % of a mean's distribution


@dataclass(frozen=True)
class Pair:
    """Two evaluations. same_pictures: they scored the same pictures, so that each picture's outcomes form a pair."""

    a: Run
    b: Run

    @property
    def same_task(self) -> bool:
        """Whether their scores are of one kind: the same task over the same classes."""
        return all(self.a.scores[name] == self.b.scores[name] for name in ("task", "class_names"))

    @property
    def same_pictures(self) -> bool:
        """Whether they scored exactly the same pictures."""
        one, two = self.a.node("images"), self.b.node("images")
        same_set = one is not None and two is not None and one.sha256 == two.sha256
        return self.same_task and same_set and self.a.predictions.keys == self.b.predictions.keys

    @property
    def same_splats(self) -> bool:
        """Whether they read the same splats."""
        one, two = self.a.node("splats"), self.b.node("splats")
        return one is not None and two is not None and one.sha256 == two.sha256

    def caveats(self) -> list[str]:
        """What keeps the two from being compared like for like."""
        found = []
        if self.same_task and not self.same_pictures:
            found.append(
                "they scored different pictures: a difference may be the pictures' own, and its interval is not paired"
            )
        if self.same_task and self.a.scores["templates"] != self.b.scores["templates"]:
            found.append("their prompt templates differ")
        for run, name in ((self.a, "A"), (self.b, "B")):
            if base_of(run.scores) != "control":
                found.append(f"{name} has no control: its ratio is to the untouched teacher and flatters")
        return found


def _samples(pair: Pair, metric: str, rows: list[str]) -> tuple[list[FloatArray], list[FloatArray]]:
    """Bootstrap means of the rows in A and in B; the same pictures are drawn for both where they are the same."""
    count, seed = (int(pair.a.artifact.manifest.params[name]) for name in ("num_bootstrap", "seed"))
    if pair.same_pictures:
        drawn = draw(metric, [(run.predictions, row) for run in (pair.a, pair.b) for row in rows], count, seed)
        return list(drawn[: len(rows)]), list(drawn[len(rows) :])
    one, two = (
        draw(metric, [(run.predictions, row) for row in rows], count, seed + i)
        for i, run in enumerate((pair.a, pair.b))
    )
    return list(one), list(two)


def score_difference(pair: Pair, metric: str, row: str) -> Estimate:
    """A's score less B's."""
    one, two = _samples(pair, metric, [row])
    values = [_figure(run, metric, row)["value"] for run in (pair.a, pair.b)]
    return estimate(values[0] - values[1], one[0] - two[0])


def ratio_difference(pair: Pair, metric: str) -> Estimate | None:
    """A's ratio of splats to control less B's; None where either has none."""
    if any("control" not in run.row_names for run in (pair.a, pair.b)):
        return None
    ratios = [_figure(run, metric, "splats")["ratio"]["to_control"] for run in (pair.a, pair.b)]
    if None in ratios:
        return None
    one, two = _samples(pair, metric, ["splats", "control"])
    if (one[1] <= 0).any() or (two[1] <= 0).any():
        return None
    return estimate(ratios[0]["value"] - ratios[1]["value"], one[0] / one[1] - two[0] / two[1])


def mean_difference(pair: Pair, of: Callable[[Run], FloatArray]) -> Estimate:
    """A's mean over pictures less B's, with the normal interval of a mean."""
    one, two = of(pair.a).astype(np.float64), of(pair.b).astype(np.float64)
    if pair.same_pictures:
        error = float((one - two).std()) / math.sqrt(len(one))
    else:
        error = math.hypot(float(one.std()) / math.sqrt(len(one)), float(two.std()) / math.sqrt(len(two)))
    value = float(one.mean() - two.mean())
    return Estimate(value, value - NORMAL * error, value + NORMAL * error)


def outcome(found: Estimate) -> str:
    """Which is better, if that can be told."""
    if found.low == found.high == 0:
        return "the same"
    if found.low > 0:
        return "A is better"
    return "A is worse" if found.high < 0 else "cannot be told apart"


def _figure(run: Run, metric: str, row: str) -> Mapping[str, Any]:
    values = run.row(row)
    if values is None:
        raise KeyError(row)
    figure: Mapping[str, Any] = values["figures"][metric]
    return figure


def parameter_differences(pair: Pair) -> list[list[str]]:
    """Parameter, A's value, B's value, of all that both were made from."""
    found: list[list[str]] = []
    seen: set[tuple[str, str]] = set()
    for role in ROLES:
        one, two = pair.a.node(role), pair.b.node(role)
        if one is None or two is None or (one.sha256, two.sha256) in seen:
            continue
        seen.add((one.sha256, two.sha256))
        if one.manifest is None or two.manifest is None:
            continue
        left, right = ({**node.params, "version": node.version} for node in (one.manifest, two.manifest))
        left["computed by"], right["computed by"] = backends(one.manifest), backends(two.manifest)
        where = f" ({ROLES[role]})" if "." in role else ""
        for name in sorted(left.keys() | right.keys()):
            values = [written(side[name]) if name in side else "–" for side in (left, right)]
            if values[0] != values[1]:
                found.append([f"{one.manifest.stage}.{name}{where}", *values])
    return found


def output_differences(pair: Pair) -> list[list[str]]:
    """Role, A's output, B's output (or that it is the same), for all that both were made from."""
    found = []
    for role in ROLES:
        one, two = pair.a.node(role), pair.b.node(role)
        if one is None and two is None:
            continue
        same = one is not None and two is not None and one.sha256 == two.sha256
        paths = [f"{node.path}" if node is not None else "–" for node in (one, two)]
        found.append([ROLES[role], paths[0], "the same" if same else paths[1]])
    return found
