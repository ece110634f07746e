"""How fast a large job is cancelled: until nothing of it is given out any more, and until every image has its record.

    .venv/bin/python benchmarks/cancel.py [--images 1000000] [--sink]

On an embedded Redis, with one reconciler and no worker. With --sink the records go to parts in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

from classifleet.config import Keys, Settings
from classifleet.config.celery_app import Publisher
from classifleet.ledger import Ledger, SyncRunner, connect
from classifleet.producer import Fleet
from classifleet.producer.embedded import embedded_redis
from classifleet.worker.reconciler.context import Context
from classifleet.worker.reconciler.finaliser import Finaliser
from classifleet.worker.sink import Sinks


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--sink", action="store_true")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sink = f"file://{folder}" if arguments.sink else None
        url = stack.enter_context(embedded_redis())
        fleet = stack.enter_context(Fleet(url, submission_window=1_000_000_000))
        names = (
            (f"upload-{n}", f"s3://uploads-of-a-customer/2026/11/22/{n:012d}.jpg") for n in range(arguments.images)
        )
        job = fleet.submit_many(names, models="imagenet", sink=sink)
        settings = Settings.load(broker_url=url, sink_allow=[f"file://{folder}"])
        finaliser = make_finaliser(stack, settings, with_sink=arguments.sink)
        start, cpu = time.perf_counter(), time.process_time()
        job.cancel()
        state = time.perf_counter() - start
        while job.progress().by_code.get("cancelled", 0) < arguments.images:
            finaliser.round()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{arguments.images:,} images cancelled: nothing more is begun after {1000 * state:.1f} ms, "
        f"every record is written after {seconds:.1f} s ({arguments.images / seconds:,.0f}/s, "
        f"{arguments.images / cpu:,.0f}/s per core)"
    )


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
