"""A connection to Redis with one command under way at most, which the event loop watches."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any, Protocol

import redis


class Watcher(Protocol):
    """What tells a line that its socket can be read."""

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Call back whenever the socket can be read."""

    def unwatch(self, fd: int) -> None:
        """Stop that; before the socket is closed."""

    def wake(self) -> None:
        """End the loop's wait, from any thread."""


class Line:
    """Sends a command, and hands its reply over when the loop says that it is there."""

    def __init__(self, pool: redis.ConnectionPool, watcher: Watcher, on_reply: Callable[[Any], None]) -> None:
        self._pool = pool
        self._watcher = watcher
        self._on_reply = on_reply
        self._connection: Any = None
        self._fd = -1
        self._overdue = 0.0
        self.busy = False
        self.lost = False  # for good: another channel takes the place of this one

    def send(self, *command: Any, seconds: float) -> None:
        """Send a command whose reply must come within so many seconds.

        Raises:
            redis.RedisError: It could not be sent.
        """
        try:
            if self._connection is None:
                self._connect()
            self.busy = True
            self._overdue = time.monotonic() + seconds
            # No check of its health, which would reconnect without telling the loop: `check` is one.
            self._connection.send_command(*command, check_health=False)
        except redis.RedisError:
            self.lost = True
            raise

    def read(self) -> Any:
        """The reply; waits for it, at most for the connection's `socket_timeout`. A refusal is returned.

        Raises:
            redis.RedisError: The connection is lost.
        """
        self.busy = False
        try:
            return self._connection.read_response()
        except redis.ResponseError as error:
            return error
        except redis.RedisError:
            self.lost = True
            raise

    def check(self) -> None:
        """Notice a connection that is open at this end alone.

        Raises:
            redis.ConnectionError: The reply is overdue.
        """
        if self.busy and time.monotonic() > self._overdue and not _readable(self._fd):
            self.lost = True
            raise redis.ConnectionError("a reply from Redis is overdue")

    def close(self) -> None:
        """Give the command up and close the connection."""
        self.busy = False
        if self._fd >= 0:
            self._watcher.unwatch(self._fd)
            self._fd = -1
        if self._connection is not None:
            self._connection.disconnect()
            self._pool.release(self._connection)
            self._connection = None

    def _connect(self) -> None:
        self._connection = self._pool.get_connection()
        self._fd = self._connection._sock.fileno()
        self._watcher.watch(self._fd, self._readable)

    def _readable(self) -> None:
        if not self.busy:  # nothing is expected: the server has closed the connection
            self.lost = True
            raise redis.ConnectionError("Redis closed a connection")
        self._on_reply(self.read())


def _readable(fd: int) -> bool:
    """Whether there is something to read now, as after this process was stopped for a while."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
