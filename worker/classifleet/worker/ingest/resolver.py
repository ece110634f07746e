"""Host names to addresses: every answer is checked before any of them is dialled.

`getaddrinfo` has no timeout of its own and cannot be stopped, so a stranger's name server can hold a thread for as
long as the system's resolver waits (`options timeout: attempts:` in resolv.conf). Threads are therefore lent like
slots: a lookup that has taken longer than a second no longer counts among the few that others wait for. Who waits
for one gives up after a few seconds, and one that nobody waits for any more never begins: or an attack's backlog
would outlive it. A name is never looked up twice at one time.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult

from classifleet.worker.ingest.address import literal_address
from classifleet.worker.ingest.policy import AddressPolicy
from classifleet.worker.ingest.slots import FetchSlots

DNS_THREADS: Final = 16
SLOW_DNS_THREADS: Final = 240  # for names that take longer than a second
LOOKUP_SECONDS: Final = 5.0
MAX_ADDRESSES: Final = 4  # of one name that are dialled: connecting goes on to the next after a quarter of a second

GetAddrInfo = Callable[..., list[Any]]


class AddressRefused(OSError):
    """The policy refuses an address; an OSError, which is what aiohttp carries out of a lookup or a dial."""

    def __init__(self, refusal: str) -> None:
        super().__init__(errno.EACCES, refusal)
        self.refusal = refusal


class LookupTimeout(OSError):
    """A name was not looked up in time."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "the name was not looked up in time")


@dataclass(slots=True)
class _Lookup:
    """Of one name; who waits for it shares it."""

    name: tuple[str, int, int]
    waiters: int = 0
    begun: bool = False
    task: asyncio.Task[list[Any]] = field(init=False)


class CheckedResolver(AbstractResolver):
    """`getaddrinfo` in a bounded pool; a name is refused if any one of its addresses is."""

    def __init__(self, policy: AddressPolicy, getaddrinfo: GetAddrInfo = socket.getaddrinfo) -> None:
        self._policy = policy
        self._getaddrinfo = getaddrinfo
        self._pool = ThreadPoolExecutor(DNS_THREADS + SLOW_DNS_THREADS, thread_name_prefix="classifleet-dns")
        self._slots = FetchSlots(DNS_THREADS, SLOW_DNS_THREADS, own=0)  # a lookup may be of both lanes
        self._under_way: dict[tuple[str, int, int], _Lookup] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Look up a name.

        Raises:
            AddressRefused: One of its addresses is forbidden.
            LookupTimeout: It takes too long.
            OSError: It has none.
        """
        lookup = self._join(host, port, family)
        try:
            answers = await asyncio.wait_for(asyncio.shield(lookup.task), LOOKUP_SECONDS)
        except TimeoutError:
            raise LookupTimeout from None
        except UnicodeError:
            raise OSError(errno.EINVAL, "not a host name") from None
        finally:
            self._leave(lookup)
        results = [self._checked(host, port, answer) for answer in answers]  # all of them, before any is left out
        if not results:
            raise OSError(errno.ENOENT, "the name has no address")
        return results[:MAX_ADDRESSES]

    async def close(self) -> None:
        """Drop the lookups that wait; those under way end by themselves."""
        tasks = [lookup.task for lookup in self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _join(self, host: str, port: int, family: int) -> _Lookup:
        name = (host.lower(), port, family)
        lookup = self._under_way.get(name)
        if lookup is None:
            lookup = self._under_way[name] = _Lookup(name)
            lookup.task = asyncio.create_task(self._look_up(lookup))
            lookup.task.add_done_callback(lambda task: self._done(lookup, task))
        lookup.waiters += 1
        return lookup

    def _leave(self, lookup: _Lookup) -> None:
        lookup.waiters -= 1
        if not lookup.waiters and not lookup.begun:
            lookup.task.cancel()
            self._forget(lookup)  # now: who comes next must not join what is cancelled

    def _done(self, lookup: _Lookup, task: asyncio.Task[list[Any]]) -> None:
        self._forget(lookup)
        if not task.cancelled():
            task.exception()  # seen, if nobody waits for it any more

    def _forget(self, lookup: _Lookup) -> None:
        if self._under_way.get(lookup.name) is lookup:
            del self._under_way[lookup.name]

    async def _look_up(self, lookup: _Lookup) -> list[Any]:
        """Holds its slot until the thread is free, however long that takes."""
        async with self._slots.slot() as slot:
            lookup.begun = True
            slot.begin()
            host, port, family = lookup.name
            call = partial(self._getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM)
            return await asyncio.get_running_loop().run_in_executor(self._pool, call)

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
