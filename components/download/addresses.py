"""Which network addresses a downloader may connect to: a list of URLs from strangers must not reach the inside."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Not global by RFC 6890's registries, or ways into IPv4 through IPv6 (RFC 6052, 8215, 3056, 4380); and Azure's own
# host, 168.63.129.16, which answers virtual machines alone.
_BLOCKED_V4 = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")  # all that is given out for the public network
_BLOCKED_V6 = (
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)  # fmt: skip
_V4 = tuple(ipaddress.IPv4Network(text) for text in _BLOCKED_V4)
_V6 = tuple(ipaddress.IPv6Network(text) for text in _BLOCKED_V6)


NOT_PUBLIC = "is not on the public network"


class BlockedAddress(OSError):
    """A connection to an address inside a blocked range was refused before a socket was made."""


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks from their texts, as in 10.1.0.0/16 or ::1; ValueError with the text that is none."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def blocked(address: str, allowed: Sequence[Network] = ()) -> bool:
    """Whether `address`, as the system's resolver gives it, lies in a range that is not the public network's.

    IPv4 addresses mapped into IPv6 count as the IPv4 address. What is no address at all is blocked.
    """
    try:
        found: Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if any(found.version == network.version and found in network for network in allowed):
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return any(found in network for network in _V4)
    return found not in _OPEN_V6 or any(found in network for network in _V6)


def checked_socket(place: Any, allowed: Sequence[Network] = ()) -> socket.socket:
    """A socket for one result of getaddrinfo, the last step before a connection: whatever name, redirect or answer of
    a name server led here, the address that is checked is the one that is connected to. Raises BlockedAddress.
    """
    family, kind, protocol, _, where = place
    if family not in {socket.AF_INET, socket.AF_INET6} or blocked(str(where[0]), allowed):
        raise BlockedAddress(f"address {where[0]} {NOT_PUBLIC}")
    return socket.socket(family, kind, protocol)
