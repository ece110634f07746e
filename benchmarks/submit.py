"""How fast one core enqueues: references per second through `submit_many`, and the producer's memory.

    .venv/bin/python benchmarks/submit.py [--references 1000000] [--broker-url redis://…]

Without a broker an embedded Redis is started. No worker runs, so the submission window is opened wide.
The rate per core divides by the CPU seconds of this process, since Redis runs on another core.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from classifleet.producer import Fleet
from classifleet.producer.embedded import embedded_redis

SAMPLES = 10


def main() -> None:
    """Print one line per tenth of the references, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=int, default=1_000_000)
    parser.add_argument("--broker-url")
    parser.add_argument("--chunk-size", type=int, default=32)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = arguments.broker_url or stack.enter_context(embedded_redis())
        fleet = stack.enter_context(Fleet(url, submission_window=1_000_000_000))
        fleet.submit("https://example.com/warm-up.jpg", models="imagenet")
        start, cpu = time.perf_counter(), time.process_time()
        job = fleet.submit_many(references(arguments.references), models="imagenet", chunk_size=arguments.chunk_size)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        accepted = job.progress().accepted
    print(f"{accepted} references in {seconds:.1f} s: {accepted / seconds:,.0f}/s, {accepted / cpu:,.0f}/s per core")


def references(count: int) -> Iterator[tuple[str, str]]:
    """References of a usual length; reports memory and rate as they are consumed."""
    last = time.perf_counter()
    for number in range(count):
        if number and number % (count // SAMPLES) == 0:
            now = time.perf_counter()
            print(f"{number:>10,}  {count / SAMPLES / (now - last):>9,.0f}/s  {resident_mib():7.1f} MiB", flush=True)
            last = now
        yield f"upload-{number}", f"s3://uploads-of-a-customer/2026/11/22/{number:012d}/original.jpg"


def resident_mib() -> float:
    """Memory of this process now, in MiB (its peak where the kernel does not say)."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
