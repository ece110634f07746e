"""Web servers on the loopback that count every connection, good ones and bad ones, and a fetcher that may reach them.

async with serve() as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
    assert await get(fetcher, site.url()) == IMAGE
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from aiohttp import web

from classifleet.config import ImageError, Settings, parse_reference
from classifleet.worker.ingest import Fetcher
from classifleet.worker.instruments import REGISTRY

IMAGE: Final = b"\xff\xd8 an image " * 5_000
PUBLIC: Final = "93.184.216.34"
LOOPBACK: Final = "127.0.0.1"
EVERYWHERE: Final = (LOOPBACK, "127.0.0.2", "127.0.0.3", "127.0.0.5", "::1")
NEVER_SECONDS: Final = 60.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
GetAddrInfo = Callable[..., list[Any]]


@dataclass
class Site:
    """A server on the loopback, and all that reached it."""

    port: int = 0
    connections: int = 0
    requests: list[web.BaseRequest] = field(default_factory=list)

    def url(self, path: str = "/image", host: str = LOOPBACK, scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


@contextlib.asynccontextmanager
async def serve(
    handler: Handler | None = None, *, hosts: tuple[str, ...] = (LOOPBACK,), tls: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    """A server on the same port of all these hosts."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        site.requests.append(request)
        return await handler(request) if handler else web.Response(body=IMAGE)

    def accept() -> asyncio.Protocol:
        site.connections += 1
        return server()

    site, server = Site(), web.Server(answer, access_log=None)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.shutdown, 0)
        for host in hosts:
            listener = await asyncio.get_running_loop().create_server(accept, host, site.port, ssl=tls)
            stack.callback(listener.close)
            site.port = listener.sockets[0].getsockname()[1]
        yield site


@contextlib.asynccontextmanager
async def serve_bytes(*parts: bytes, pause_seconds: float = 0.0, hold: bool = False) -> AsyncIterator[Site]:
    """A server below HTTP: it reads a request's head, writes the parts, and closes, or holds the line."""
    site = Site()
    talks: set[asyncio.Task[Any] | None] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        site.connections += 1
        talks.add(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_seconds)
            if hold:
                await asyncio.Event().wait()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    listener = await asyncio.start_server(talk, LOOPBACK, 0)
    site.port = listener.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        listener.close()
        for task in talks:
            assert task is not None
            task.cancel()
        await asyncio.gather(*(task for task in talks if task is not None))


@contextlib.asynccontextmanager
async def fetching(
    *allow: str, getaddrinfo: GetAddrInfo = socket.getaddrinfo, **settings: Any
) -> AsyncIterator[Fetcher]:
    """A started fetcher with these entries of `http_allow`."""
    settings = {"fetch_timeout_seconds": 10.0, "max_bytes": 1 << 20, **settings}
    fetcher = Fetcher(Settings(http_allow=list(allow), **settings), read_blob=lambda *_: None, getaddrinfo=getaddrinfo)
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def get(fetcher: Fetcher, url: str, *, deadline_seconds: float | None = None) -> bytes:
    """Fetch an image."""
    return await fetcher.fetch(parse_reference(url), job="job", chunk="chunk", deadline_seconds=deadline_seconds)


async def failure(fetcher: Fetcher, url: str, *, deadline_seconds: float | None = None) -> ImageError:
    """Fetch what cannot be had; the error that says why."""
    with pytest.raises(ImageError) as caught:
        await get(fetcher, url, deadline_seconds=deadline_seconds)
    return caught.value


def metric(name: str, **labels: str) -> float:
    """The present value of a worker's metric."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def answers(*rounds: list[str]) -> GetAddrInfo:
    """A `getaddrinfo` that answers each call with the next round of addresses, and then with the last for ever."""
    left = list(rounds)

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    return getaddrinfo
