"""Parameters of how a run is operated: where its model is registered, how it is tracked, what it asks of a cluster.

None of them enters a cache key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from components.fields import at_least, local, require


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
class Resources:
    """What one step asks of a cluster. cpu: cores; memory: a Kubernetes quantity; gpus: of type accelerator."""

    cpu: float = local(2.0)
    memory: str = local("4Gi")
    gpus: int = local(0)
    accelerator: str = local("nvidia.com/gpu")

    def check(self, name: str) -> None:
        """UsageError, with the name that they go by, for what a cluster does not take."""
        require(self.cpu >= 0.001, f"{name}.cpu is {self.cpu}; it must be at least 0.001")
        amount = re.fullmatch(r"([0-9]+)(E|P|T|G|M|Ei|Pi|Ti|Gi|Mi|Ki)?", self.memory)
        require(
            amount is not None and int(amount[1]) > 0,
            f"{name}.memory is {self.memory!r}; write a whole number above 0 and its unit, as in 4Gi or 500M",
        )
        require(self.gpus >= 0, f"{name}.gpus is {self.gpus}; it must be at least 0")
        require(
            bool(re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[\w]([\w.-]*[\w])?", self.accelerator, re.ASCII)),
            f"{name}.accelerator is {self.accelerator!r}; write it as the cluster names it, as in nvidia.com/gpu",
        )


@dataclass(frozen=True, kw_only=True)
class ResourcesParams:
    """What each step's container asks of a cluster, by stage. A run on one machine takes what there is."""

    download: Resources = local(Resources())
    train_teacher: Resources = local(Resources(cpu=8, memory="32Gi"))
    splat_fit: Resources = local(Resources(cpu=8, memory="16Gi"))
    train_adapter: Resources = local(Resources(cpu=8, memory="32Gi"))
    zero_shot_eval: Resources = local(Resources(cpu=8, memory="32Gi"))
    promote: Resources = local(Resources(cpu=1, memory="2Gi"))

    def __post_init__(self) -> None:
        for stage in fields(self):
            getattr(self, stage.name).check(f"resources.{stage.name}")
