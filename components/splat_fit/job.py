"""The Indexed Job that fits a set: its body, from a template and what it has to do. Knows nothing of a cluster.

An index takes one of the groups of shards that were pending when the Job was made; which, its arguments say. The Job's
name comes from the output's key and its store, so that a launcher that starts anew finds it.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from components import yaml_text
from components.cluster_params import ClusterParams, Resources, labels, toleration
from components.config import SplatFitParams
from components.errors import PermanentError, UsageError
from components.fleet_params import FleetParams
from components.manifest import sha256_bytes
from components.redaction import redacted
from components.splat_fit.work import Share, read_numbers

CONTAINER = "splat-fit"
TEMPLATE_KEY = "job.yaml"  # in the ConfigMap
QUEUE = "kueue.x-k8s.io/queue-name"
MIN_PARALLELISM = "kueue.x-k8s.io/job-min-parallelism"
GPUS = "nvidia.com/"  # how the names begin by which a pod asks for a GPU with CUDA, or a slice of one
MANY_INDEXES, MOST_FAILED = 100_000, 10_000  # beyond so many completions Kubernetes wants a limit, of at most so many
# Of the same shape as in k8s/base, where the template of a cluster comes from, but under the namespace's own account:
# without an account that it names, no pod could be created.
BUILT_IN = """
apiVersion: batch/v1
kind: Job
metadata: {}
spec:
  podReplacementPolicy: Failed
  podFailurePolicy:
    rules:
    - action: Ignore  # drained or preempted: what the index has committed stays
      onPodConditions:
      - {type: DisruptionTarget, status: "True"}
    - action: FailIndex  # bad input: another try would end the same way
      onExitCodes: {containerName: splat-fit, operator: In, values: [42]}
    - action: FailJob  # wrong usage: every index is called the same way
      onExitCodes: {containerName: splat-fit, operator: In, values: [2]}
  template:
    metadata:
      labels:
        sidecar.istio.io/inject: "false"  # a proxy would outlive the work, and policies know no mesh
        splatclip.io/role: fitter
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 60
      securityContext:
        runAsNonRoot: true
        seccompProfile: {type: RuntimeDefault}
      containers:
      - name: splat-fit
        image: splatclip-python:dev
        command: [splatclip]
        terminationMessagePolicy: FallbackToLogsOnError  # so that the launcher can say why
        env:
        - {name: HOME, value: /tmp}
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities: {drop: [ALL]}
        volumeMounts:
        - {name: scratch, mountPath: /tmp}
"""


def job_name(output: str, store: str) -> str:
    """The Job's name. output: <stage>/<key>; store: the store's address, as one key may be made in two stores."""
    return f"{CONTAINER}-{output.rpartition('/')[2]}-{sha256_bytes(store.encode())[:6]}"


def built_in(resources: Resources, cluster: ClusterParams | None = None) -> dict[str, Any]:
    """The template where the cluster has none: its pods ask for what params say, and go where those send them.

    cluster: what they have in common with a pipeline's steps; their defaults where it is not given.
    """
    known = cluster or ClusterParams()
    template: dict[str, Any] = yaml_text.parse(BUILT_IN, "the built-in template")
    asked = {
        "cpu": f"{round(resources.cpu * 1000)}m",
        "memory": resources.memory,
        "ephemeral-storage": resources.scratch,
    }
    gpus = {resources.accelerator: str(resources.gpus)} if resources.gpus else {}
    fitter, pod = container(template, "the built-in template"), template["spec"]["template"]["spec"]
    fitter["resources"] = {"requests": asked | gpus, "limits": asked | gpus}
    if known.store_secret:
        fitter["envFrom"] = [{"secretRef": {"name": known.store_secret, "optional": True}}]
    if known.image_pull_policy:
        fitter["imagePullPolicy"] = known.image_pull_policy
    if known.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in known.image_pull_secrets]
    numbers = {"runAsUser": known.run_as_user, "runAsGroup": known.run_as_group}
    pod["securityContext"] |= {name: number for name, number in numbers.items() if number}
    pod["volumes"] = [{"name": "scratch", "emptyDir": {"sizeLimit": resources.scratch}}]
    pod["nodeSelector"] = labels(resources.node_selector, "resources.splat_fit.node_selector")
    pod["tolerations"] = [_toleration(text) for text in resources.tolerations]
    return template


def _toleration(text: str) -> dict[str, str]:
    key, value, effect = toleration(text, "resources.splat_fit.tolerations")
    named = {"key": key, "operator": "Exists"} if value is None else {"key": key, "operator": "Equal", "value": value}
    return named | ({"effect": effect} if effect else {})


def read_template(text: str, where: str) -> dict[str, Any]:
    """A template that somebody wrote; PermanentError where it is no Job with our container."""
    try:
        template = yaml_text.parse(text, where)
    except UsageError as error:
        raise PermanentError(str(error)) from None
    if not isinstance(template, dict) or (template.get("apiVersion"), template.get("kind")) != ("batch/v1", "Job"):
        raise PermanentError(f"{where}: expected a Job of batch/v1")
    container(template, where)
    return template


def container(body: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The container that fits, of a Job; PermanentError where there is none."""
    try:
        containers = body["spec"]["template"]["spec"]["containers"]
        found: dict[str, Any] = next(one for one in containers if one["name"] == CONTAINER)
    except (KeyError, TypeError, StopIteration):
        raise PermanentError(
            f"{where}: expected a container named {CONTAINER!r} at spec.template.spec.containers"
        ) from None
    return found


