"""The stage as a Kubeflow component."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.kfp_base import component


@component
def train_adapter(
    *,
    step: str,
    run_id: str,
    store: str,
    tracking: dict,
    params: dict,
    images: Input[Dataset],
    teacher: Input[Model],
    splats: Input[Dataset],
    adapter: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Teach the frozen CLIP to read splats."""
    from components.kfp_base import log, run

    done = run(
        step, params, store=store, tracking=tracking, run_id=run_id, images=images, teacher=teacher, splats=splats
    )
    log(done, adapter, metrics)
