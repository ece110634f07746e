"""Peers that are servers: one HTTP request for each photo, 32 of them under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from benchmarks._load import closed_loop, open_loop
from benchmarks.peers import environments, processes
from tests.support.processes import ManagedProcess
from tests.support.waiting import wait_until

from classifleet.producer.embedded import free_ports

CONCURRENCY: Final = 32  # two workers with a batch each at work, and one each waiting
START_SECONDS: Final = 120.0


@dataclass(slots=True)
class HttpPeer:
    """A server.

    Attributes:
        name: As in tables.
        environment: Of `requirements-<environment>.txt`.
        model_file: What it serves.
        command: Of the port, without the interpreter.
        route: That photos are posted to.
        body: Of a path.
        label: Of an answer.
        settings: More variables of its environment.
    """

    name: str
    environment: str
    model_file: Path
    command: Callable[[int], list[str]]
    route: str
    body: Callable[[Path], Mapping[str, Any]]
    label: Callable[[Any], int]
    settings: Mapping[str, str] = field(default_factory=dict)
    details: str = ""
    _process: ManagedProcess | None = None
    _url: str = ""
    _folder: Path = field(default_factory=Path)

    def start(self, folder: Path) -> None:
        """Serve, and wait for a first answer."""
        python = environments.python(self.environment)
        self.details = environments.pinned(self.environment)
        [port] = free_ports(1)
        self._url = f"http://127.0.0.1:{port}{self.route}"
        self._folder = folder
        command: list[str | Path] = [python, *self.command(port)]
        self._process = processes.start(command, folder, self.model_file, self.settings)

    def ready(self, path: Path) -> None:
        """Wait until a photo is answered."""
        wait_until(lambda: self._answers(path), f"{self.name} to answer", START_SECONDS)

    def classify(self, paths: Sequence[Path]) -> list[int]:
        """All of them, as fast as it answers."""

        async def run() -> list[int]:
            async with self._session() as session:
                return await closed_loop(lambda path: self._post(session, path), paths, CONCURRENCY)

        return asyncio.run(run())

    def open_loop(self, arrivals: Sequence[float], paths: Sequence[Path]) -> list[float]:
        """A request at each moment."""

        async def run() -> list[float]:
            async with self._session() as session:
                return await open_loop(lambda path: self._post(session, path), arrivals, paths)

        return asyncio.run(run())

    def stop(self) -> None:
        """End the server and all of its processes."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600), raise_for_status=True
        )

    async def _post(self, session: aiohttp.ClientSession, path: Path) -> int:
        async with session.post(self._url, json=self.body(path)) as answer:
            return self.label(await answer.json(content_type=None))

    def _answers(self, path: Path) -> bool:
        assert self._process is not None
        if not self._process.running():
            raise RuntimeError(f"{self.name} ended:\n{self._process.tail()}")
        try:
            self.classify([path])
        except aiohttp.ClientError:
            return False
        return True
