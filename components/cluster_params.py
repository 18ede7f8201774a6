"""What steps ask of a cluster, and the names by which they find in its namespace what they need.

Part of the pipeline's graph: none of it enters a cache key, and a change of it needs another compile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from components.errors import UsageError
from components.fields import at_least, local, one_of, require, within

EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
PULL_POLICIES = ("", "Always", "IfNotPresent", "Never")
_QUANTITY = re.compile(r"([0-9]+)(E|P|T|G|M|Ei|Pi|Ti|Gi|Mi|Ki)?")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_KEY = rf"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?/)?{_PART}"
_LABEL = re.compile(rf"({_KEY})=((?:{_PART})?)")
_TAINT = re.compile(rf"({_KEY})(?:=((?:{_PART})?))?(?::([A-Za-z]+))?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


class Toleration(NamedTuple):
    """Of nodes with a taint. value None: whatever the taint's value; effect "": any."""

    key: str
    value: str | None
    effect: str


def labels(pairs: tuple[str, ...], where: str) -> dict[str, str]:
    """`key=value` texts as a mapping. Raises UsageError naming `where` for what is no Kubernetes label."""
    found = {}
    for pair in pairs:
        match = _LABEL.fullmatch(pair)
        if match is None:
            raise UsageError(f"{where} has {pair!r}; write a node's label as key=value")
        found[match[1]] = match[2]
    return found


def toleration(text: str, where: str) -> Toleration:
    """A taint in kubectl's notation: `key`, `key:Effect`, `key=value:Effect`. Raises UsageError naming `where`."""
    match = _TAINT.fullmatch(text)
    if match is None or (match[3] or EFFECTS[0]) not in EFFECTS:
        raise UsageError(
            f"{where} has {text!r}; write a taint as key:Effect or key=value:Effect, as in nvidia.com/gpu:NoSchedule; "
            f"effects: {', '.join(EFFECTS)}"
        )
    return Toleration(match[1], match[2], match[3] or "")


