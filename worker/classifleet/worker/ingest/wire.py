"""A limit on what a server may send for one answer, body or not.

Parsing costs more than it costs to send: a stream of `103 Early Hints`, or a body in chunks of one byte, keeps the
event loop busy and never grows past the cap on the body. So the bytes on the wire are counted too, and the heads.

aiohttp has no place for this: its protocol class is replaced, in the one attribute that names it. The tests notice
if that attribute goes away.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler

MAX_HEADS: Final = 8  # of one answer: one, and a few interim ones
WIRE_OVERHEAD_BYTES: Final = 256 << 10  # heads, and the framing of chunks
SMALL_CHUNK_BYTES: Final = 64  # a body of nothing but smaller chunks is an attack


class WireLimitExceeded(aiohttp.ClientPayloadError):
    """The server sent more around the image than an image needs."""


class BoundedHandler(ResponseHandler):
    """The protocol of one connection, which it closes when an answer exceeds the limit.

    Args:
        loop: The event loop.
        max_bytes: Of a body, at most.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, max_bytes: int) -> None:
        super().__init__(loop)
        self._wire_limit = max_bytes + max_bytes // 8 + WIRE_OVERHEAD_BYTES
        self._wire_bytes = self._heads = 0

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be answered."""
        self._wire_bytes = self._heads = 0
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """A head has arrived, interim or not."""
        self._heads += 1
        if self._heads <= MAX_HEADS:
            super().feed_data(data, size)
        elif self._heads == MAX_HEADS + 1:
            self._refuse()

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        self._wire_bytes += len(data)
        if self._wire_bytes <= self._wire_limit and self._heads <= MAX_HEADS:
            super().data_received(data)
        else:
            self._refuse()

    def _refuse(self) -> None:
        error = WireLimitExceeded("the server sent too much around the image")
        self.set_exception(error)
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(error)
        if self.transport is not None:
            self.transport.abort()


def bound_wire(connector: aiohttp.TCPConnector, max_bytes: int) -> aiohttp.TCPConnector:
    """Make a connector's connections count what they receive."""
    if not hasattr(connector, "_factory"):
        raise RuntimeError("this aiohttp names its protocol class otherwise; see ingest/wire.py")
    connector._factory = partial(BoundedHandler, asyncio.get_running_loop(), max_bytes=max_bytes)  # type: ignore[assignment]
    return connector
