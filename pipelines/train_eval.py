"""The pipeline: photographs, a teacher, splats, an adapter, scores, a registered model."""

import importlib
from typing import Any

from kfp import dsl

from components import FLOW, STAGES
from components.kfp_base import FINISH, IMAGE, component
from components.operations import Resources, ResourcesParams

NAME = "train-eval"
SUMMARY = "Photographs -> 2D Gaussian splats -> tokens -> embeddings -> scores."
COMPONENTS = {name: getattr(importlib.import_module(f"components.{name}.component"), name) for name in STAGES}
STAGE_OF = {step.name: step.stage for step in FLOW}


@component
def finish(*, status: dsl.PipelineTaskFinalStatus, run_id: str, store: str, tracking: dict) -> None:
    """End the run in MLflow, however the steps ended."""
    from components.kfp_base import close

    close(status.state, store=store, tracking=tracking, run_id=run_id)


def build(resources: ResourcesParams, image: str = IMAGE, *, one_by_one: bool = False) -> Any:
    """The pipeline, and what each step asks of the cluster; its arguments are the store and sections of params.

    one_by_one: no two steps at once, in the order below.
    """

    def train_eval(  # noqa: PLR0917 - KFP calls it so
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
        earlier: list[Any] = []
        common = {"run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "store": store, "tracking": tracking}

        def step(name: str, params: dict[str, Any], *after: Any, **inputs: Any) -> Any:
            """A step of FLOW; each input is the task that makes it, under the name that its output has there."""
            given = {item: task.outputs[item] for item, task in inputs.items()}
            task = COMPONENTS[STAGE_OF[name]](step=name, params=params, **common, **given)
            settle(task, name, getattr(resources, STAGE_OF[name])).after(*after, *(earlier[-1:] if one_by_one else ()))
            earlier.append(task)
            return task

        def settle(task: Any, name: str, asked: Resources) -> Any:
            # The store is the cache, by content: Kubeflow's own goes by the image's name and the artifacts' addresses.
            task.set_display_name(name).set_caching_options(False).set_container_image(image)
            if "@" in image:
                task.set_env_variable("SPLATCLIP_IMAGE_DIGEST", image.partition("@")[2])
            cpu = f"{asked.cpu:g}"
            task.set_cpu_request(cpu).set_cpu_limit(cpu)
            task.set_memory_request(asked.memory).set_memory_limit(asked.memory)
            if asked.gpus:
                task.set_accelerator_type(asked.accelerator).set_accelerator_limit(asked.gpus)
            return task

        with dsl.ExitHandler(settle(finish(**common), FINISH, Resources(cpu=0.5, memory="1Gi"))):
            images = step("download", download)
            images_eval = step("download_eval", download_eval, images)
            teacher = step("train_teacher", train_teacher, images=images)
            splats = step("splat_fit", splat_fit, images=images)
            splats_eval = step("splat_fit_eval", splat_fit, splats, images=images_eval)
            adapter = step("train_adapter", train_adapter, images=images, teacher=teacher, splats=splats)
            scores = step(
                "zero_shot_eval",
                zero_shot_eval,
                images=images_eval,
                teacher=teacher,
                splats=splats_eval,
                adapter=adapter,
            )
            step("promote", promote, teacher=teacher, adapter=adapter, scores=scores)

    return dsl.pipeline(train_eval, name=NAME, description=SUMMARY)
