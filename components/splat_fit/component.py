"""The stage as a Kubeflow component."""

from kfp.dsl import Dataset, Input, Metrics, Output

from components.kfp_base import component


@component
def splat_fit(
    *,
    step: str,
    run_id: str,
    store: str,
    tracking: dict,
    params: dict,
    images: Input[Dataset],
    splats: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Fit 2D Gaussians to every photograph."""
    from components.kfp_base import log, run

    done = run(step, params, store=store, tracking=tracking, run_id=run_id, images=images)
    log(done, splats, metrics)
