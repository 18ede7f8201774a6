"""The stage as a Kubeflow component."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.kfp_base import component


@component
def zero_shot_eval(
    *,
    step: str,
    run_id: str,
    store: str,
    tracking: dict,
    params: dict,
    images: Input[Dataset],
    teacher: Input[Model],
    splats: Input[Dataset],
    adapter: Input[Model],
    scores: Output[Artifact],
    metrics: Output[Metrics],
    page: Output[HTML],
) -> None:
    """Score teacher, fair control and splats on the same photographs."""
    from components.kfp_base import log, run

    done = run(
        step,
        params,
        store=store,
        tracking=tracking,
        run_id=run_id,
        images=images,
        teacher=teacher,
        splats=splats,
        adapter=adapter,
    )
    log(done, scores, metrics, page)
