"""The stage as a Kubeflow component."""

from kfp.dsl import Artifact, Input, Metrics, Model, Output, OutputPath

from components.kfp_base import component


@component
def promote(
    *,
    step: str,
    run_id: str,
    store: str,
    tracking: dict,
    params: dict,
    teacher: Input[Model],
    adapter: Input[Model],
    scores: Input[Artifact],
    package: Output[Model],
    metrics: Output[Metrics],
    version: OutputPath(int),  # type: ignore[valid-type]
) -> str:
    """Register the model; make it the champion if it is better."""
    from pathlib import Path

    from components.kfp_base import log, run
    from components.kfp_end import gate

    done = run(
        step, params, store=store, tracking=tracking, run_id=run_id, teacher=teacher, adapter=adapter, scores=scores
    )
    log(done, package, metrics)
    alias, number = gate(done)
    Path(version).write_text(str(number))
    return alias
