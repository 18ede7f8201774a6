"""The pipeline that takes a champion back: what `splatclip promote --rollback` does, from where Kubeflow runs."""

from typing import Any

from kfp import dsl

from components.config import Params
from components.kfp_base import FINISH, IMAGE
from pipelines.ends import rollback
from pipelines.placing import Placing

NAME = "rollback"
SUMMARY = "The former champion is champion again."
SECTIONS = ("promote", "tracking", "notify")  # its arguments


def build(params: Params, image: str = IMAGE, *, local: bool = False) -> Any:
    """The pipeline; its arguments are sections of params. local: for this machine, without what a cluster needs."""
    placing = Placing.of(params, image, local=local)

    def undo(promote: dict[str, Any], tracking: dict[str, Any], notify: dict[str, Any]) -> None:
        task = rollback(run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, params=promote, tracking=tracking, notify=notify)
        placing.settle(task, NAME, FINISH)

    return dsl.pipeline(undo, name=NAME, description=SUMMARY)
