"""A producer that submits one job and may be killed in the middle.

python -m tests.chaos.producer BROKER LEDGER NAMESPACE JOB CHUNK_SIZE ITEMS (a file: a JSON array of [id, reference])
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from classifleet.producer import Fleet
from tests.chaos.model import MODEL


def main(broker: str, ledger: str, namespace: str, job: str, chunk_size: str, items: str) -> None:
    """Submit, and end."""
    with Fleet(broker, redis_url=ledger, namespace=namespace) as fleet, Path(items).open() as file:
        pairs = [(name, ref) for name, ref in json.load(file)]
        fleet.submit_many(pairs, models=MODEL, job_id=job, chunk_size=int(chunk_size))


if __name__ == "__main__":
    main(*sys.argv[1:])
