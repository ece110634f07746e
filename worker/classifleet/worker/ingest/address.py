"""Which network addresses a stranger's URL may lead to: public unicast, and what the operator allows.

Pure functions of hosts, addresses and ports; `http.py` asks them before a name is looked up, after it has been,
and once more with the address that a socket is about to dial.

The table is our own because `ipaddress.is_global` (Python 3.11) lets through 224.0.0.1, 192.88.99.1,
::127.0.0.1, 64:ff9b::7f00:1, 2002:7f00:1::, fec0::1, ff02::1, 3fff::1, 5f00::1 and 168.63.129.16, and knows
nothing of ISATAP.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from classifleet.config.errors import SettingsError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

PUBLIC_PORTS: Final = frozenset({80, 443})
_MAX_PORT: Final = 65_535

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

_ENTRY: Final = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^\[\]:]+)):(?P<port>[0-9]{1,5})", re.ASCII)
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOSTNAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?", re.ASCII)


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


@dataclass(frozen=True, slots=True)
class _Rule:
    """One exception: a host by name, or all addresses of a network, at one port."""

    port: int
    host: str = ""
    network: Network | None = None

    def covers(self, host: str, address: Address) -> bool:
        """Whether the exception is for this host or this address."""
        if self.network is None:
            return host.lower() == self.host
        return address.version == self.network.version and address in self.network


class AddressPolicy:
    """Decides where http(s) may go.

    Args:
        allow: Exceptions, as in the setting `http_allow`: `host:port` allows whatever that very host name leads
            to, at that port and under that name alone; `CIDR:port` (or `address:port`) allows those addresses at
            that port under any name. IPv6 stands in brackets: `[fd00::/8]:443`.

    Raises:
        SettingsError: An entry is neither.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        rules = [_parse(entry) for entry in allow]
        self._rules = {port: [rule for rule in rules if rule.port == port] for port in {rule.port for rule in rules}}

    def target_refusal(self, host: str, port: int) -> str | None:
        """Why a URL's host and port are refused before anything is looked up; None if they may be.

        Args:
            host: As it stands in the URL: a name, or an address without brackets.
            port: The port that will be dialled.
        """
        if odd_notation(host):
            return f"{host} is an address in a notation that is not accepted"
        address = literal_address(host)
        if address is not None:
            return self.refusal(host, address, port)
        if port in PUBLIC_PORTS or self._may_cover(host, port):
            return None
        return self._port_refusal(port)

    def refusal(self, host: str, address: Address, port: int) -> str | None:
        """Why an address may not be dialled for a host at a port; None if it may.

        The text never holds the address of a name: that would answer strangers' questions about our DNS.
        """
        if any(rule.covers(host, address) for rule in self._rules.get(port, ())):
            return None
        reason = forbidden_reason(address)
        if reason is not None:
            return f"{host} leads to an address that is not public ({reason})"
        return None if port in PUBLIC_PORTS else self._port_refusal(port)

    def _may_cover(self, host: str, port: int) -> bool:
        return any(rule.network is not None or rule.host == host.lower() for rule in self._rules.get(port, ()))

    @staticmethod
    def _port_refusal(port: int) -> str:
        return f"port {port} is not fetched from: only 80, 443 and what the setting http_allow names"


def _parse(entry: str) -> _Rule:
    match = _ENTRY.fullmatch(entry.strip())
    if match is None or not 0 < int(match["port"]) <= _MAX_PORT:
        raise _bad(entry, "it is not host:port or CIDR:port")
    port, text = int(match["port"]), match["six"] or match["host"]
    if match["six"] or "/" in text or literal_address(text) is not None:
        return _Rule(port, network=_network(entry, text, 6 if match["six"] else 4))
    if odd_notation(text) or not _HOSTNAME.fullmatch(text.lower()):
        raise _bad(entry, f"{text!r} is not a host name")
    return _Rule(port, host=text.lower())


def _network(entry: str, text: str, version: int) -> Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise _bad(entry, str(error)) from None
    if network.version != version:
        raise _bad(entry, "brackets are for IPv6 alone")
    return network


def _bad(entry: str, problem: str) -> SettingsError:
    return SettingsError(
        f"http_allow: {entry!r}: {problem}; write minio.internal:9000, 10.1.2.3:8080, 10.0.0.0/8:443 or [fd00::/8]:443"
    )
