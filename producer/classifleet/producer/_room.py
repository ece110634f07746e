"""How much room work takes, and what to say to a producer when there is none. Pure functions."""

from __future__ import annotations

from typing import Final

from classifleet.config import QueueFull, Settings
from classifleet.ledger import Put, PutReply
from classifleet.producer._request import Request

# Measured: a record of one model with its top five classes has 1.1 to 1.2 KB in Redis.
RECORD_BYTES: Final = 600
ANSWER_BYTES: Final = 100
PREDICTION_BYTES: Final = 100
ALL_SCORES_BYTES: Final = 60_000  # a model of a thousand classes

DRAINED_SHARE: Final = 0.01  # of the backlog; then there is room again
SHORTEST_RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 60.0

BLOBS: Final = "blobs"  # what a refusal lacks, beside the ledger's `queue` and `memory`
WINDOW: Final = "window"


def record_room(request: Request, images: int) -> int:
    """Bytes of Redis that the records of so many images will take; 0 with a sink."""
    if request.sink:
        return 0
    options = request.options
    answer = min(ANSWER_BYTES + PREDICTION_BYTES * options.top_k, ALL_SCORES_BYTES)
    if options.scores == "all":
        answer = ALL_SCORES_BYTES
    return images * (RECORD_BYTES + answer * len(request.models))


def retry_after(queued_images: int, done_rate: float) -> float:
    """Seconds until a hundredth of a backlog is worked off, at images per second; 1 to 60, 60 if nothing moves."""
    if done_rate <= 0:
        return LONGEST_RETRY_SECONDS
    seconds = queued_images * DRAINED_SHARE / done_rate
    return min(LONGEST_RETRY_SECONDS, max(SHORTEST_RETRY_SECONDS, seconds))


def lacks(reply: PutReply) -> str:
    """What there was too little of; empty if the chunk was not refused for want of room."""
    if reply.outcome is Put.WINDOW:
        return WINDOW
    return reply.lacks if reply.outcome is Put.FULL else ""


def queue_full(request: Request, settings: Settings, lacking: str, queued_images: int, done_rate: float) -> QueueFull:
    """The error that says which limit was met, how much is queued, and what can be done."""
    seconds = retry_after(queued_images, done_rate)
    match lacking:
        case "memory":
            full, name, limit = "Redis is full up to its share", "MAX_MEMORY_SHARE", settings.max_memory_share
            remedy = "raise its maxmemory, or give bulk jobs a sink"
        case "blobs":
            full, name = "the images parked in Redis are at their limit of bytes", "BLOB_MAX_TOTAL_BYTES"
            limit, remedy = settings.blob_max_total_bytes, "park them in an object store (CLASSIFLEET_CLAIM_STORE)"
        case "window":
            full, name = "the job is at its limit of queued chunks", "SUBMISSION_WINDOW"
            limit, remedy = settings.submission_window, "wait longer"
        case _:
            full, name = "the queue is at its limit of images", "MAX_QUEUED_IMAGES"
            limit, remedy = settings.queue_limit(request.queue), "add workers"
    return QueueFull(
        f"{full} (CLASSIFLEET_{name}={limit}); {queued_images} images wait in {request.queue}: "
        f"try again in {seconds:.0f} s, or {remedy}",
        retry_after_seconds=seconds,
    )
