"""The stage as a Kubeflow component, and as those that share it out (pipelines/fitting.py)."""

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


@component
def splat_fit_job(
    *,
    step: str,
    run_id: str,
    store: str,
    tracking: dict,
    params: dict,
    fleet: dict,
    resources: dict,
    cluster: dict,
    image: str,
    images: Input[Dataset],
    splats: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Have an Indexed Job fit 2D Gaussians to every photograph, and wait for it."""
    from components.kfp_base import log, run
    from components.splat_fit.ways import in_job

    work = in_job(fleet, resources, cluster, image)
    done = run(step, params, store=store, tracking=tracking, run_id=run_id, work=work, images=images)
    log(done, splats, metrics)


@component
def splat_fit_group(*, step: str, store: str, params: dict, share: str, images: Input[Dataset]) -> str:
    """Fit 2D Gaussians to a group of the photographs."""
    from components.kfp_base import run_share
    from components.splat_fit.ways import fit_share

    return run_share(step, share, lambda: fit_share(params, share, store=store, images=images.path))


@component
def splat_fit_finalise(
    *,
    step: str,
    run_id: str,
    store: str,
    tracking: dict,
    params: dict,
    groups: list,
    images: Input[Dataset],
    splats: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Write the manifest of photographs whose groups are all fitted."""
    from components.kfp_base import log, run
    from components.splat_fit.stage import finalise

    done = run(step, params, store=store, tracking=tracking, run_id=run_id, work=finalise, images=images)
    log(done, splats, metrics)
