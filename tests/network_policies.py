"""Who reaches whom, as NetworkPolicies say it (networking.k8s.io/v1): pods by labels, everything else by address."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from manifests import Object


@dataclass(frozen=True)
class Pod:
    """A pod that policies are asked about."""

    namespace: str
    labels: dict[str, str] = field(hash=False)


Peer = Pod | str  # or an address outside the cluster


def reaches(objects: list[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection is let out of its source and into its target."""
    out = not isinstance(source, Pod) or _let(objects, "Egress", source, target, port, protocol)
    return out and (not isinstance(target, Pod) or _let(objects, "Ingress", target, source, port, protocol))


def _let(objects: list[Object], way: str, pod: Pod, other: Peer, port: int, protocol: str) -> bool:
    """Policies only add: a pod that none selects for this way is open, else one rule of one policy has to match."""
    rules_at, peers_at = ("egress", "to") if way == "Egress" else ("ingress", "from")
    selecting = [
        one["spec"]
        for one in objects
        if one["kind"] == "NetworkPolicy"
        and one["metadata"]["namespace"] == pod.namespace
        and way in _ways(one["spec"])
        and matches(one["spec"].get("podSelector", {}), pod.labels)
    ]
    return not selecting or any(
        _port(rule.get("ports"), port, protocol)
        and (not rule.get(peers_at) or any(_peer(objects, peer, pod.namespace, other) for peer in rule[peers_at]))
        for spec in selecting
        for rule in spec.get(rules_at, [])
    )


def _ways(spec: dict[str, Any]) -> list[str]:
    return list(spec.get("policyTypes", ["Ingress", *(["Egress"] if "egress" in spec else [])]))


def _port(ports: list[dict[str, Any]] | None, port: int, protocol: str) -> bool:
    return not ports or any(
        one.get("protocol", "TCP") == protocol
        and ("port" not in one or one["port"] <= port <= one.get("endPort", one["port"]))
        for one in ports
    )


def _peer(objects: list[Object], peer: dict[str, Any], namespace: str, other: Peer) -> bool:
    if "ipBlock" in peer:
        return not isinstance(other, Pod) and _in_block(peer["ipBlock"], other)
    if not isinstance(other, Pod):
        return False
    if "namespaceSelector" in peer:
        there = matches(peer["namespaceSelector"], _namespace_labels(objects, other.namespace))
    else:
        there = other.namespace == namespace
    return there and matches(peer.get("podSelector", {}), other.labels)


def _in_block(block: dict[str, Any], address: str) -> bool:
    """Raises ValueError for an exception that is no part of its block, which Kubernetes refuses."""
    network, found = ipaddress.ip_network(block["cidr"]), ipaddress.ip_address(address)
    exceptions = [ipaddress.ip_network(text) for text in block.get("except", [])]
    for one in exceptions:
        if one.version != network.version or not one.subnet_of(network):  # type: ignore[arg-type]
            raise ValueError(f"{one} is no part of {network}")
    return found in network and not any(found in one for one in exceptions)


def _namespace_labels(objects: list[Object], name: str) -> dict[str, str]:
    """Kubernetes gives each namespace its name as a label."""
    for one in objects:
        if one["kind"] == "Namespace" and one["metadata"]["name"] == name:
            return {**one["metadata"]["labels"], "kubernetes.io/metadata.name": name}
    return {"kubernetes.io/metadata.name": name}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector selects; an empty one selects all."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for one in selector.get("matchExpressions", []):
        key, values = one["key"], one.get("values", [])
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[one["operator"]]
        if not holds:
            return False
    return True
