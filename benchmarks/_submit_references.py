"""A producer in a process of its own, without torch: submits so many references as one job.

_submit_references.py URL JOB COUNT SINK
"""

from __future__ import annotations

import sys
from typing import Final

from classifleet.producer import Fleet

REF: Final = "https://images.example.com/uploads/2026/11/{:08d}.jpg"
WINDOW_CHUNKS: Final = 200  # a second or two of the worker: so the producer is paced by it nearly from the beginning


def main(url: str, job: str, count: int, sink: str) -> None:
    """Submit, and wait until all is done, so that its memory can be looked at until then."""
    with Fleet(url, submission_window=WINDOW_CHUNKS) as fleet:
        refs = (REF.format(number) for number in range(count))
        fleet.submit_many(refs, models="null", sink=sink, job_id=job).wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
