"""Components that make nothing: a champion announced, a run closed, a champion taken back."""

from kfp import dsl

from components.kfp_base import component


@component
def announce(*, version: int, run_id: str, store: str, params: dict, tracking: dict, notify: dict) -> None:
    """Tell of a new champion, once."""
    from components.kfp_end import announce

    announce(version, store=store, params=params, tracking=tracking, notify=notify, run_id=run_id)


@component
def finish(*, status: dsl.PipelineTaskFinalStatus, run_id: str, store: str, tracking: dict, notify: dict) -> None:
    """End the run in MLflow, however the steps ended, and tell of it."""
    from components.kfp_end import close

    close(
        status.state,
        status.error_message or "",
        store=store,
        tracking=tracking,
        notify=notify,
        run_id=run_id,
    )


@component
def rollback(*, run_id: str, params: dict, tracking: dict, notify: dict) -> str:
    """Make the former champion champion again, and tell of it."""
    from components.kfp_end import rollback

    return rollback(params=params, tracking=tracking, notify=notify, run_id=run_id)