def _quantity(name: str, value: str) -> None:
    amount = _QUANTITY.fullmatch(value)
    require(
        amount is not None and int(amount[1]) > 0,
        f"{name} is {value!r}; write a whole number above 0 and its unit, as in 4Gi or 500M",
    )


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one step's pod asks of a cluster.

    cpu: cores; memory: a Kubernetes quantity; gpus: of type accelerator; a training step starts a process for each.
    node_selector: labels that its node must have, `key=value`; tolerations: taints that it may have, `key:Effect` or
    `key=value:Effect`. spot: it may be preempted: with cluster.spot_node_selector and spot_tolerations on top.
    timeout_h: hours that one try may run; retries: how often a pod that failed is replaced, which goes on from what
    is finished. shm: size of /dev/shm, which counts as memory; empty: the container's own 64 MB. scratch: how much
    /tmp may hold.
    """

    cpu: float = local(2.0)
    memory: str = local("4Gi")
    gpus: int = local(0)
    accelerator: str = local("nvidia.com/gpu")
    node_selector: tuple[str, ...] = local(())
    tolerations: tuple[str, ...] = local(())
    spot: bool = local(False)
    timeout_h: float = local(24.0)
    retries: int = local(2)
    shm: str = local("")
    scratch: str = local("20Gi")

    def check(self, name: str) -> None:
        """UsageError, with the name that they go by, for what a cluster does not take."""
        require(self.cpu >= 0.001, f"{name}.cpu is {self.cpu}; it must be at least 0.001")
        _quantity(f"{name}.memory", self.memory)
        require(self.gpus >= 0, f"{name}.gpus is {self.gpus}; it must be at least 0")
        require(
            bool(re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[\w]([\w.-]*[\w])?", self.accelerator, re.ASCII)),
            f"{name}.accelerator is {self.accelerator!r}; write it as the cluster names it, as in nvidia.com/gpu",
        )
        labels(self.node_selector, f"{name}.node_selector")
        for text in self.tolerations:
            toleration(text, f"{name}.tolerations")
        within(name, self, 0.02, 24 * 365, "timeout_h")
        within(name, self, 0, 100, "retries")
        if self.shm:
            _quantity(f"{name}.shm", self.shm)
        _quantity(f"{name}.scratch", self.scratch)


@dataclass(frozen=True, kw_only=True)
class ResourcesParams:
    """What each step's pod asks of a cluster, by stage. A run on one machine takes what there is.

    finish: of the steps that only tell: finish, announce, rollback.
    """

    download: Resources = local(Resources())
    train_teacher: Resources = local(Resources(cpu=8, memory="32Gi", shm="1Gi"))
    splat_fit: Resources = local(Resources(cpu=8, memory="16Gi"))
    train_adapter: Resources = local(Resources(cpu=8, memory="32Gi", shm="1Gi"))
    zero_shot_eval: Resources = local(Resources(cpu=8, memory="32Gi"))
    promote: Resources = local(Resources(cpu=1, memory="2Gi", timeout_h=1))
    finish: Resources = local(Resources(cpu=0.5, memory="1Gi", timeout_h=1, retries=0, scratch="1Gi"))

    def __post_init__(self) -> None:
        for stage in fields(self):
            getattr(self, stage.name).check(f"resources.{stage.name}")


@dataclass(frozen=True, kw_only=True)
class ClusterParams:
    """Names in the cluster's namespace, and what all pods have in common. An empty name: no such thing is looked for.

    store_secret: Secret with the store's keys and address; tracking_secret: with MLflow's user, password or token;
    tracking_config: ConfigMap with its address; hub_secret: Secret with the hub's token; webhook_secret: with the
    webhook's address. None need exist: a step says what it lacks. docs/pipeline.md lists their keys.
    image_pull_policy: Always, IfNotPresent, Never; empty: Kubernetes' own choice. image_pull_secrets: of the registry.
    run_as_user, run_as_group: of the process in the pod; 0: the image's own, which must be a number other than 0.
    spot_node_selector, spot_tolerations: what a step with `spot: true` has on top of its own.
    """

    store_secret: str = local("splatclip-store")
    tracking_config: str = local("splatclip-tracking")
    tracking_secret: str = local("splatclip-tracking")
    hub_secret: str = local("splatclip-hub")
    webhook_secret: str = local("splatclip-webhook")
    image_pull_policy: str = local("")
    image_pull_secrets: tuple[str, ...] = local(())
    run_as_user: int = local(0)
    run_as_group: int = local(0)
    spot_node_selector: tuple[str, ...] = local(())
    spot_tolerations: tuple[str, ...] = local(())

    def __post_init__(self) -> None:
        named = ("store_secret", "tracking_config", "tracking_secret", "hub_secret", "webhook_secret")
        for name in named:
            _object_name(f"cluster.{name}", getattr(self, name), empty=True)
        for given in self.image_pull_secrets:
            _object_name("cluster.image_pull_secrets", given, empty=False)
        one_of("cluster.image_pull_policy", self.image_pull_policy, PULL_POLICIES)
        at_least("cluster", self, 0, "run_as_user", "run_as_group")
        labels(self.spot_node_selector, "cluster.spot_node_selector")
        for text in self.spot_tolerations:
            toleration(text, "cluster.spot_tolerations")


def _object_name(name: str, value: str, *, empty: bool) -> None:
    fits = bool(_NAME.fullmatch(value)) and len(value) <= 253
    require(fits or (empty and not value), f"{name} is {value!r}; give the name of a Kubernetes object")


def placed(asked: Resources, cluster: ClusterParams) -> Resources:
    """With what it needs to run on spot nodes, where it may."""
    if not asked.spot:
        return asked
    return replace(
        asked,
        spot=False,
        node_selector=(*asked.node_selector, *cluster.spot_node_selector),
        tolerations=(*asked.tolerations, *cluster.spot_tolerations),
    )


def check_spot(resources: ResourcesParams, cluster: ClusterParams) -> None:
    """Raise UsageError where a step asks for spot nodes and nothing says which they are."""
    asking = [stage.name for stage in fields(resources) if getattr(resources, stage.name).spot]
    known = cluster.spot_node_selector or cluster.spot_tolerations
    require(
        not asking or bool(known),
        f"resources.{asking[0] if asking else ''}.spot is true, and nothing says which nodes are spot nodes; give "
        "cluster.spot_node_selector or cluster.spot_tolerations (docs/pipeline.md lists the clouds' labels)",
    )
