"""Fleet-wide duties: what no single chunk's worker can do.

    leases      what a silent worker held is queued again               one process at a time
    messages    what the broker lost is published again                 one process at a time
    upkeep      silent producers, expired jobs, forgotten images        one process at a time
    finaliser   cancelled images get records, jobs get manifests        one process for sinks, one for the rest
    parked      chunks that no worker understood are looked at again    every worker

It imports no torch, so that `classifleet exporter` does it too.
"""

from classifleet.worker.reconciler.threads import Reconciler

__all__ = ["Reconciler"]
