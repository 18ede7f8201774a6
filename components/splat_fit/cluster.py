"""Jobs of a Kubernetes cluster: created, watched, deleted; what fails for now is tried again, the rest is said.

Needed rights, in the Job's namespace: jobs (create, get, list, watch, delete), configmaps (get, of the template), pods
(get, list) and events (list), only to say why a pod does not start or failed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from components.errors import PermanentError, TransientError, UsageError

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TRIES, FIRST_WAIT_S, LONGEST_WAIT_S = 8, 1.0, 30.0  # some two minutes: a control plane that restarts
ANSWER_S = 30.0  # that the API has for an answer
MOST_SAID = 500  # letters of a pod's last words
GONE_S = 120.0  # that a deleted Job has to be gone
T = TypeVar("T")


class Cluster:
    """The Jobs of one namespace. namespace: "" for that of the pod, or of the kubeconfig's context.

    Raises UsageError where neither leads to a cluster, or the kubeconfig switches checking certificates off.
    """

    def __init__(self, namespace: str = "") -> None:
        settings = client.Configuration()
        settings.retries = False  # tried again here, where it is counted
        file = os.environ.get("KUBECONFIG") or None  # the client itself looks when it is imported
        inside = file is None and bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
        try:
            if inside:
                config.load_incluster_config(client_configuration=settings)
                found = NAMESPACE_FILE.read_text(encoding="utf-8").strip() if not namespace else ""
            else:
                config.load_kube_config(file, client_configuration=settings, persist_config=False)
                found = config.list_kube_config_contexts(file)[1]["context"].get("namespace", "")
        except (ConfigException, OSError) as error:
            where = "this pod's service account" if inside else "the kubeconfig"
            raise UsageError(
                f"no way to a cluster: {where}: {error}; run this in a pod whose service account may create Jobs, "
                "or name a kubeconfig in KUBECONFIG"
            ) from None
        if not settings.verify_ssl:
            raise UsageError(
                "the kubeconfig says insecure-skip-tls-verify, so anybody could answer in the cluster's place; give "
                "the cluster's certificate-authority instead"
            )
        self.namespace = namespace or found or "default"
        api = client.ApiClient(settings)
        self._jobs, self._core = client.BatchV1Api(api), client.CoreV1Api(api)

    def _call(self, what: str, call: Callable[[], T], *, missing: bool) -> T | None:
        """The answer; None for 404 where something may be missing. what: the verb and the resource, for errors."""
        last = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S))
            try:
                return call()
            except ApiException as error:
                last = f"{error.status} {_message(error)}"
                if error.status == 404 and missing:
                    return None
                if error.status not in {0, 408, 429, 500, 502, 503, 504}:
                    raise self._refused(what, error) from None
            except (HTTPError, OSError) as error:
                last = f"{type(error).__name__}: {error}"
        raise TransientError(f"Kubernetes, {what}: {TRIES} tries failed, the last with: {last}; try again later")

    def _refused(self, what: str, error: ApiException) -> Exception:
        text = f"Kubernetes, {what} in namespace {self.namespace}: {error.status} {_message(error)}"
        if error.status == 401:
            return PermanentError(f"{text}; the cluster does not accept these credentials: log in anew, or look at the "
                                  "pod's service account and its token")  # fmt: skip
        if error.status == 403 and "exceeded quota" in text:  # 403 is also what admission says
            return TransientError(f"{text}; delete Jobs that have ended there, or have the quota raised, and try again")
        if error.status == 403 and "is being terminated" in text:
            return PermanentError(f"{text}; this namespace is about to be gone: name another, fleet.namespace")
        if error.status == 403:
            return PermanentError(
                f"{text}; grant the account this right: a Role with {what}, as the role splatclip-launcher has it "
                "(docs/fleet.md)"
            )
        if error.status == 409:
            return Exists(text)
        return PermanentError(f"{text}; look at the template and the fleet section of params")

    def _json(self, what: str, call: Callable[..., Any], *args: Any, missing: bool = False, **more: Any) -> Any:
        """The answer as JSON has it: the client's classes refuse what newer clusters send."""

        def ask() -> Any:
            response = call(*args, **more, _preload_content=False, _request_timeout=ANSWER_S)
            return json.loads(response.data)

        return self._call(what, ask, missing=missing)

    def job(self, name: str) -> dict[str, Any] | None:
        """A Job, or None."""
        found: dict[str, Any] | None = self._json(
            "get jobs", self._jobs.read_namespaced_job, name, self.namespace, missing=True
        )
        return found

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create a Job; Exists where one of that name is there, as it is when the answer to a first try was lost."""
        made: dict[str, Any] = self._json("create jobs", self._jobs.create_namespaced_job, self.namespace, dict(body))
        return made

    def delete(self, name: str, uid: str, *, wait: bool = True) -> None:
        """Delete a Job and its pods. uid: that very one, and no later one of its name; wait: until it is gone."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        with suppress(Exists):  # another one by now
            self._json(
                "delete jobs", self._jobs.delete_namespaced_job, name, self.namespace, body=options, missing=True
            )
        until = time.monotonic() + GONE_S
        while wait and (there := self.job(name)) is not None and there["metadata"]["uid"] == uid:
            if time.monotonic() > until:
                raise TransientError(
                    f"Kubernetes: Job {name} was deleted {GONE_S:.0f} s ago and is still there, with finalizers "
                    f"{there['metadata'].get('finalizers', [])}; try again later"
                )
            time.sleep(0.5)

    def changes(self, job: Mapping[str, Any], seconds: float) -> Iterator[dict[str, Any] | None]:
        """What becomes of a Job within a time, each time that it changes; None once it is deleted.

        Ends early where the connection breaks or the API has forgotten what came before (410): read the Job again.
        """
        about = job["metadata"]
        try:
            response = self._jobs.list_namespaced_job(
                self.namespace,
                watch=True,
                field_selector=f"metadata.name={about['name']}",
                resource_version=about["resourceVersion"],
                timeout_seconds=max(1, round(seconds)),
                _preload_content=False,
                _request_timeout=(ANSWER_S, seconds + ANSWER_S),
            )
            with closing(response):
                for line in _lines(response):
                    event = json.loads(line)
                    if event["type"] == "DELETED":
                        yield None
                    elif event["type"] in {"ADDED", "MODIFIED"}:
                        yield event["object"]
                    elif event["type"] == "ERROR":
                        return
        except ApiException as error:
            if error.status in {401, 403}:
                raise self._refused("watch jobs", error) from None
        except (HTTPError, OSError, ValueError, KeyError):  # cut off, perhaps in the middle of a line
            return

    def template(self, name: str, key: str) -> str | None:
        """A text of a ConfigMap; None where there is no such ConfigMap, PermanentError where it lacks the key."""
        read = self._core.read_namespaced_config_map
        found = self._json("get configmaps", read, name, self.namespace, missing=True)
        if found is None:
            return None
        text = (found.get("data") or {}).get(key)
        if text is None:
            raise PermanentError(f"ConfigMap {name} in namespace {self.namespace} holds no {key}")
        return str(text)

    def complaints(self, job: str, most: int = 3) -> list[str]:
        """What pods of a Job say that do not run or that failed; nothing where the right to list pods is missing."""
        listed, of_job = self._core.list_namespaced_pod, f"batch.kubernetes.io/job-name={job}"
        try:
            pods = self._json("list pods", listed, self.namespace, label_selector=of_job, limit=100)["items"]
        except (PermanentError, TransientError):
            return []
        return sorted({text for pod in pods for text in _complaints(pod)})[:most]

    def why_idle(self, job: Mapping[str, Any]) -> list[str]:
        """What keeps a Job from running that is not suspended, in words; what its pods say, where it has some."""
        name = job["metadata"]["name"]
        said = self.complaints(name)
        if (job.get("status") or {}).get("active"):
            return said
        # Where admission refuses the pods, there is none that could say so: the Job's controller tells it in events.
        of_job = f"involvedObject.uid={job['metadata']['uid']},reason=FailedCreate"
        listed = self._core.list_namespaced_event
        try:
            events = self._json("list events", listed, self.namespace, field_selector=of_job, limit=100)["items"]
        except (PermanentError, TransientError):
            events = []
        if events:
            last = max(events, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""))
            # each try has another pod's name, which would make it another message
            text = re.sub(rf"{re.escape(name)}-[a-z0-9-]+", f"{name}-*", str(last.get("message", "")))
            return [f"no pod could be created: {text.rpartition('similar events): ')[2]}"]
        return said or [
            f"no pod could be created, or none runs; see: kubectl describe job {name} --namespace {self.namespace}"
        ]


class Exists(PermanentError):
    """There is a Job of that name."""


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream(None, decode_content=False):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason or error.body or "no reason given")


def _complaints(pod: Mapping[str, Any]) -> Iterator[str]:
    status = pod.get("status") or {}
    index = (pod["metadata"].get("annotations") or {}).get("batch.kubernetes.io/job-completion-index", "?")
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield f"a pod is not scheduled: {condition.get('message') or condition.get('reason')}"
    for one in status.get("containerStatuses") or []:
        state = one.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        if waiting.get("reason") not in {None, "ContainerCreating", "PodInitializing"}:
            yield f"a pod waits: {waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
        if ended.get("exitCode"):
            last = str(ended.get("message") or "").strip().rpartition("\n")[2].removeprefix("splatclip splat-fit: ")
            yield f"index {index}: exit {ended['exitCode']}, {last[:MOST_SAID] or ended.get('reason', '')}".rstrip(", ")
