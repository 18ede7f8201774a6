"""The logs of a run's pods, through the Kubernetes API: the Kubeflow SDK has none."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from components.errors import PermanentError
from pipelines.connection import Connection, kube_configuration
from pipelines.pod_log import Seen, lines

LABEL = "pipeline/runid"
NODE = "workflows.argoproj.io/node-name"
CONTAINER = "main"
CONNECT_S, QUIET_S = 10.0, 60.0  # a step that says nothing for so long is connected to anew
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 10.0
DRAIN_S = 60.0  # for what is left of the logs when the run has ended
_STUCK = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError"}

_TRY = re.compile(r"\((\d+)\)(?=\.|$)")  # of a node's name; an iteration's has a colon in it

Tell = Callable[[str, str], None]


class PodLogs:
    """Follows the logs of a run's steps, each in a thread. tell(step, line): what they say; note: what else."""

    def __init__(
        self,
        connection: Connection,
        run_id: str,
        names: Mapping[str, str],
        tell: Tell,
        note: Callable[[str], None],
        *,
        only: str = "",
        follow: bool = True,
    ) -> None:
        """only: one step's name; follow: False to read what is there and end.

        Raises PermanentError where there is no access to a cluster, UsageError where the kubeconfig is not safe.
        """
        settings = kube_configuration(connection.context)
        settings.retries = False
        self._core = client.CoreV1Api(client.ApiClient(settings))
        self._namespace, self._selector = connection.pods, f"{LABEL}={run_id}"
        self._names, self._tell, self._note, self._only, self._follow = names, tell, note, only, follow
        self._readers: dict[str, _Reader] = {}
        self._told: set[str] = set()
        self.refused = ""

    def update(self) -> None:
        """Look for pods, and read what is new of them. What does not work is said, and tried again at the next call.

        Raises BrokenPipeError where nobody listens to what is told any more.
        """
        self._heard()
        if self.refused:
            return
        try:
            pods = self._pods()
        except ApiException as error:
            if error.status in (401, 403):
                self.refused = (
                    f"pods in namespace {self._namespace} may not be listed (HTTP {error.status}); ask for a role with "
                    "get, list on pods and pods/log"
                )
                self._once(f"no logs: {self.refused}")
            else:
                self._once(f"no logs now: the cluster's API answers HTTP {error.status}; trying again")
            return
        except HTTPError as error:
            self._once(f"no logs now: no answer from the cluster's API ({type(error).__name__}); trying again")
            return
        for pod in pods:
            self._see(pod)

    def _pods(self) -> list[Any]:
        found, more = [], None
        while True:
            page = self._core.list_namespaced_pod(
                self._namespace,
                label_selector=self._selector,
                limit=200,
                _request_timeout=(CONNECT_S, 30),
                **({"_continue": more} if more else {}),
            )
            found += page.items
            more = page.metadata._continue
            if not more:
                return found

    def _see(self, pod: Any) -> None:
        name = pod.metadata.name
        step, own = self._step(pod)
        if not step:
            return
        state = _main(pod)
        if self._only and step != self._only:  # how it failed counts for the exit code, and only that
            if self._follow and pod.status.phase == "Failed" and state is not None and state.terminated is not None:
                self._begin(pod, step, lambda *_: None, lambda _: None)
            return
        waiting = state.waiting if state else None
        if waiting is not None and waiting.reason in _STUCK:
            self._once(f"{step}: its pod {name} cannot start: {waiting.reason}: {waiting.message or ''}")
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled" and condition.status == "False" and condition.reason == "Unschedulable":
                self._once(f"{step}: its pod {name} has no place: {condition.message}")
        begun = state is not None and (state.running is not None or state.terminated is not None)
        if own and pod.status.phase != "Failed":  # Kubeflow's driver: of interest only where it is what failed
            return
        if begun:
            self._begin(pod, step, self._tell, self._note)

    def _begin(self, pod: Any, step: str, tell: Tell, note: Callable[[str], None]) -> None:
        name = pod.metadata.name
        if name not in self._readers:
            reader = _Reader(self._core, self._namespace, name, step, tell, note, follow=self._follow)
            reader.node = pod.metadata.annotations[NODE]
            self._readers[name] = reader
            reader.thread.start()

    def _step(self, pod: Any) -> tuple[str, bool]:
        """Which step a pod is of ("" for none: pods that steps have made), and whether it is Kubeflow's driver."""
        path = (pod.metadata.annotations or {}).get(NODE, "").split(".")[1:]
        path = [re.sub(r"\(\d+(:[^)]*)?\)$", "", part) for part in path]
        if path and path[-1] == "executor":
            path.pop()
        if not path:
            return "", False
        last = path[-1].removesuffix("-driver")
        return self._names.get(last, last), last != path[-1]

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._note(text)

    def finish(self) -> None:
        """Read the logs to their ends, for a while."""
        self.update()
        end = time.monotonic() + DRAIN_S
        for reader in self._readers.values():
            reader.thread.join(max(0.0, end - time.monotonic()))
            self._heard()
            if reader.thread.is_alive():
                self._once(f"{reader.step}: the end of its log did not come in {DRAIN_S:.0f} s")
        self.stop()

    def _heard(self) -> None:
        if any(reader.unheard for reader in self._readers.values()):
            raise BrokenPipeError

    def stop(self) -> None:
        """Read no further."""
        for reader in self._readers.values():
            reader.stopped.set()

    def exit_codes(self) -> dict[tuple[str, str], int]:
        """The exit codes of what failed, as far as known, by step and Argo's node; a node's last try counts."""
        last: dict[tuple[str, str], tuple[list[int], int]] = {}
        for reader in self._readers.values():
            node = (reader.step, _TRY.sub("", reader.node))
            tries = [int(number) for number in _TRY.findall(reader.node)]
            if node not in last or tries > last[node][0]:
                last[node] = (tries, reader.code)
        return {node: code for node, (_, code) in last.items() if code}


