"""How a worker ends: SIGTERM and Ctrl-C (SIGINT) both finish what is at work, and exit with 0.

What Celery (5.7) does by itself: it handles signals from the time when its pool starts, which is after our models
are loaded; before that SIGTERM kills the process. Its handler of SIGINT drains like that of SIGTERM and then exits
with 1. A second SIGINT, or SIGQUIT, drops what is at work.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery


def end_while_loading() -> None:
    """Until Celery takes over, end at once: nothing is at work yet."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def install(app: Celery) -> None:
    """Have an application's workers exit with 0 on Ctrl-C."""
    from celery import bootsteps
    from celery.apps.worker import install_worker_int_handler

    class Interruptible(bootsteps.StartStopStep):  # type: ignore[misc]
        """Starts after Celery has installed its handlers, and before the worker consumes."""

        def start(self, parent: Any) -> None:
            install_worker_int_handler(parent, exitcode=0)

        def stop(self, parent: Any) -> None:
            """There is nothing to stop."""

        def terminate(self, parent: Any) -> None:
            """There is nothing to end."""

    app.steps["worker"].add(Interruptible)


def _end(*_: Any) -> None:
    """Without the usual way out, which would wait for the model that is being loaded: nothing can interrupt that."""
    os._exit(0)
