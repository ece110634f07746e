"""A TCP proxy that can be told to be down, slow, or to answer every request with 503."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final

SLOW_SECONDS: Final = 5.0
_BUSY: Final = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Mode(Enum):
    """What happens to what arrives. `DOWN` also breaks the connections that are open."""

    PASS = "pass"
    DOWN = "down"
    SLOW = "slow"
    BUSY = "busy"


class Proxy:
    """Stands before a server on loopback, on a thread of its own."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.refused = 0
        self._target = target
        self._mode = Mode.PASS
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()

    def become(self, mode: Mode) -> None:
        """Change at once."""
        self._loop.call_soon_threadsafe(self._become, mode)

    def _become(self, mode: Mode) -> None:
        self._mode = mode
        for writer in self._writers if mode is not Mode.SLOW else ():
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._mode is Mode.DOWN:
                self.refused += 1
                writer.transport.abort()
            elif self._mode is Mode.BUSY:
                await reader.readuntil(b"\r\n\r\n")
                self.refused += 1
                writer.write(_BUSY)
                await writer.drain()
            else:
                await self._forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # either side hung up
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(server_writer)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, server_writer))
                group.create_task(self._pump(server_reader, writer))
        except* OSError:
            pass  # either side hung up
        finally:
            self._writers.discard(server_writer)
            server_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self._mode is Mode.SLOW:
                await asyncio.sleep(SLOW_SECONDS)
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError, NotImplementedError):
            writer.write_eof()

    @classmethod
    @contextmanager
    def before(cls, target: int, host: str = "127.0.0.1") -> Iterator[Proxy]:
        """A proxy before a port of loopback, on this address."""
        proxy = cls(target)
        thread = threading.Thread(target=proxy._loop.run_forever, name="chaos-proxy", daemon=True)
        thread.start()
        starting = asyncio.start_server(proxy._serve, host, 0)
        server = asyncio.run_coroutine_threadsafe(starting, proxy._loop).result()
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(proxy._close(server), proxy._loop).result()
            proxy._loop.call_soon_threadsafe(proxy._loop.stop)
            thread.join()
            proxy._loop.close()

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        self._become(Mode.DOWN)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
