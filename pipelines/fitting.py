"""Who fits the pictures in a run: one step, several side by side, or a step that has an Indexed Job do it.

All three commit the same bytes under the same key (docs/fleet.md), so the rest of the graph does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from kfp import dsl

from components.errors import UsageError
from components.fleet_params import FleetParams
from components.splat_fit.component import splat_fit, splat_fit_finalise, splat_fit_group, splat_fit_job
from pipelines.placing import LAUNCHER, Placing

STAGE = "splat_fit"  # also the name of its first step, which fits what is trained on
LONGEST_H = 24.0 * 30  # that a Job is waited for: not fleet.timeout_h, as this clock starts before the Job's


def fit(
    fleet: FleetParams,
    placing: Placing,
    step: str,
    given: Mapping[str, Any],
    earlier: Iterable[Any],
    *,
    reader: bool = False,
) -> Any:
    """The task whose outputs are the step's.

    given: the component's arguments; earlier: tasks that come first; reader: params name one, as they are compiled.
    Raises UsageError for groups on spot nodes, of which the first pod that is lost would end the run.
    """
    asked = placing.asked(STAGE)
    # of a step that fits nothing: no GPU's node; a manifest of 128,000 shards takes 1.5 GB
    light = replace(placing.asked("finish"), cpu=1, memory="4Gi", timeout_h=asked.timeout_h, retries=asked.retries)
    if reader:  # but holds the teacher, whose metric it works out
        light = replace(light, cpu=asked.cpu, memory=asked.memory, scratch=asked.scratch)
    if fleet.executor == "job":
        sections: dict[str, Any] = {"fleet": fleet, "resources": asked, "cluster": placing.cluster}
        how = {name: json.loads(json.dumps(asdict(section))) for name, section in sections.items()}
        task = splat_fit_job(step=step, image=placing.image, **how, **given)
        waits = replace(light, timeout_h=LONGEST_H)
        return placing.settle(task, step, STAGE, asked=waits, role=LAUNCHER).after(*earlier)
    if fleet.executor == "task" or step != STAGE:  # no second loop: a run of 56 tasks can outgrow etcd
        return placing.settle(splat_fit(step=step, **given), step, STAGE).after(*earlier)
    if placing.resources.splat_fit.spot and not placing.local:
        raise UsageError(
            "resources.splat_fit.spot is true and fleet.executor 'groups': Kubeflow does not replace the pods of a "
            "loop, so that the first one that is preempted ends the run; choose executor job or task, or spot false"
        )
    needed = {name: value for name, value in given.items() if name in {"store", "params", "images"}}
    at_once = 1 if placing.local else min(fleet.parallelism, fleet.groups)
    shares = [f"{number}/{fleet.groups}" for number in range(fleet.groups)]
    with dsl.ParallelFor(shares, name=f"{step}-groups".replace("_", "-"), parallelism=at_once) as share:
        group = placing.settle(splat_fit_group(step=step, share=share, **needed), f"{step}_group", STAGE)
        group.after(*earlier)
    done = splat_fit_finalise(step=step, groups=dsl.Collected(group.output), **given)
    return placing.settle(done, step, STAGE, asked=light)
