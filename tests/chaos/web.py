"""Photos over http from loopback, with gates: what a gate holds is answered once the test opens it.

A chunk with an image behind a gate stays at work for as long as the test wants, whoever works on it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

PHOTO_SECONDS: Final = 0.5  # a server as slow as many: chunks stay at work for so long, without using a core


class GatedWeb:
    """A web server on a thread of its own."""

    def __init__(self, photos: list[Path]) -> None:
        self._photos = {path.name: path.read_bytes() for path in photos}
        self._open: set[str] = set()
        self._waiting: dict[str, int] = defaultdict(int)
        self._changed: asyncio.Condition
        self._loop = asyncio.new_event_loop()
        self.port = 0

    def url(self, name: str) -> str:
        """A photo that is answered after half a second."""
        return f"http://127.0.0.1:{self.port}/photo/{name}"

    def add(self, name: str, content: bytes) -> str:
        """Serve one image more; its name."""
        self._photos[name] = content
        return name

    def gated(self, gate: str, name: str) -> str:
        """A photo behind a gate."""
        return f"http://127.0.0.1:{self.port}/gate/{gate}/{name}"

    def waiting(self, gate: str) -> int:
        """How many requests the gate holds now."""
        return self._waiting[gate]

    def open(self, gate: str) -> None:
        """Answer what the gate holds, and from now on everything."""

        async def opened() -> None:
            async with self._changed:
                self._open.add(gate)
                self._changed.notify_all()

        asyncio.run_coroutine_threadsafe(opened(), self._loop).result()

    def close_gates(self) -> None:
        """Let all gates hold again what comes."""
        self._loop.call_soon_threadsafe(self._open.clear)

    async def _gate(self, request: web.Request) -> web.Response:
        gate = request.match_info["gate"]
        self._waiting[gate] += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: gate in self._open)
        finally:
            self._waiting[gate] -= 1
        return await self._photo(request)

    async def _slow_photo(self, request: web.Request) -> web.Response:
        await asyncio.sleep(PHOTO_SECONDS)
        return await self._photo(request)

    async def _photo(self, request: web.Request) -> web.Response:
        return web.Response(body=self._photos[request.match_info["name"]], content_type="image/jpeg")

    @classmethod
    @contextmanager
    def serve(cls, photos: list[Path]) -> Iterator[GatedWeb]:
        """Serve these files by name."""
        site = cls(photos)
        thread = threading.Thread(target=site._loop.run_forever, name="chaos-web", daemon=True)
        thread.start()
        runner = asyncio.run_coroutine_threadsafe(site._start(), site._loop).result()
        try:
            yield site
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), site._loop).result()
            site._loop.call_soon_threadsafe(site._loop.stop)
            thread.join()
            site._loop.close()

    async def _start(self) -> web.AppRunner:
        self._changed = asyncio.Condition()
        app = web.Application()
        app.router.add_get("/photo/{name}", self._slow_photo)
        app.router.add_get("/gate/{gate}/{name}", self._gate)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        listener = web.TCPSite(runner, "127.0.0.1", 0)
        await listener.start()
        self.port = runner.addresses[0][1]
        return runner
