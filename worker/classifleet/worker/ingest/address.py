"""Which network addresses are public unicast, and which spellings of them are accepted.

The table is our own because `ipaddress.is_global` (Python 3.11) lets through 224.0.0.1, 192.88.99.1,
::127.0.0.1, 64:ff9b::7f00:1, 2002:7f00:1::, fec0::1, ff02::1, 3fff::1, 5f00::1 and 168.63.129.16, and knows
nothing of ISATAP.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IANA's IPv4 special-purpose registry, multicast, and the one cloud address that hides among public ones.
_DENIED_IPV4: Final = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's host agent"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "AMT relays"),
        ("192.88.99.0/24", "6to4 relays"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarks"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
# Outside this nothing is global unicast: mapped, translated, unique local, link-local, site-local, multicast,
# loopback and the SIDs of 5f00::/16 all lie elsewhere.
_UNICAST_IPV6: Final = IPv6Network("2000::/3")
_DENIED_IPV6: Final = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("2001::/23", "protocol assignments (Teredo, ORCHID, benchmarks)"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "AS112"),
        ("3fff::/20", "documentation"),
    )
)
_ISATAP_MARKS: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})  # upper half of the interface id; an IPv4 follows


def forbidden_reason(address: Address) -> str | None:
    """Why an address is not one of public unicast, in a few words; None if it is."""
    if isinstance(address, IPv4Address):
        return next((reason for network, reason in _DENIED_IPV4 if address in network), None)
    if address.scope_id is not None:
        return "scoped to an interface"
    if address not in _UNICAST_IPV6:
        return "not global unicast"
    if int(address) >> 32 & 0xFFFF_FFFF in _ISATAP_MARKS:
        return "ISATAP"
    return next((reason for network, reason in _DENIED_IPV6 if address in network), None)


def literal_address(host: str) -> Address | None:
    """The address that a URL's host spells out in the canonical way; None if it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def odd_notation(host: str) -> bool:
    """Whether a host is an IPv4 address in disguise, such as `2130706433`, `0x7f.1`, `0177.0.0.1` or `127.1`."""
    bare = host.rstrip(".")
    if literal_address(host) is not None:
        return False
    try:
        socket.inet_aton(bare)  # reads every notation that glibc's getaddrinfo reads, and looks nothing up
    except (OSError, ValueError):
        return False
    return True
