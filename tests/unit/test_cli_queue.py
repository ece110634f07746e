"""What `classifleet queue stats` concludes from a queue's numbers, and how it writes times."""

from datetime import timedelta

import pytest
import typer

from classifleet.ledger import QueueDepth
from classifleet.producer.cli._queue import drain_seconds, hints, is_unserved
from classifleet.producer.cli._times import duration, parse_age


def depth(**changes):
    chunks = dict.fromkeys(("queued_chunks", "leased_chunks", "parked_chunks"), 0)
    images = dict.fromkeys(("queued_images", "leased_images", "parked_images", "done_images"), 0)
    rates = {"oldest_seconds": 0.0, "accepted_rate": 0.0, "done_rate": 0.0}
    return QueueDepth(**{**chunks, **images, **rates, **changes})


@pytest.mark.parametrize(
    ("queued", "leased", "rate", "seconds"),
    [(0, 0, 0.0, 0.0), (0, 0, 5.0, 0.0), (90, 10, 5.0, 20.0), (1, 0, 0.0, None), (0, 1, 0.0, None)],
)
def test_the_time_to_drain(queued, leased, rate, seconds):
    assert drain_seconds(depth(queued_images=queued, leased_images=leased, done_rate=rate)) == seconds


@pytest.mark.parametrize(
    ("changes", "unserved"),
    [
        ({"queued_images": 5, "oldest_seconds": 60.0}, True),
        ({"queued_images": 5, "oldest_seconds": 1.0}, False),
        ({"queued_images": 5, "oldest_seconds": 60.0, "leased_images": 1}, False),
        ({"queued_images": 5, "oldest_seconds": 60.0, "done_rate": 0.1}, False),
        ({}, False),
    ],
)
def test_a_queue_that_nobody_serves(changes, unserved):
    assert is_unserved(depth(**changes)) is unserved
    assert bool(hints({"q": depth(**changes)}, 0)) is unserved


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("15m", 900), ("2h", 7200), ("7d", 604_800), ("1w", 604_800)]
)
def test_ages(text, seconds):
    assert parse_age(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "1.5h", "2 h", "1y", "9999999d"])
def test_what_is_no_age(text):
    with pytest.raises(typer.BadParameter, match="is not an age"):
        parse_age(text)
