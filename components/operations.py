"""Parameters of how a run is operated: where its model is registered, how it is tracked, who is told.

None of them enters a cache key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from components.fields import at_least, local, require, within


@dataclass(frozen=True, kw_only=True)
class PromoteParams:
    """Where a scored model is registered. model_name: of the registered model in MLflow."""

    model_name: str = local("splatclip")

    def __post_init__(self) -> None:
        require(
            bool(re.fullmatch(r"[\w][\w .-]*", self.model_name)),
            f"promote.model_name is {self.model_name!r}; use letters, digits, blanks, '.', '_' and '-'",
        )


@dataclass(frozen=True, kw_only=True)
class TrackingParams:
    """How runs are recorded in MLflow, in experiment splatclip/<environment>/train-eval.

    gpu_hour_price: of one GPU for an hour, in whatever currency; each step's cost is worked out from it.
    """

    environment: str = local("dev")
    gpu_hour_price: float = local(0.0)

    def __post_init__(self) -> None:
        named = re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.environment)
        require(bool(named), f"tracking.environment is {self.environment!r}; use lower-case letters, digits and '-'")
        at_least("tracking", self, 0, "gpu_hour_price")


@dataclass(frozen=True, kw_only=True)
class NotifyParams:
    """Who is told how a run ended: the webhook that SPLATCLIP_WEBHOOK_URL names, nobody without it (docs/pipeline.md).

    timeout_s: seconds for one of the three tries. allow_http: an address without TLS is allowed.
    kubeflow_url: Kubeflow Pipelines' page, as in https://kubeflow.example/pipeline, for the link to the run.
    """

    timeout_s: float = local(10.0)
    allow_http: bool = local(False)
    kubeflow_url: str = local("")

    def __post_init__(self) -> None:
        within("notify", self, 0.1, 120, "timeout_s")
        require(
            not self.kubeflow_url or bool(re.fullmatch(r"https?://[^\s?#]+", self.kubeflow_url)),
            f"notify.kubeflow_url is {self.kubeflow_url!r}; write it as in https://kubeflow.example/pipeline",
        )
