"""The signals that end a worker: SIGTERM and Ctrl-C (SIGINT). See `drain.py` for what they do. SIGHUP ends nothing.

What Celery (5.7) does by itself, and why it is not enough: it handles signals from the time when its pool starts,
which is after our models are loaded; its warm shutdown waits without bound for the threads of its pool, and ignores a
second SIGTERM on threads; after SIGINT it exits with 1.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from classifleet.worker.exits import EXIT_OK, POLITELY
from classifleet.worker.intake import watch

if TYPE_CHECKING:
    from celery import Celery

    from classifleet.worker.runtime import Runtime

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_while_loading() -> None:
    """Until the worker consumes, end at once: nothing is at work yet."""
    for number in SIGNALS:
        signal.signal(number, _end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the repository is looked at anyway


def install(app: Celery, runtime: Runtime) -> None:
    """Have signals drain an application's worker."""
    from celery import bootsteps

    class Draining(bootsteps.StartStopStep):  # type: ignore[misc]
        """Starts after Celery has installed its handlers, and before the worker consumes."""

        def start(self, parent: Any) -> None:
            """Take the signals over."""
            for number in SIGNALS:
                signal.signal(number, lambda number, _: runtime.drain.request(signal.Signals(number).name))
            signal.signal(signal.SIGHUP, lambda *_: runtime.look_for_models())

        def stop(self, parent: Any) -> None:
            """There is nothing to stop."""

        def terminate(self, parent: Any) -> None:
            """There is nothing to end."""

    app.steps["worker"].add(Draining)
    watch(app, runtime.intake)


def _end(*_: Any) -> None:
    """Without the usual way out, which would wait for the model that is being loaded: nothing can interrupt that."""
    for call in POLITELY:
        call()
    os._exit(EXIT_OK)
