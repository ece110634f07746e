"""A worker or an exporter in which a part breaks, so that a test sees what its probes say.

python -m tests.observability.sabotage worker      reads from the pipe SABOTAGE, a line each, what is to break
python -m tests.observability.sabotage exporter    its threads end at once
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any, NoReturn

from classifleet.producer.cli import main

STILL_SECONDS = 3.5


def end(*_: Any) -> NoReturn:
    """Ends a thread without a word, past every `except Exception`."""
    sys.exit()


def consumer_still(runtime: Any) -> None:
    runtime.intake._ask(lambda: time.sleep(STILL_SECONDS))


def loop_still(runtime: Any) -> None:
    runtime._parts.pulse._loop.call_soon_threadsafe(time.sleep, STILL_SECONDS)


def loop_dead(runtime: Any) -> None:
    loop = runtime._parts.pulse._loop
    loop.call_soon_threadsafe(loop.stop)


def leases_dead(runtime: Any) -> None:
    runtime._parts.leases._hand_back = end


def device_dead(runtime: Any) -> None:
    runtime._parts.device._next = lambda: None  # ended without a word: an error would be a lost device
    runtime._parts.device.call(int)  # it looks for what is next


def chunks_still(runtime: Any) -> None:
    def stay() -> None:
        with runtime.chunks.in_flight.one():
            threading.Event().wait()

    threading.Thread(target=stay, daemon=True).start()


def obey() -> None:
    with open(os.environ["SABOTAGE"]) as orders:  # noqa: PTH123 - a pipe
        for order in orders:
            from classifleet.worker.app import runtime

            globals()[order.strip()](runtime)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        threading.Thread(target=obey, daemon=True).start()
    else:
        from classifleet.worker.overview import Overview
        from classifleet.worker.reconciler import Reconciler

        Overview.look = Reconciler.round = end  # type: ignore[assignment, method-assign]
    main()
