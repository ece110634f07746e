"""What differs between brokers: options of kombu's transports, names of queues, and what is missing."""

from __future__ import annotations

from typing import Any, Final

from classifleet.config.errors import MissingExtra, SettingsError
from classifleet.config.keys import Keys
from classifleet.config.settings import Settings
from classifleet.config.urls import is_redis, mask_url

# A worker that is silent for so many leases loses its messages to others. The lease has run out by then, so that
# whoever gets the message may begin the chunk.
VISIBILITY_LEASES: Final = 1.25

# Redelivery is the ledger's business (see docs/guarantees.md); these only make the stock transport behave.
_REDIS_OPTIONS: Final[dict[str, Any]] = {
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "unacked_restore_limit": 100,
    "priority_steps": [0],  # one list a queue: lanes are queues, not priorities
    "queue_order_strategy": "priority",  # interactive is listed first
    "socket_keepalive": True,
    "socket_timeout": 15,
    "health_check_interval": 10,
}
STOCK_VISIBILITY_SECONDS: Final = 300  # nothing renews it there

AMQP_QUEUE: Final[dict[str, Any]] = {"x-queue-type": "quorum"}  # of RabbitMQ; it survives the loss of a node


def scheme(url: str) -> str:
    """The part of a broker's URL that chooses the transport."""
    return url.partition("://")[0].partition("+")[0]


def is_amqp(url: str) -> bool:
    """Whether the broker is RabbitMQ, or speaks its language."""
    return scheme(url) in ("amqp", "amqps", "pyamqp")


def is_sqs(url: str) -> bool:
    """Whether the broker is Amazon SQS."""
    return scheme(url).lower() == "sqs"


def transport_options(settings: Settings, url: str, connect_timeout_seconds: float) -> dict[str, Any]:
    """Options for kombu's transport of this URL."""
    if is_redis(url):
        return _redis_options(settings, connect_timeout_seconds)
    if is_amqp(url):
        return {"confirm_publish": True}
    if is_sqs(url):
        return {"visibility_timeout": STOCK_VISIBILITY_SECONDS, "wait_time_seconds": 5, "polling_interval": 0.2}
    return {}


def _redis_options(settings: Settings, connect_timeout_seconds: float) -> dict[str, Any]:
    atomic = settings.transport == "atomic"
    return {
        **_REDIS_OPTIONS,
        "global_keyprefix": Keys(settings.namespace).broker,
        "visibility_timeout": settings.lease_seconds * VISIBILITY_LEASES if atomic else STOCK_VISIBILITY_SECONDS,
        "socket_connect_timeout": connect_timeout_seconds,
    }


def broker_queue(settings: Settings, url: str, queue: str) -> str:
    """A queue's name at the broker. On Redis the namespace is in the prefix of all keys."""
    return queue if is_redis(url) else _prefix(settings) + queue


def woken(queue: str) -> str:
    """The list beside a queue on Redis where a message goes that wakes a blocked worker, until the next turn."""
    return f"{queue}:woken"


def ledger_queue(settings: Settings, name: str) -> str:
    """The queue of a name at the broker."""
    return name.removeprefix(_prefix(settings))


def _prefix(settings: Settings) -> str:
    return f"classifleet.{settings.namespace}."


def require_transport(url: str) -> None:
    """Refuse a broker that cannot be used.

    Raises:
        SettingsError: kombu has no transport of this name.
        MissingExtra: It has, and what that needs is not installed.
    """
    from kombu.transport import get_transport_cls

    try:
        # Of a name with a dot kombu would make a module, and import it; with Sentinel it needs more than a URL.
        if not scheme(url).isalnum() or scheme(url) == "sentinel":
            raise KeyError(scheme(url))
        get_transport_cls(scheme(url))
    except ImportError as error:
        if is_sqs(url):
            raise MissingExtra("sqs", f"the broker {mask_url(url)}") from error
        raise SettingsError(f"the broker {mask_url(url)} needs a package that is not installed: {error}") from error
    except (KeyError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"{mask_url(url)} is not a broker that can be used: its URL starts with {scheme(url)}://, and not with "
            "redis://, rediss://, unix://, amqp://, amqps:// or sqs://"
        ) from error
