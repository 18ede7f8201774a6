"""The stage as a Kubeflow component."""

from kfp.dsl import Dataset, Metrics, Output

from components.kfp_base import component


@component
def download(
    *,
    step: str,
    run_id: str,
    store: str,
    tracking: dict,
    params: dict,
    params_eval: dict,
    images: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Fetch photographs with captions into image shards."""
    from components.kfp_base import log, run

    done = run(step, params, params_eval, store=store, tracking=tracking, run_id=run_id)
    log(done, images, metrics)
