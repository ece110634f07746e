"""A proxy on loopback that can lose an answer: what was asked is done, and who asked does not hear of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

BUFFER_BYTES: Final = 1 << 16


class LossyProxy:
    """Relays to a port of 127.0.0.1. After `lose(marker)` the next answer to what contains `marker` is lost."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self._marker: bytes | None = None
        self.lost = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._server.getsockname()[1]
        return port

    def lose(self, marker: bytes) -> None:
        """Lose one answer: the connection is closed in its place."""
        self._marker = marker

    def close(self) -> None:
        """Accept no more."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            doomed = threading.Event()
            back = threading.Thread(target=self._relay_answers, args=(server, client, doomed), daemon=True)
            back.start()
            with suppress(OSError):
                while asked := client.recv(BUFFER_BYTES):
                    if self._marker is not None and self._marker in asked:
                        self._marker = None
                        doomed.set()
                    server.sendall(asked)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join()

    def _relay_answers(self, server: socket.socket, client: socket.socket, doomed: threading.Event) -> None:
        with suppress(OSError):
            while answer := server.recv(BUFFER_BYTES):
                if doomed.is_set():
                    self.lost += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def lossy_proxy(target: int) -> Iterator[LossyProxy]:
    """A proxy while the block runs."""
    proxy = LossyProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
