"""A producer that submits one job and may be killed in the middle.

python -m tests.chaos.producer BROKER LEDGER NAMESPACE JOB CHUNK_SIZE ITEMS (a file: a JSON array of [id, reference])
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from classifleet.producer import Fleet
from tests.chaos.model import MODEL

WINDOW_CHUNKS = 40  # so that it has to wait for the workers, and can be killed in the middle


def main(broker: str, ledger: str, namespace: str, job: str, chunk_size: str, items: str) -> None:
    """Submit, and end."""
    pairs = [(name, ref) for name, ref in json.loads(Path(items).read_text())]
    with Fleet(broker, redis_url=ledger, namespace=namespace, submission_window=WINDOW_CHUNKS) as fleet:
        fleet.submit_many(pairs, models=MODEL, job_id=job, chunk_size=int(chunk_size))


if __name__ == "__main__":
    main(*sys.argv[1:])
