"""How much room work takes, when to try again, and how items are gathered: tables."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import Settings, SettingsError
from classifleet.ledger import Put, PutReply
from classifleet.producer._request import GROUP_BYTES, Chunker, Request, make_request
from classifleet.producer._room import LONGEST_RETRY_SECONDS, lacks, queue_full, record_room, retry_after

BULK = "classify.default.bulk"
MEBIBYTE = 1 << 20


def request(**given: Any) -> Request:
    options: Any = given
    sink = options.pop("sink", None)
    models = options.pop("models", "m")
    settings = Settings.load(broker_url="memory://")
    return make_request(settings, job="j", models=models, options=options, lane="bulk", sink=sink)


@pytest.mark.parametrize(
    ("queued_images", "done_rate", "seconds"),
    [
        (0, 0.0, 60.0),  # nothing moves
        (1_000_000, 0.0, 60.0),
        (0, 100.0, 1.0),
        (10_000, 1_000.0, 1.0),  # a tenth of a second, at least one
        (10_000, 50.0, 2.0),
        (1_000_000, 400.0, 25.0),
        (10_000_000, 400.0, 60.0),
        (10_000_000, -1.0, 60.0),
    ],
)
def test_a_hundredth_of_the_backlog_is_waited_for(queued_images: int, done_rate: float, seconds: float) -> None:
    assert retry_after(queued_images, done_rate) == seconds


@pytest.mark.parametrize(
    ("options", "images", "room"),
    [
        ({}, 1, 1_200),  # as measured
        ({}, 32, 38_400),
        ({"models": ["a", "b"]}, 1, 1_800),
        ({"top_k": 1}, 1, 800),
        ({"scores": "all"}, 1, 60_600),
        ({"scores": "all", "models": ["a", "b"]}, 2, 241_200),
        ({"top_k": 10_000}, 1, 60_600),  # no more than all of them
        ({"sink": "file:///out"}, 32, 0),
        ({"sink": "file:///out", "scores": "all"}, 32, 0),
    ],
)
def test_the_room_that_records_will_take(options: dict[str, Any], images: int, room: int) -> None:
    assert record_room(request(**options), images) == room


@pytest.mark.parametrize(
    ("reply", "lacking"),
    [
        (PutReply(Put.QUEUED), ""),
        (PutReply(Put.CONFLICT), ""),
        (PutReply(Put.WINDOW), "window"),
        (PutReply(Put.FULL, "queue", 9, BULK), "queue"),
        (PutReply(Put.FULL, "memory", 9, BULK), "memory"),
    ],
)
def test_what_a_refusal_lacks(reply: PutReply, lacking: str) -> None:
    assert lacks(reply) == lacking


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("queue", ["CLASSIFLEET_MAX_QUEUED_IMAGES=10000000", "add workers"]),
        ("memory", ["CLASSIFLEET_MAX_MEMORY_SHARE=0.8", "sink"]),
        ("blobs", ["CLASSIFLEET_BLOB_MAX_TOTAL_BYTES=268435456", "CLASSIFLEET_CLAIM_STORE"]),
        ("window", ["CLASSIFLEET_SUBMISSION_WINDOW=10000", "wait"]),
    ],
)
def test_the_error_says_what_and_how_much_and_when(lacking: str, said: list[str]) -> None:
    error = queue_full(request(), Settings.load(broker_url="memory://"), lacking, 1_000_000, 400.0)
    assert error.retry_after_seconds == 25.0
    for words in [*said, f"1000000 images wait in {BULK}", "try again in 25 s"]:
        assert words in str(error)
    stuck = queue_full(request(), Settings.load(broker_url="memory://"), lacking, 5, 0.0)
    assert stuck.retry_after_seconds == LONGEST_RETRY_SECONDS


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ("", (10_000, 10_000_000, 10_000_000)),
        ("bulk=7", (10_000, 7, 7)),
        ("interactive=0,bulk=7", (0, 7, 7)),
        ("classify.gpu.bulk=5", (10_000, 10_000_000, 5)),
        ('{"bulk": 7, "classify.gpu.bulk": 0}', (10_000, 7, 0)),
    ],
)
def test_limits_by_lane_and_by_queue(given: str, limits: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSIFLEET_MAX_QUEUED_IMAGES", given)
    settings = Settings.load(broker_url="memory://")
    queues = ("classify.gpu.interactive", BULK, "classify.gpu.bulk")
    assert tuple(map(settings.queue_limit, queues)) == limits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_queued_images", "bluk=7"),
        ("max_queued_images", "bulk=many"),
        ("max_queued_images", "bulk=-1"),
        ("max_memory_share", "1.1"),
        ("durability", "wait"),
        ("durability", "wait:0"),
        ("durability", "all"),
        ("claim_store", "s3://"),
        ("claim_store", "/folder"),
        ("open_job_ttl_seconds", "5"),
    ],
)
def test_wrong_values_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"CLASSIFLEET_{name.upper()}", value)
    with pytest.raises(SettingsError, match=name):
        Settings.load(broker_url="memory://")


@pytest.mark.parametrize(("value", "replicas"), [("none", 0), ("wait:1", 1), ("wait:12", 12)])
def test_durability_is_a_number_of_replicas(value: str, replicas: int) -> None:
    assert Settings.load(broker_url="memory://", durability=value).replicas == replicas


# --- what is gathered for one round trip ------------------------------------------------------------------------


def groups(items: Any, size: int = 4) -> list[list[int]]:
    """Items per chunk, per group."""
    chunker = Chunker(request(), Settings.load(broker_url="memory://"), size)
    return [[len(chunk.payload.items) for chunk in group] for group in chunker.groups(items)]


def test_light_items_travel_sixteen_chunks_at_a_time() -> None:
    assert groups(f"https://example.com/{number}" for number in range(70)) == [[4] * 16, [4, 2]]


def test_heavy_items_travel_in_whole_chunks(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert groups(b"x" * (GROUP_BYTES // 8) for _ in range(18)) == [[4, 4], [4, 4], [2]]
    assert groups(b"x" * GROUP_BYTES for _ in range(5)) == [[4], [1]]
    assert groups([tmp_path / "a"] * 9) == [[4], [4], [1]]
    assert groups([(str(n), b"x" * GROUP_BYTES) for n in range(5)]) == [[4], [1]]
    assert groups([("a", "data:;base64," + "A" * GROUP_BYTES)] + [str(n) for n in range(8)]) == [[4], [4, 1]]


def test_hundreds_of_images_of_a_mebibyte_are_never_in_memory_together() -> None:
    def items() -> Iterator[bytes]:
        for number in range(400):
            yield number.to_bytes(4, "big") + bytes(MEBIBYTE - 4)

    chunker = Chunker(request(), Settings.load(broker_url="memory://"), None)
    tracemalloc.start()
    try:
        images = sum(len(chunk.payload.items) for group in chunker.groups(items()) for chunk in group)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images == 400
    assert peak < 80 * MEBIBYTE  # one chunk of 32, and the next one as it is gathered
