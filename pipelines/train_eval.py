"""The pipeline: photographs, a teacher, splats, an adapter, scores, a registered model."""

import importlib
from typing import Any

from kfp import dsl

from components import FLOW, STAGES
from components.config import SECTIONS
from components.fleet_params import FleetParams
from components.kfp_base import FINISH, IMAGE, component, sections_of
from components.operations import Resources, ResourcesParams
from pipelines import fitting

NAME = "train-eval"
SUMMARY = "Photographs -> 2D Gaussian splats -> tokens -> embeddings -> scores."
COMPONENTS = {name: getattr(importlib.import_module(f"components.{name}.component"), name) for name in STAGES}


@component
def finish(*, status: dsl.PipelineTaskFinalStatus, run_id: str, store: str, tracking: dict) -> None:
    """End the run in MLflow, however the steps ended."""
    from components.kfp_base import close

    close(status.state, store=store, tracking=tracking, run_id=run_id)


def build(
    resources: ResourcesParams, image: str = IMAGE, *, fleet: FleetParams | None = None, one_by_one: bool = False
) -> Any:
    """The pipeline, and what each step asks of the cluster; its arguments are the store and sections of params.

    one_by_one: no two steps at once, in the flow's order.
    """
    fleet = fleet or FleetParams()

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
    ) -> None:
        sections = {name: value for name, value in locals().items() if name in SECTIONS}
        common = {"run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "store": store, "tracking": tracking}

        def settle(task: Any, name: str, asked: Resources) -> Any:
            # The store is the cache, by content: Kubeflow's own goes by the image's name and the artifacts' addresses.
            task.set_display_name(name).set_caching_options(False).set_container_image(image)
            if "@" in image:
                task.set_env_variable("SPLATCLIP_IMAGE_DIGEST", image.partition("@")[2])
            cpu = f"{round(asked.cpu * 1000)}m"
            task.set_cpu_request(cpu).set_cpu_limit(cpu)
            task.set_memory_request(asked.memory).set_memory_limit(asked.memory)
            if asked.gpus:
                task.set_accelerator_type(asked.accelerator).set_accelerator_limit(asked.gpus)
            return task

        with dsl.ExitHandler(settle(finish(**common), FINISH, Resources(cpu=0.5, memory="1Gi"))):
            tasks: dict[str, Any] = {}
            for step in FLOW:
                given = {item: tasks[source].outputs[item] for item, source in step.inputs.items()}
                given |= {argument: sections[name] for argument, name in sections_of(step).items()}
                earlier = [*tasks.values()][-1:] if one_by_one else [tasks[name] for name in step.after]
                if step.stage == fitting.STAGE:
                    tasks[step.name] = fitting.fit(
                        fleet, resources.splat_fit, image, step=step.name, given=common | given, earlier=earlier,
                        settle=settle, one_by_one=one_by_one,
                    )  # fmt: skip
                    continue
                task = COMPONENTS[step.stage](step=step.name, **common, **given)
                tasks[step.name] = settle(task, step.name, getattr(resources, step.stage)).after(*earlier)

    return dsl.pipeline(train_eval, name=NAME, description=SUMMARY)
