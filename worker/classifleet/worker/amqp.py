"""Celery's consumer without what it adds for quorum queues of RabbitMQ.

For them it declares 28 queues more, to deliver tasks later; ours are always for now.
"""

from __future__ import annotations

from celery.worker.consumer import Consumer as CelerysConsumer


class Consumer(CelerysConsumer):  # type: ignore[misc]
    """The consumer for RabbitMQ; the setting `worker_consumer` names it."""

    class Blueprint(CelerysConsumer.Blueprint):  # type: ignore[misc]
        """Its steps."""

        default_steps = tuple(
            step for step in CelerysConsumer.Blueprint.default_steps if not str(step).endswith(":DelayedDelivery")
        )
