"""The thread that takes messages: its pulse, whether it is connected, and what other threads ask of it.

kombu's channels belong to that thread, so requests go there by way of a pipe that Celery's event loop watches.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from classifleet.worker.outages import Outages

if TYPE_CHECKING:
    from celery import Celery

TICK_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.02
ACK_SECONDS: Final = 2.0


class Intake:
    """What the rest of the process knows of Celery's consumer. Safe across threads."""

    def __init__(self, outages: Outages) -> None:
        self._outages = outages
        self._consumer: Any = None
        self._ticked = 0.0
        self._stopping = False
        self._asked: deque[Callable[[], None]] = deque()
        self._stopped = threading.Event()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)

    def connected(self) -> bool:
        """Whether there is a connection to the broker."""
        return self._consumer is not None

    def still_seconds(self) -> float:
        """How long ago its event loop last turned; 0 without a connection, which is no fault of the process."""
        return time.monotonic() - self._ticked if self._consumer is not None and self._ticked else 0.0

    def stop(self, timeout: float) -> bool:
        """Take no more messages; false if the thread did not do so in time."""
        self._stopping = True
        if not self.connected():
            return True
        self._ask(self._cancel)
        return self._stopped.wait(timeout)

    def finish(self, exitcode: int) -> None:
        """End Celery's worker, after the acknowledgements that are on their way."""
        end = time.monotonic() + ACK_SECONDS
        while _unanswered() and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        if self.connected():
            self._ask(lambda: self._end(exitcode))
        else:
            self._end(exitcode)

    def attach(self, consumer: Any) -> None:
        """A connection is there. Called by Celery, in its thread, at each new one."""
        self._consumer = consumer
        self._outages.works("broker")
        if getattr(consumer, "hub", None) is None:  # a transport without an event loop: nothing can be asked of it
            return
        self._ticked = time.monotonic()
        consumer.timer.call_repeatedly(TICK_SECONDS, self._tick)
        consumer.hub.add_reader(self._read_end, self._answer)
        if self._stopping:
            self._cancel()

    def detach(self, _: Any) -> None:
        """The connection is lost or closed."""
        self._consumer = None
        self._ticked = 0.0
        if not self._stopping:
            self._outages.failed("broker", "the connection is lost")

    def _ask(self, what: Callable[[], None]) -> None:
        self._asked.append(what)
        try:
            os.write(self._write_end, b"!")
        except BlockingIOError:  # it is full, so the loop will wake up
            return

    def _answer(self, *_: Any) -> None:
        os.read(self._read_end, 4096)
        while self._asked:
            self._asked.popleft()()

    def _tick(self) -> None:
        self._ticked = time.monotonic()

    def _cancel(self) -> None:
        if self._consumer is not None and self._consumer.task_consumer is not None:
            self._consumer.task_consumer.cancel()
        self._stopped.set()

    @staticmethod
    def _end(exitcode: int) -> None:
        from celery.worker import state

        state.should_stop = exitcode


def _unanswered() -> int:
    """How many messages Celery has neither acknowledged nor put back."""
    from celery.worker import state

    return len(state.reserved_requests)


def watch(app: Celery, intake: Intake) -> None:
    """Have an application's worker tell `intake` of its connections."""
    from celery import bootsteps

    class Watch(bootsteps.StartStopStep):  # type: ignore[misc]
        """Starts at each new connection, before messages are taken."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            """Connected."""
            intake.attach(parent)

        def stop(self, parent: Any) -> None:
            """Connection lost, or the worker ends."""
            intake.detach(parent)

        def shutdown(self, parent: Any) -> None:
            """The worker has ended."""

    app.steps["consumer"].add(Watch)
