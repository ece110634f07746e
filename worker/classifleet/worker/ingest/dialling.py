"""The connections of the http(s) client: each socket is made for one checked address, and idle ones are few.

The guard on the socket is what holds: it sees the address that is about to be dialled, whatever the resolver, its
cache or a second answer of a rebinding name server said before.
"""

from __future__ import annotations

import errno
import socket
import ssl
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from classifleet.worker.ingest.address import literal_address
from classifleet.worker.ingest.policy import AddressPolicy
from classifleet.worker.ingest.resolver import MAX_ADDRESSES, AddressRefused, CheckedResolver
from classifleet.worker.ingest.wire import bound_wire

DNS_TTL_SECONDS: Final = 10
KEEP_ALIVE_SECONDS: Final = 5.0
MAX_IDLE_CONNECTIONS: Final = 128  # to all hosts: strangers could leave us thousands, one for each name they think of


@dataclass(slots=True)
class Dial:
    """The host that a request is for, what the guard said if it refused an address, and how far the request is."""

    host: str
    refusal: str | None = None
    reused: bool = False
    sent: bool = False


_dial: ContextVar[Dial | None] = ContextVar("classifleet_dial", default=None)


@contextmanager
def dialling(host: str) -> Iterator[Dial]:
    """Within it, this task's sockets are made for a request to this host."""
    dial = Dial(host)
    token = _dial.set(dial)
    try:
        yield dial
    finally:
        _dial.reset(token)


async def _on_reuse(*_: Any) -> None:
    if dial := _dial.get():
        dial.reused = True


async def _on_sent(*_: Any) -> None:
    if dial := _dial.get():
        dial.sent = True


def progress_trace() -> aiohttp.TraceConfig:
    """Tells this module how far requests are; for the session."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_on_reuse)
    trace.on_request_headers_sent.append(_on_sent)
    return trace


class Dialler:
    """Opens sockets to addresses that the policy allows, and keeps count of them.

    Args:
        policy: Where it may go.
        connections: Sockets in use at one time, at most.
        max_bytes: Of one body, at most.
    """

    def __init__(self, policy: AddressPolicy, connections: int, max_bytes: int) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._connections = connections
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def connector(self, resolver: CheckedResolver, *, keep_alive: bool) -> aiohttp.TCPConnector:
        """A connection pool, for the running event loop."""
        connector = aiohttp.TCPConnector(
            resolver=resolver,
            socket_factory=self.guarded_socket,
            ttl_dns_cache=DNS_TTL_SECONDS,
            limit=self._connections,
            ssl=ssl.create_default_context(),  # trusts what SSL_CERT_FILE says, now and not when aiohttp was imported
            interleave=MAX_ADDRESSES,  # all at once; with less, aiohttp dials those that failed again and again
            force_close=not keep_alive,
            keepalive_timeout=KEEP_ALIVE_SECONDS if keep_alive else None,
        )
        return bound_wire(connector, self._max_bytes)

    def open_sockets(self) -> int:
        """Sockets that are open, in use or idle."""
        return sum(each.fileno() >= 0 for each in tuple(self._sockets))

    def too_many_idle(self, in_use: int) -> bool:
        """Whether connections should be closed after use for a while, given how many are in use."""
        limit = in_use + MAX_IDLE_CONNECTIONS
        return len(self._sockets) > limit and self.open_sockets() > limit

    def guarded_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for an address that may be dialled; the last check, and the one that cannot be raced.

        Raises:
            AddressRefused: It may not.
        """
        family, kind, proto, _, sockaddr = info
        dial = _dial.get() or Dial("")  # without a request no host rule applies
        if dial.sent and not dial.reused:  # aiohttp repeats a GET once; that is for pooled connections alone
            raise ConnectionResetError(errno.ECONNRESET, "the connection was closed without an answer")
        address = literal_address(str(sockaddr[0]))
        if address is None:
            dial.refusal = f"{dial.host} leads to something that is not an IP address"
        else:
            dial.refusal = self._policy.refusal(dial.host or str(address), address, int(sockaddr[1]))
        if dial.refusal is not None:
            raise AddressRefused(dial.refusal)
        made = socket.socket(family, kind, proto)
        self._sockets.add(made)
        return made
