"""The process's connection to the fleet, and what the application does with it."""

import logging
from functools import cache, partial

from django.db import transaction

from classifleet.producer import Fleet, QueueFull, ResultExpired, ResultTimeout, Unavailable, UnknownJob

from .models import Picture

MODELS = ("imagenet", "nsfw")
log = logging.getLogger(__name__)


@cache
def get_fleet() -> Fleet:
    """One for the process and all its threads; the broker is in CLASSIFLEET_BROKER_URL.

    It may be made before gunicorn forks (`--preload`): nothing is connected before the first call, and a forked
    process opens sockets of its own.
    """
    return Fleet()


def add(url: str) -> Picture:
    """Store a picture and classify it once the transaction around this has committed.

    A transaction that is rolled back enqueues nothing. One that has committed has its picture enqueued, at the
    latest by `refresh`: the id is in the row, so repeating is harmless. A `QueueFull` comes out of the commit.
    """
    picture = Picture.objects.create(url=url)
    transaction.on_commit(partial(enqueue, picture))
    return picture


def enqueue(picture: Picture) -> None:
    """Enqueue a picture; with the same id it is the same job, however often this is called.

    Raises:
        QueueFull: The fleet has more work than it may have; nothing was taken.
    """
    try:
        get_fleet().submit(picture.url, models=MODELS, id=picture.id)
    except Unavailable as error:
        log.warning("picture %s is not enqueued yet: %s", picture.id, error)


def refresh(picture: Picture, wait_seconds: float = 0) -> None:
    """Take over the answer if there is one; enqueue again what never arrived."""
    try:
        picture.take(get_fleet().handle(picture.id).result(timeout=wait_seconds))
    except UnknownJob:
        try:
            enqueue(picture)
        except QueueFull as error:
            log.warning("picture %s is not enqueued yet: %s", picture.id, error)
    except ResultExpired:
        picture.status, picture.error = Picture.Status.FAILED, "expired"
        picture.save()
    except (ResultTimeout, Unavailable) as error:
        log.info("picture %s is not known yet: %s", picture.id, error)
