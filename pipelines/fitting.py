"""Who fits the pictures in a run: one step, several side by side, or a step that has an Indexed Job do it.

All three commit the same bytes under the same key (docs/fleet.md), so the rest of the graph does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from kfp import dsl

from components.fleet_params import FleetParams
from components.operations import Resources
from components.splat_fit.component import splat_fit, splat_fit_finalise, splat_fit_group, splat_fit_job

STAGE = "splat_fit"  # also the name of its first step, which fits what is trained on
LIGHT = Resources(cpu=1, memory="4Gi")  # of a step that fits nothing: a manifest of 128,000 shards takes 1.5 GB
Settle = Callable[[Any, str, Resources], Any]  # gives a task its name, image and resources, and returns it


def fit(
    fleet: FleetParams,
    resources: Resources,
    image: str,
    *,
    step: str,
    given: Mapping[str, Any],
    earlier: Iterable[Any],
    settle: Settle,
    one_by_one: bool = False,
) -> Any:
    """The task whose outputs are the step's. given: the component's arguments; earlier: tasks that come first."""
    if fleet.executor == "job":
        how = {"fleet": asdict(fleet), "resources": asdict(resources), "image": image}
        return settle(splat_fit_job(step=step, **how, **given), step, LIGHT).after(*earlier)
    if (
        fleet.executor == "task" or step != STAGE
    ):  # a run of 56 tasks can outgrow etcd: no second loop, for the test set
        return settle(splat_fit(step=step, **given), step, resources).after(*earlier)
    needed = {name: value for name, value in given.items() if name in {"store", "params", "images"}}
    at_once = 1 if one_by_one else min(fleet.parallelism, fleet.groups)
    shares = [f"{number}/{fleet.groups}" for number in range(fleet.groups)]
    with dsl.ParallelFor(shares, name=f"{step}-groups".replace("_", "-"), parallelism=at_once) as share:
        group = settle(splat_fit_group(step=step, share=share, **needed), f"{step}_group", resources)
        group.after(*earlier)
    done = splat_fit_finalise(step=step, groups=dsl.Collected(group.output), **given)
    return settle(done, step, LIGHT)