def _main(pod: Any) -> Any:
    """The state of the container that does a step's work."""
    return next((one.state for one in pod.status.container_statuses or [] if one.name == CONTAINER), None)


class _Reader:
    def __init__(  # noqa: PLR0917
        self, core: Any, namespace: str, pod: str, step: str, tell: Tell, note: Callable[[str], None], *, follow: bool
    ) -> None:
        self._core, self._namespace, self._pod, self.step = core, namespace, pod, step
        self._tell, self._note, self._follow = tell, note, follow
        self.stopped = threading.Event()
        self.code = 0
        self.node, self.unheard = "", False
        self._seen = Seen()
        self.thread = threading.Thread(target=self._run, name=f"log of {pod}", daemon=True)

    def _run(self) -> None:
        wait = BACKOFF_S
        while not self.stopped.is_set():
            ended = False
            try:
                ended = self._ended()
                # a log read after the container's end is whole
                if self._read(follow=self._follow and not ended) and (ended or not self._follow):
                    return
                wait = BACKOFF_S
            except ApiException as error:
                if error.status == 404:
                    self._note(f"{self.step}: its pod {self._pod} is gone, and its log with it")
                    return
                if error.status in (401, 403):
                    self._note(f"{self.step}: its log may not be read (HTTP {error.status}); ask for get on pods/log")
                    return
                if ended and error.status == 400:  # evicted, say, before it wrote anything
                    self._note(f"{self.step}: its pod {self._pod} has no log")
                    return
                wait = min(LONGEST_BACKOFF_S, 2 * wait)
            except HTTPError:
                wait = min(LONGEST_BACKOFF_S, 2 * wait)
            self.stopped.wait(wait)

    def _ended(self) -> bool:
        pod = self._core.read_namespaced_pod(self._pod, self._namespace, _request_timeout=(CONNECT_S, 30))
        state = _main(pod)
        if state is None or state.terminated is None:
            return pod.status.phase in ("Succeeded", "Failed")
        self.code = int(state.terminated.exit_code or 0)
        if state.terminated.reason == "OOMKilled":
            self._note(f"{self.step}: killed for want of memory (OOMKilled); raise resources.<stage>.memory")
        return True

    def _read(self, *, follow: bool) -> bool:
        """Read on; whether the stream ended in good order."""
        self._seen.again()
        since = self._seen.since_s()
        answer = self._core.read_namespaced_pod_log(
            self._pod,
            self._namespace,
            container=CONTAINER,
            follow=follow,
            timestamps=True,
            _preload_content=False,
            _request_timeout=(CONNECT_S, QUIET_S),
            **({"since_seconds": since} if since else {}),
        )
        try:
            for line, whole in lines(answer.stream(1 << 16, decode_content=True)):
                if self.stopped.is_set():
                    return False
                if not whole and follow:  # it comes again, whole
                    return False
                text = self._seen.new(line)
                if text is not None:
                    try:
                        self._tell(self.step, text)
                    except BrokenPipeError:  # the main thread ends the command
                        self.unheard = True
                        self.stopped.set()
                        return False
        finally:
            answer.close()
        if self.code and self._seen.exit_status:
            self.code = self._seen.exit_status
        return True


def open_logs(
    connection: Connection,
    run_id: str,
    names: Mapping[str, str],
    tell: Tell,
    note: Callable[[str], None],
    *,
    only: str = "",
    follow: bool = True,
) -> PodLogs | None:
    """The run's logs; None, and a note why, where there is no access to the cluster."""
    try:
        return PodLogs(connection, run_id, names, tell, note, only=only, follow=follow)
    except PermanentError as error:
        note(f"no logs, states only: {error}")
        return None
