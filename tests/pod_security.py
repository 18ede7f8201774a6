"""The Pod Security Standards' `restricted` profile, with everything of `baseline`, over pods as they are written.

https://kubernetes.io/docs/concepts/security/pod-security-standards/, as of Kubernetes 1.33; what is written in a
container stands in the place of what is written in its pod.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from manifests import Object, containers, templates

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def restricted(objects: list[Object]) -> list[str]:
    """What keeps a pod from being let in; and, beyond the standard, a root file system that can be written."""
    return [f"{owner}: {what}" for owner, _, pod in templates(objects) for what in _of_pod(pod)]


def _of_pod(pod: Object) -> Iterator[str]:
    spec = pod["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes", []):
        if others := set(volume) - {"name"} - VOLUMES:
            yield f"volume of kind {', '.join(sorted(others))}"
    context = spec.get("securityContext", {})
    yield from _shared(context, "pod")
    for sysctl in context.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    for key, value in pod["metadata"].get("annotations", {}).items():
        if key.startswith("container.apparmor.security.beta.kubernetes.io/") and value != "runtime/default":
            yield "AppArmor annotation"
    for container in containers(pod):
        yield from _of_container(container, context)


def _of_container(container: Object, pod: Object) -> Iterator[str]:
    own, name = container.get("securityContext", {}), container["name"]
    yield from _shared(own, name)
    if own.get("privileged"):
        yield f"{name} is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name} may gain privileges"
    if "ALL" not in own.get("capabilities", {}).get("drop", []):
        yield f"{name} does not drop all capabilities"
    if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name} adds capabilities"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield f"{name} may run as root"
    if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield f"{name} has no seccomp profile"
    if own.get("procMount", "Default") != "Default":
        yield f"{name} unmasks /proc"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{name} has a port of the host"
    for probe in _handlers(container):
        if any(probe.get(kind, {}).get("host") for kind in ("httpGet", "tcpSocket")):
            yield f"{name} probes another host"
    if own.get("readOnlyRootFilesystem") is not True:
        yield f"{name} writes to its root file system"


def _shared(context: Object, name: str) -> Iterator[str]:
    """What pods and containers have alike."""
    if context.get("runAsUser") == 0:
        yield f"{name} runs as user 0"
    if context.get("appArmorProfile", {}).get("type") not in {None, "RuntimeDefault", "Localhost"}:
        yield f"{name} has no AppArmor profile"
    selinux: dict[str, Any] = context.get("seLinuxOptions", {})
    if selinux.get("type") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield f"{name} chooses SELinux options"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{name} is a host process"


def _handlers(container: Object) -> Iterator[Object]:
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        yield container.get(probe, {})
    yield from container.get("lifecycle", {}).values()
