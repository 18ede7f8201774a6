"""How the fitting of a set is shared out in a cluster. Enters no key: whoever fits a shard, the bytes are the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

from components.fields import at_least, local, one_of, require, within

EXECUTORS = ("task", "groups", "job")
_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"  # of Kubernetes' objects, as labels may hold it too


@dataclass(frozen=True, kw_only=True)
class FleetParams:
    """Who fits the pictures of a pipeline's run (docs/fleet.md).

    executor: "task", one step of the pipeline; "groups", that many steps side by side, where Jobs may not be created;
    "job", an Indexed Job that one step creates and waits for. shards_per_index: of the Job; parallelism: indexes or
    steps at once. backoff: times that an index or a local worker is tried again after it failed for now. max_failed:
    the share of indexes that may fail for good before the Job gives up. queue: of Kueue, "" as the template says.
    namespace: of the Job, "" for that of the pod or the kubeconfig. template: the ConfigMap that holds the Job's
    template as job.yaml, "" for the built-in one. image: of the Job's pods, "" for the pipeline's where that has a
    digest, else the template's. timeout_h: hours after which a Job is ended, 0 for never: of one try, the next makes
    another Job for the rest. ttl_h: hours that an ended Job is kept if nobody deletes it.
    """

    executor: str = local("task")
    groups: int = local(8)
    shards_per_index: int = local(16)
    parallelism: int = local(32)
    backoff: int = local(6)
    max_failed: float = local(0.01)
    queue: str = local("")
    namespace: str = local("")
    template: str = local("splatclip-fit-job")
    image: str = local("")
    timeout_h: float = local(0.0)
    ttl_h: float = local(24.0)

    def __post_init__(self) -> None:
        one_of("fleet.executor", self.executor, EXECUTORS)
        within("fleet", self, 1, 32, "groups")  # each is a node of the run, whose object etcd limits
        within("fleet", self, 1, 100_000, "shards_per_index")
        within("fleet", self, 1, 10_000, "parallelism")
        within("fleet", self, 0, 100, "backoff")
        within("fleet", self, 0, 1, "max_failed")
        at_least("fleet", self, 0, "timeout_h")
        at_least("fleet", self, 1, "ttl_h")  # a launcher that is away for a moment finds it
        for name in ("queue", "namespace", "template"):
            value = getattr(self, name)
            require(
                not value or bool(re.fullmatch(_NAME, value)),
                f"fleet.{name} is {value!r}; use at most 63 lower-case letters, digits and '-', or leave it empty",
            )
