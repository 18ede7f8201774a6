"""The pipeline: photographs, a teacher, splats, an adapter, scores, a registered model."""

import importlib
from typing import Any

from kfp import dsl

from components import FLOW, STAGES
from components.config import SECTIONS, Params
from components.kfp_base import ANNOUNCE, FINISH, IMAGE, sections_of
from pipelines import fitting
from pipelines.ends import announce, finish
from pipelines.placing import Placing

NAME = "train-eval"
SUMMARY = "Photographs -> 2D Gaussian splats -> tokens -> embeddings -> scores."
COMPONENTS = {name: getattr(importlib.import_module(f"components.{name}.component"), name) for name in STAGES}
PROMOTION = FLOW[-1].name


def build(params: Params, image: str = IMAGE, *, one_by_one: bool = False) -> Any:
    """The pipeline, and what each step asks of the cluster; its arguments are the store and sections of params.

    one_by_one: for this machine: no two steps at once, in the flow's order, none tried again from outside.
    """
    placing = Placing.of(params, image, local=one_by_one)

    def train_eval(  # noqa: PLR0917 - KFP reads the arguments here
        store: str,
        download: dict[str, Any],
        download_eval: dict[str, Any],
        train_teacher: dict[str, Any],
        splat_fit: dict[str, Any],
        train_adapter: dict[str, Any],
        zero_shot_eval: dict[str, Any],
        promote: dict[str, Any],
        tracking: dict[str, Any],
        notify: dict[str, Any],
        git_sha: str = "",  # of the submission; steps record that of the image they run on
    ) -> None:
        sections = {name: value for name, value in locals().items() if name in SECTIONS}
        common = {"run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "store": store, "tracking": tracking}
        last = placing.settle(finish(notify=notify, **common), FINISH, FINISH, final=True)

        with dsl.ExitHandler(last):
            tasks: dict[str, Any] = {}
            for step in FLOW:
                given = {item: tasks[source].outputs[item] for item, source in step.inputs.items()}
                given |= {argument: sections[name] for argument, name in sections_of(step).items()}
                earlier = [*tasks.values()][-1:] if one_by_one else [tasks[name] for name in step.after]
                if step.stage == fitting.STAGE:
                    reader = bool(params.splat_fit.reader)
                    tasks[step.name] = fitting.fit(
                        params.fleet, placing, step.name, common | given, earlier, reader=reader
                    )
                    continue
                task = COMPONENTS[step.stage](step=step.name, **common, **given)
                tasks[step.name] = placing.settle(task, step.name, step.stage).after(*earlier)
            gate = tasks[PROMOTION].outputs  # "Output" is what it returns: kfp.local finds no other in conditions
            with dsl.If(gate["Output"] == "champion", name="is-champion"):
                told = announce(version=gate["version"], params=promote, notify=notify, **common)
                placing.settle(told, ANNOUNCE, FINISH)

    return dsl.pipeline(train_eval, name=NAME, description=SUMMARY)
