"""How fast a large job is cancelled: until nothing of it is given out any more, and until every image has its record.

    .venv/bin/python benchmarks/cancel.py [--images 1000000] [--sink] [--json FILE]

On an embedded Redis, with one reconciler and no worker. With --sink the records go to parts in a temporary folder.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks._outcome import Outcome, arguments

from classifleet.config import Keys, Settings
from classifleet.config.celery_app import Publisher
from classifleet.ledger import Ledger, SyncRunner, connect
from classifleet.producer import Fleet
from classifleet.producer.embedded import embedded_redis
from classifleet.worker.reconciler.context import Context
from classifleet.worker.reconciler.finaliser import Finaliser
from classifleet.worker.sink import Sinks

STATE_SECONDS: Final = 1.0
RECORDS_SECONDS: Final = 60.0


def main() -> None:
    """Submit, cancel, and write all records."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--sink", action="store_true")
    options = parser.parse_args()
    outcome = Outcome("cancel", "Cancel")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sink = f"file://{folder}" if options.sink else None
        url = stack.enter_context(embedded_redis())
        fleet = stack.enter_context(Fleet(url, submission_window=1_000_000_000))
        names = ((f"upload-{n}", f"s3://uploads-of-a-customer/2026/11/22/{n:012d}.jpg") for n in range(options.images))
        job = fleet.submit_many(names, models="imagenet", sink=sink)
        settings = Settings.load(broker_url=url, sink_allow=[f"file://{folder}"])
        finaliser = make_finaliser(stack, settings, with_sink=options.sink)
        start, cpu = time.perf_counter(), time.process_time()
        job.cancel()
        state = time.perf_counter() - start
        while job.progress().by_code.get("cancelled", 0) < options.images:
            finaliser.round()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    conclude(outcome, options.images, state, seconds, cpu)
    outcome.write(options.json)


def conclude(outcome: Outcome, images: int, state: float, seconds: float, cpu: float) -> None:
    """The figures, in seconds from the call on, and the verdicts.

    Args:
        outcome: Gets them.
        images: Of the job.
        state: Until nothing of it was given out any more.
        seconds: Until all records were written.
        cpu: What that took of a core.
    """
    rows = [
        ["nothing more is begun after", f"{1000 * state:.1f} ms"],
        ["every record is written after", f"{seconds:.1f} s"],
        ["records a second", f"{images / seconds:,.0f}"],
        ["records a second of a core", f"{images / cpu:,.0f}"],
    ]
    outcome.table(f"A job of {images:,} images, cancelled", ["", "found"], rows)
    for what, found, limit in (("its state", state, STATE_SECONDS), ("its records", seconds, RECORDS_SECONDS)):
        name = f"cancel of {images:,}: {what}"
        outcome.target(name, f"within {limit:g} s", f"{found:.3f} s", met=found <= limit)


def make_finaliser(stack: contextlib.ExitStack, settings: Settings, *, with_sink: bool) -> Finaliser:
    """The duty alone, without its thread."""
    runner = SyncRunner(connect(settings), settings.ledger_url())
    publisher = Publisher(settings)
    stack.callback(runner.close)
    stack.callback(publisher.close)
    context = Context(Ledger(Keys(settings.namespace)), runner, publisher, Sinks(settings), settings, "benchmark")
    return Finaliser(context, with_sink=with_sink)


if __name__ == "__main__":
    main()
