"""Where http(s) may go: the table of `address.py`, and the operator's exceptions to it.

Pure; `http.py` asks before a name is looked up, `resolver.py` after it has been, and the guard on the socket once
more with the address that is about to be dialled. What is denied stays denied, whatever is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from classifleet.config.errors import SettingsError
from classifleet.worker.ingest.address import Address, Network, forbidden_reason, literal_address, odd_notation

PUBLIC_PORTS: Final = frozenset({80, 443})
_MAX_PORT: Final = 65_535

_ENTRY: Final = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^\[\]:]+)):(?P<port>[0-9]{1,5})", re.ASCII)
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOSTNAME: Final = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\.?", re.ASCII)
_ALLOW_HELP: Final = "write minio.internal:9000, *.internal:9000, 10.1.2.3:8080, 10.0.0.0/8:443 or [fd00::/8]:443"
_DENY_HELP: Final = "write example.com, *.example.com, 93.184.216.34, 93.184.216.0/24 or 2606:2800::/32"


@dataclass(frozen=True, slots=True)
class _Rule:
    """A host by name, all hosts below a domain (`*.domain`), or all addresses of a network."""

    host: str = ""
    network: Network | None = None

    def names(self, host: str) -> bool:
        """Whether the rule is for this host, given in lower case."""
        if self.host.startswith("*."):
            return host.endswith(self.host[1:]) and len(host) >= len(self.host)
        return bool(self.host) and host == self.host

    def covers(self, host: str, address: Address) -> bool:
        """Whether the rule is for this host or this address."""
        if self.network is None:
            return self.names(host)
        return address.version == self.network.version and address in self.network


class AddressPolicy:
    """Decides where http(s) may go.

    Args:
        allow: Exceptions, as in the setting `http_allow`: `host:port` allows whatever that very host name leads
            to, at that port and under that name alone, and `*.domain:port` all names below the domain; `CIDR:port`
            (or `address:port`) allows those addresses at that port under any name. IPv6 stands in brackets:
            `[fd00::/8]:443`.
        deny: Hosts, `*.domain`s, addresses and CIDRs that are never fetched from, at any port.
        ports: Ports of public addresses that are fetched from.

    Raises:
        SettingsError: An entry is none of these.
    """

    def __init__(
        self, allow: Iterable[str] = (), *, deny: Iterable[str] = (), ports: Iterable[int] = PUBLIC_PORTS
    ) -> None:
        self._allow: dict[int, list[_Rule]] = {}
        for entry in allow:
            port, rule = _allowed(entry)
            self._allow.setdefault(port, []).append(rule)
        self._deny = [_denied(entry) for entry in deny]
        self._ports = frozenset(ports)

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
        if self._denies_name(host):
            return f"{host} is denied by the setting http_deny"
        if port in self._ports or self._may_cover(host, port):
            return None
        return self._port_refusal(port)

    def refusal(self, host: str, address: Address, port: int) -> str | None:
        """Why an address may not be dialled for a host at a port; None if it may.

        The text never holds the address of a name: that would answer strangers' questions about our DNS.
        """
        if self._denies_name(host) or any(rule.covers("", address) for rule in self._deny):
            return f"{host} is denied by the setting http_deny"
        if any(rule.covers(host.lower(), address) for rule in self._allow.get(port, ())):
            return None
        reason = forbidden_reason(address)
        if reason is not None:
            return f"{host} leads to an address that is not public ({reason})"
        return None if port in self._ports else self._port_refusal(port)

    def _denies_name(self, host: str) -> bool:
        name = host.lower().rstrip(".")  # the same host with a dot: denied both ways, allowed only as written
        return any(rule.names(name) for rule in self._deny)

    def _may_cover(self, host: str, port: int) -> bool:
        return any(rule.network is not None or rule.names(host.lower()) for rule in self._allow.get(port, ()))

    def _port_refusal(self, port: int) -> str:
        ports = ", ".join(map(str, sorted(self._ports)))
        return f"port {port} is not fetched from: only {ports} and what the setting http_allow names"


def _allowed(entry: str) -> tuple[int, _Rule]:
    match = _ENTRY.fullmatch(entry.strip())
    if match is None or not 0 < int(match["port"]) <= _MAX_PORT:
        raise _bad("http_allow", entry, "it is not host:port or CIDR:port", _ALLOW_HELP)
    rule = _rule("http_allow", entry, match["six"] or match["host"], _ALLOW_HELP)
    if rule.network is not None and rule.network.version != (6 if match["six"] else 4):
        raise _bad("http_allow", entry, "brackets are for IPv6 alone", _ALLOW_HELP)
    if rule.network is None and match["six"]:
        raise _bad("http_allow", entry, "brackets are for IPv6 alone", _ALLOW_HELP)
    return int(match["port"]), rule


def _denied(entry: str) -> _Rule:
    text = entry.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    rule = _rule("http_deny", entry, text, _DENY_HELP)
    return _Rule(rule.host.rstrip("."), rule.network)


def _rule(setting: str, entry: str, text: str, help_text: str) -> _Rule:
    if "/" in text or literal_address(text) is not None:
        try:
            return _Rule(network=ip_network(text))
        except ValueError as error:
            raise _bad(setting, entry, str(error), help_text) from None
    if odd_notation(text) or not _HOSTNAME.fullmatch(text.lower()):
        raise _bad(setting, entry, f"{text!r} is not a host name", help_text)
    return _Rule(host=text.lower())


def _bad(setting: str, entry: str, problem: str, help_text: str) -> SettingsError:
    return SettingsError(f"{setting}: {entry!r}: {problem}; {help_text}")