def asks_for_gpu(body: Mapping[str, Any]) -> bool:
    """Whether the pods of a Job get a GPU."""
    asked = container(body, "the Job").get("resources") or {}
    amounts = [(name, amount) for kind in ("requests", "limits") for name, amount in (asked.get(kind) or {}).items()]
    return any(name.startswith(GPUS) and str(amount) != "0" for name, amount in amounts)


def arguments(params: SplatFitParams, share: Share, *, images: str, store: str, output: str) -> list[str]:
    """What the container runs: the command on the groups of a share, of which each index takes one."""
    given = json.dumps({"splat_fit": asdict(params)}, ensure_ascii=False)
    words = ["splat-fit", "--params", given, "--images", images, "--store", store, "--no-tracking"]
    if redacted(" ".join(words)) != " ".join(words):
        raise UsageError(
            "the parameters or addresses hold a password or a signature, which everyone who may read Jobs could see; "
            "give addresses without one, and the secret in the template's environment"
        )
    return [*words, "--output", output, "--group", str(share)]


def job_body(
    template: Mapping[str, Any], fleet: FleetParams, share: Share, *, name: str, args: Sequence[str], image: str = ""
) -> dict[str, Any]:
    """The Job: an index for each of the share's groups. What params say goes before what the template says.

    image: the pipeline's, taken where it has a digest and params name none.
    """
    body = copy.deepcopy(dict(template))
    number = len(share.chosen)
    about = {
        "app.kubernetes.io/name": "splatclip",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/version": version("splatclip"),
        "app.kubernetes.io/component": "splat_fit",
        "app.kubernetes.io/part-of": "splatclip",
        "app.kubernetes.io/managed-by": "splatclip",
    }
    labels = dict((body.get("metadata") or {}).get("labels") or {}) | about
    notes = dict((body.get("metadata") or {}).get("annotations") or {})
    if fleet.queue:
        labels[QUEUE] = fleet.queue
    at_once = min(fleet.parallelism, number)
    least = str(notes.get(MIN_PARALLELISM, ""))
    if least.isdecimal() and int(least) >= at_once:  # which Kueue refuses
        del notes[MIN_PARALLELISM]
    body["metadata"] = {"name": name, "labels": labels, "annotations": notes}
    body.pop("status", None)
    spec = body["spec"]
    spec |= {
        "completionMode": "Indexed",
        "completions": number,
        "parallelism": at_once,
        "backoffLimitPerIndex": fleet.backoff,
        "maxFailedIndexes": min(math.ceil(fleet.max_failed * number), MOST_FAILED),
        "ttlSecondsAfterFinished": round(fleet.ttl_h * 3600),
    }
    if fleet.queue:
        spec["suspend"] = True  # Kueue lets it go
    if fleet.timeout_h:
        spec["activeDeadlineSeconds"] = max(1, round(fleet.timeout_h * 3600))
    pods = spec["template"]
    pods["metadata"] = dict(pods.get("metadata") or {})
    pods["metadata"]["labels"] = dict(pods["metadata"].get("labels") or {}) | about
    fitter = container(body, "the template")
    fitter["args"] = list(args)
    if chosen := fleet.image or (image if "@" in image else ""):
        fitter["image"] = chosen
    return body


def share_of(args: Sequence[str]) -> Share | None:
    """The groups that a Job's indexes take, by its arguments; None where they are no such Job's."""
    words = list(args)
    if "--group" not in words[:-1]:
        return None
    listed, _, total = words[words.index("--group") + 1].partition("/")
    try:
        return Share(int(total), tuple(read_numbers(listed)))
    except ValueError:
        return None


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What a Job that exists does otherwise than the one that is wanted: its image, and arguments but the groups."""
    one, other = (container(body, "the Job") for body in (there, wanted))
    found = []
    if one.get("image") != other.get("image"):
        found.append(f"image {one.get('image')} there, {other.get('image')} wanted")
    words = [[*body.get("args", [])] for body in (one, other)]
    for args in words:
        if "--group" in args:
            del args[args.index("--group") :]
    for before, after in zip(*words, strict=False):
        if before != after:
            found.append(f"{before} there, {after} wanted")
    if len(words[0]) != len(words[1]):
        found.append(f"{len(words[0])} arguments there, {len(words[1])} wanted")
    return found
