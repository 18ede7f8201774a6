"""The stage as a Kubeflow component."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.kfp_base import component


@component
def train_teacher(
    *,
    step: str,
    run_id: str,
    store: str,
    tracking: dict,
    params: dict,
    images: Input[Dataset],
    teacher: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Import a pretrained CLIP, or train a small one."""
    from components.kfp_base import log, run

    done = run(step, params, store=store, tracking=tracking, run_id=run_id, images=images)
    log(done, teacher, metrics)
