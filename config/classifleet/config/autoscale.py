"""How many replicas a queue needs.

    outstanding = queued + running                                              images
    target      = max(floor(images_per_second x drain_seconds), window_images)  images a replica
    replicas    = ceil(outstanding / target), at least `least`, at most `most`

What each is, and why:

- *Outstanding images*, not messages: a message carries 1 to 256 images. Queued and running, not queued alone: what a
  killed worker held is running until its lease ends, and a fleet at zero must wake for it. Parked images are left
  out: no worker that could be started understands them. The exporter's `/queues.json` has it as `outstanding_images`.
- *images_per_second* of one replica with full batches (`benchmarks/fleet.py` measures it), and *drain_seconds*, the
  time in which a backlog shall be gone: so many replicas do so many images in that time.
- *window_images*, what one replica holds at a time (`chunks_in_flight x chunk_size`). A smaller target would have the
  fleet ask for more replicas because of what it has already taken, and so grow without any backlog; thus the target is
  never smaller. One of twice the window or more lets the fleet shrink while its windows are full.

KEDA and a HorizontalPodAutoscaler compute the same from an external metric of type `AverageValue` with
`outstanding_images` as its value and `target_images(...)` as its target, `minReplicaCount` as `least` (0: KEDA itself
starts the first replica when the value is above zero, and ends the last) and `maxReplicaCount` as `most`. They differ
only in time: HPA leaves a fleet alone that is within a tenth of the answer, and limits how fast it grows and shrinks.
"""

from __future__ import annotations

import math
from decimal import Decimal


def target_images(images_per_second: float, drain_seconds: float, window_images: int) -> int:
    """Outstanding images a replica: the `targetValue` of a scaler.

    Args:
        images_per_second: What one replica does with full batches.
        drain_seconds: In which a backlog shall be gone.
        window_images: What one replica holds at a time.

    Raises:
        ValueError: One of them is not positive.
    """
    if not (0 < images_per_second < math.inf and 0 < drain_seconds < math.inf and window_images > 0):
        raise ValueError("images_per_second, drain_seconds and window_images must be positive")
    # In decimals, as Helm's mulf multiplies: 0.29 x 100 is 29, of which floats make 28.
    return max(math.floor(Decimal(str(images_per_second)) * Decimal(str(drain_seconds))), window_images)


def replicas(
    queued: int,
    running: int,
    *,
    images_per_second: float,
    drain_seconds: float,
    window_images: int,
    least: int = 0,
    most: int,
) -> int:
    """How many replicas there should be.

    Args:
        queued: Images that wait.
        running: Images under a lease, also of workers that have died.
        images_per_second: What one replica does with full batches.
        drain_seconds: In which a backlog shall be gone.
        window_images: What one replica holds at a time.
        least: Replicas that stay without work.
        most: Replicas that there may be; at least one.

    Raises:
        ValueError: A number is negative, or `least` is above `most`, or `most` is 0.
    """
    if queued < 0 or running < 0 or not 0 <= least <= most or most < 1:
        raise ValueError("expected queued >= 0, running >= 0, 0 <= least <= most, most >= 1")
    target = target_images(images_per_second, drain_seconds, window_images)
    wanted = -(-(queued + running) // target)  # the quotient rounded up, exact for any number of images
    return max(least, min(wanted, most))
