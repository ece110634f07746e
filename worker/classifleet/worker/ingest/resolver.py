"""Host names to addresses: every answer is checked before any of them is dialled."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult

from classifleet.worker.ingest.address import AddressPolicy, literal_address

DNS_THREADS: Final = 16  # getaddrinfo has no timeout of its own; lookups beyond these wait

GetAddrInfo = Callable[..., list[Any]]


class AddressRefused(OSError):
    """The policy refuses an address; an OSError, which is what aiohttp carries out of a lookup or a dial."""

    def __init__(self, refusal: str) -> None:
        super().__init__(errno.EACCES, refusal)
        self.refusal = refusal


class CheckedResolver(AbstractResolver):
    """`getaddrinfo` in a bounded pool; a name is refused if any one of its addresses is."""

    def __init__(self, policy: AddressPolicy, getaddrinfo: GetAddrInfo = socket.getaddrinfo) -> None:
        self._policy = policy
        self._getaddrinfo = getaddrinfo
        self._pool = ThreadPoolExecutor(DNS_THREADS, thread_name_prefix="classifleet-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Look up a name.

        Raises:
            AddressRefused: One of its addresses is forbidden.
            OSError: It has none.
        """
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._pool, self._lookup, host, port, family)
        except UnicodeError:
            raise OSError(errno.EINVAL, "not a host name") from None
        results = [self._checked(host, port, answer) for answer in answers]
        if not results:
            raise OSError(errno.ENOENT, "the name has no address")
        return results

    async def close(self) -> None:
        """Drop the lookups that wait; those under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _lookup(self, host: str, port: int, family: int) -> list[Any]:
        return self._getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)

    def _checked(self, host: str, port: int, answer: Any) -> ResolveResult:
        family, _, proto, _, sockaddr = answer
        address = literal_address(str(sockaddr[0]))
        if address is None:
            raise AddressRefused(f"{host} leads to something that is not an IP address")
        refusal = self._policy.refusal(host, address, port)
        if refusal is not None:
            raise AddressRefused(refusal)
        return ResolveResult(
            hostname=host,
            host=str(address),
            port=port,
            family=family,
            proto=proto,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
