"""Where a step's pod runs and what it is given: image, resources, nodes, retries, volumes, labels, environment.

No secret is in the pipeline: a pod gets them from Secrets of its namespace, which are named here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from kfp import kubernetes

from components.cluster_params import ClusterParams, Resources, ResourcesParams, labels, placed, toleration
from components.config import Params
from components.kfp_workers import PROCESSES
from components.processes import TRAINING

# What NetworkPolicies select by, under ROLE; steps that are not listed are `notifier`: they only tell.
ROLE = "splatclip.io/role"
ROLES = {
    "download": "downloader",
    "splat_fit": "fitter",
    "train_teacher": "trainer",
    "train_adapter": "trainer",
    "zero_shot_eval": "trainer",
    "promote": "trainer",
}
NOTIFIER, LAUNCHER = "notifier", "launcher"  # the latter creates Jobs
STORE_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
)
TRACKING_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
TRACKING_ADDRESS = "MLFLOW_TRACKING_URI"
HUB_KEYS = ("HF_TOKEN",)
WEBHOOK_KEYS = ("SPLATCLIP_WEBHOOK_URL",)
FIRST_WAIT_S, FACTOR = 60, 2.0


@dataclass(frozen=True, kw_only=True)
class Placing:
    """What all tasks of a pipeline have in common.

    environment: of tracking, for the label `instance`; local: on one machine, where only the order counts.
    """

    resources: ResourcesParams
    cluster: ClusterParams
    image: str
    environment: str
    local: bool = False

    @classmethod
    def of(cls, params: Params, image: str, *, local: bool = False) -> Placing:
        """As params say."""
        return cls(
            resources=params.resources,
            cluster=params.cluster,
            image=image,
            environment=params.tracking.environment,
            local=local,
        )

    def asked(self, stage: str) -> Resources:
        """What a stage asks for, with what it needs to run on spot nodes where it may."""
        return placed(getattr(self.resources, stage), self.cluster)

    def settle(
        self, task: Any, name: str, stage: str, *, asked: Resources | None = None, role: str = "", final: bool = False
    ) -> Any:
        """Give a task of a stage all of this, and return it.

        name: the step's; stage: whose resources it asks for (`finish` for steps that only tell); asked, role: instead
        of the stage's own; final: an exit handler's, which Kubeflow does not try again.
        """
        asked = asked or self.asked(stage)
        # The store is the cache, by content: Kubeflow's own goes by the image's name and the artifacts' addresses.
        task.set_display_name(name).set_caching_options(False).set_container_image(self.image)
        if self.local:
            return task
        if "@" in self.image:
            task.set_env_variable("SPLATCLIP_IMAGE_DIGEST", self.image.partition("@")[2])
        cpu = f"{round(asked.cpu * 1000)}m"
        task.set_cpu_request(cpu).set_cpu_limit(cpu)
        task.set_memory_request(asked.memory).set_memory_limit(asked.memory)
        if asked.gpus:
            task.set_accelerator_type(asked.accelerator).set_accelerator_limit(asked.gpus)
            if stage in TRAINING and asked.gpus > 1:
                task.set_env_variable(PROCESSES, str(asked.gpus))
        if asked.retries and not final:
            self._retry(task, asked)
        kubernetes.set_timeout(task, round(3600 * asked.timeout_h))
        self._nodes(task, asked)
        _volume(task, "scratch", "/tmp", asked.scratch)  # noqa: S108 - the root file system is read-only
        if asked.shm:
            _volume(task, "shm", "/dev/shm", asked.shm, medium="Memory")  # noqa: S108
        self._environment(task, role or ROLES.get(stage, NOTIFIER))
        self._pod(task, name, role or ROLES.get(stage, NOTIFIER))
        return task

    def _retry(self, task: Any, asked: Resources) -> None:
        """Kubeflow's limit in time is of all tries together, waiting for a node included: twice what they may run."""
        longest = round(2 * 3600 * asked.timeout_h * (asked.retries + 1))
        task.set_retry(asked.retries, f"{FIRST_WAIT_S}s", FACTOR, f"{longest}s")

    def _nodes(self, task: Any, asked: Resources) -> None:
        for key, value in labels(asked.node_selector, "node_selector").items():
            kubernetes.add_node_selector(task, key, value)
        for key, text, effect in dict.fromkeys(toleration(one, "tolerations") for one in asked.tolerations):
            operator = "Exists" if text is None else "Equal"
            kubernetes.add_toleration(task, key=key, operator=operator, value=text, effect=effect or None)

    def _environment(self, task: Any, role: str) -> None:
        """Only what its role needs; each variable from one place. What is missing there the step itself names."""
        known = self.cluster
        _secret(task, known.store_secret, STORE_KEYS)
        _secret(task, known.tracking_secret, TRACKING_KEYS)
        if known.tracking_config:
            kubernetes.use_config_map_as_env(
                task, known.tracking_config, {TRACKING_ADDRESS: TRACKING_ADDRESS}, optional=True
            )
        if role == ROLES["download"]:
            _secret(task, known.hub_secret, HUB_KEYS)
        if role == NOTIFIER:
            _secret(task, known.webhook_secret, WEBHOOK_KEYS)

    def _pod(self, task: Any, name: str, role: str) -> None:
        known = self.cluster
        kubernetes.set_security_context(
            task,
            run_as_user=known.run_as_user or None,
            run_as_group=known.run_as_group or None,
            run_as_non_root=True,
        )
        if known.image_pull_policy:
            kubernetes.set_image_pull_policy(task, known.image_pull_policy)
        if known.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(known.image_pull_secrets))
        named = {
            "name": "splatclip",
            "instance": f"splatclip-{self.environment}"[:63].rstrip("-"),
            "version": version("splatclip"),
            "component": name,
            "part-of": "splatclip",
            "managed-by": "kubeflow-pipelines",
        }
        for key, value in named.items():
            kubernetes.add_pod_label(task, f"app.kubernetes.io/{key}", value)
        kubernetes.add_pod_label(task, ROLE, role)


def _secret(task: Any, name: str, keys: Iterable[str]) -> None:
    if name:
        kubernetes.use_secret_as_env(task, name, {key: key for key in keys}, optional=True)


def _volume(task: Any, name: str, path: str, size: str, medium: str | None = None) -> None:
    kubernetes.empty_dir_mount(task, volume_name=name, mount_path=path, medium=medium, size_limit=size)
