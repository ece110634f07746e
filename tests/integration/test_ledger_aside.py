"""What is put aside: suspects, parked chunks, dead letters, jobs of silent producers; and a Redis that is full."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from classifleet.config import LedgerUnavailable
from classifleet.ledger import (
    FORGOTTEN_SECONDS,
    Begin,
    Commit,
    DeadLetter,
    Discarded,
    Parked,
    Put,
    PutReply,
    Tally,
    WorkerInfo,
)
from tests.conftest import SettingsFactory
from tests.fixtures_ledger import LONG_MS, QUEUE, REQUEST, Bench, digest, head, wait_for_next_millisecond
from tests.support import RedisServer

SHA = "ab" * 32

# --- suspects ------------------------------------------------------------------------------------------------------


def die(bench: Bench) -> None:
    assert bench.run(bench.ledger.expire_leases(QUEUE, limit=9)) == [("j", "c")]


def test_a_death_speaks_against_the_marked_image_only(bench: Bench) -> None:
    bench.put("j", "c")
    bench.begin("j", "c", lease_ms=0)
    die(bench)
    assert bench.begin("j", "c", lease_ms=0).lone_deaths == (), "it died with nothing marked"
    for attempt in (2, 3):
        assert bench.run(bench.ledger.mark("j", "c", "w1", attempt, "a"))
        assert bench.run(bench.ledger.mark("j", "c", "w1", attempt, 'b"\n'))
        assert not bench.run(bench.ledger.mark("j", "c", "w2", attempt, "c"))
        assert not bench.run(bench.ledger.mark("j", "c", "w1", attempt - 1, "c"))
        die(bench)
        lease = bench.begin("j", "c", lease_ms=0)
    assert (lease.lone_deaths, lease.deaths) == (('b"\n', 'b"\n'), 3)


@pytest.mark.parametrize("how", ["cleared", "handed back"])
def test_a_mark_that_is_gone_speaks_against_nobody(bench: Bench, how: str) -> None:
    bench.put("j", "c")
    bench.begin("j", "c", lease_ms=0)
    bench.run(bench.ledger.mark("j", "c", "w1", 1, "a"))
    if how == "cleared":
        bench.run(bench.ledger.mark("j", "c", "w1", 1, ""))
    else:
        bench.run(bench.ledger.hand_back("w1", [("j", "c", 1)]))
        bench.begin("j", "c", lease_ms=0)
    die(bench)
    lease = bench.begin("j", "c")
    assert (lease.lone_deaths, lease.deaths) == ((), 1)


# --- parked chunks -------------------------------------------------------------------------------------------------


def test_a_parked_chunk_waits_for_someone_who_understands_it(bench: Bench) -> None:
    for chunk in ("a", "b"):
        bench.put("j", chunk)
    bench.begin("j", "a", "w1")
    assert not bench.run(bench.ledger.park("j", "a", "w2", 1))
    assert bench.run(bench.ledger.park("j", "a", "w1", 1))
    assert not bench.run(bench.ledger.park("j", "a", "w1", 1)), "once is enough"
    assert bench.put("j", "a") is Put.PARKED
    assert bench.begin("j", "a").outcome is Begin.PARKED
    assert bench.begin("j", "a", queue=QUEUE).chunk == "b", "others are not held up"
    assert bench.run(bench.ledger.parked(QUEUE, 9)) == [("j", "a")]
    bench.redis.zadd(bench.keys.queue(QUEUE, "parked"), {"x/y": 1})
    assert bench.run(bench.ledger.unpark(QUEUE, [("j", "a"), ("x", "y")])) == [("j", "a")]
    assert bench.members("parked") == []
    lease = bench.begin("j", "a")
    assert (lease.outcome, lease.attempt, lease.deaths) == (Begin.RUN, 2, 0)


# --- dead letters --------------------------------------------------------------------------------------------------


def letter(key: str, ref: str = f"blob:{SHA}") -> DeadLetter:
    body = {"job": "j", "chunk": "c", "item": {"id": key, "ref": ref}}
    return DeadLetter(key, "poison", ref, json.dumps(body))


def bury(bench: Bench, *letters: DeadLetter, most: int = 10) -> None:
    refs = [{"id": str(i), "ref": each.ref} for i, each in enumerate(letters)] + [
        {"id": "ok", "ref": f"blob:{'cd' * 32}"}
    ]
    bench.put("j", "c", payload=json.dumps({"items": refs}, separators=(",", ":")).encode(), images=len(refs))
    lease = bench.begin("j", "c", lease_ms=0)
    bench.run(bench.ledger.expire_leases(QUEUE, limit=9))
    lease = bench.begin("j", "c")
    outcome, _ = bench.commit(
        "j",
        "c",
        lease.attempt,
        tally=Tally(ok=1, failed=len(letters)),
        dead=letters,
        dead_ttl_ms=LONG_MS,
        dead_most=most,
    )
    assert outcome is Commit.COMMITTED


def blob(bench: Bench, sha: str = SHA) -> Parked:
    return bench.run(bench.ledger.put_blob("j", "c", sha, b"x" * 50, ttl_ms=1000, cap=1000))


def test_a_dead_letter_keeps_its_image_and_its_history(bench: Bench) -> None:
    assert blob(bench) is blob(bench, "cd" * 32) is Parked.STORED
    bury(bench, letter("j.c.0"))
    assert bench.run(bench.ledger.get_blob("j", "c", "cd" * 32)) is None, "the image of a good record"
    assert 1000 < bench.redis.pttl(bench.keys.blob("j", "c", SHA)) <= LONG_MS
    assert bench.run(bench.ledger.dead_letters(0, 9)) == ["j.c.0"]
    assert bench.run(bench.ledger.dead_letter_count(bench.run(bench.ledger.now()))) == 1
    kept = bench.run(bench.ledger.dead_letter("j.c.0"))
    assert kept["code"] == "poison"
    assert json.loads(kept["letter"])["item"]["id"] == "j.c.0"
    assert [json.loads(line)["ended"] for line in kept["history"].splitlines()] == ["died"]
    bench.run(bench.ledger.note_requeued("j.c.0", "again"))
    assert bench.run(bench.ledger.discard("j.c.0")) is Discarded.DROPPED
    assert bench.run(bench.ledger.discard("j.c.0")) is Discarded.UNKNOWN
    assert bench.run(bench.ledger.get_blob("j", "c", SHA)) is None
    assert int(bench.redis.get(bench.keys.shared("blob_bytes"))) == 0
    assert bench.run(bench.ledger.dead_letters(0, 9)) == []


def test_the_oldest_dead_letters_go_first_with_their_images(bench: Bench) -> None:
    blob(bench)
    bury(bench, letter("first"))
    wait_for_next_millisecond(bench)
    bench.put("j2", "c")
    bench.begin("j2", "c")
    letters = [letter("second", "s3://b/k"), letter("third", "s3://b/k")]
    bench.commit("j2", "c", dead=letters, dead_ttl_ms=LONG_MS, dead_most=2)
    assert bench.run(bench.ledger.dead_letters(0, 9)) == ["third", "second"]
    assert bench.run(bench.ledger.dead_letter("first")) == {}
    assert int(bench.redis.get(bench.keys.shared("blob_bytes"))) == 0


@pytest.mark.parametrize("body", ["not JSON", "[]", '{"item": 3}', '{"item": {"ref": "blob:ab"}}'])
def test_a_dead_letter_of_garbage_can_be_discarded(bench: Bench, body: str) -> None:
    bench.redis.hset(bench.keys.dead("k"), "letter", body)
    assert bench.run(bench.ledger.discard("k")) is Discarded.DROPPED
    assert bench.run(bench.ledger.dead_letter("k")) == {}


# --- images that were parked for nobody ----------------------------------------------------------------------------


def parked(bench: Bench, job: str, *, seconds: int = FORGOTTEN_SECONDS) -> str:
    """An image of the job's chunk `c`, parked so long ago; its key."""
    bench.run(bench.ledger.put_blob(job, "c", SHA, b"x" * 50, ttl_ms=LONG_MS, cap=1000))
    key = bench.keys.blob(job, "c", SHA)
    bench.redis.restore(key, LONG_MS, bench.redis.dump(key), replace=True, idletime=seconds)
    return key


def test_an_image_whose_producer_ended_before_it_put_the_chunk_is_taken_back(bench: Bench) -> None:
    forgotten = [parked(bench, job) for job in ("unknown", "cancelled")]
    kept = [parked(bench, job) for job in ("known", "done", "open")] + [parked(bench, "new", seconds=3000)]
    for job in ("known", "done"):
        bench.put(job, "c")
    for job in ("cancelled", "open"):
        bench.put(job, "other")
    bench.run(bench.ledger.cancel("cancelled"))
    bench.commit("done", "c", bench.begin("done", "c").attempt)  # what it drops is not looked at here
    bench.run(bench.ledger.put_blob("done", "c", SHA, b"x" * 50, ttl_ms=LONG_MS, cap=1000))
    images = bench.run(bench.ledger.parked_images(0, 99))
    assert len(images) == 6
    calls = [bench.ledger.take_back_blobs(*image[:2], image[2:], idle_seconds=FORGOTTEN_SECONDS) for image in images]
    assert sum(bench.runner.run_all(calls)) == 2
    assert [bench.redis.exists(key) for key in forgotten + kept] == [0, 0, 1, 1, 1, 1]
    assert int(bench.redis.get(bench.keys.shared("blob_bytes"))) == 4 * 50
    assert len(bench.run(bench.ledger.parked_images(0, 99))) == 4


def test_the_images_of_a_chunk_that_waits_are_kept(bench: Bench) -> None:
    for job in ("waits", "new", "gone"):
        bench.run(bench.ledger.put_blob(job, "c", SHA, b"x" * 50, ttl_ms=LONG_MS, cap=1000))
    keys = [bench.keys.blob(job, "c", SHA) for job in ("waits", "new", "gone")]
    for job in ("waits", "new"):
        bench.put(job, "c")
    for key in (keys[0], keys[2]):
        bench.redis.pexpire(key, LONG_MS // 3)
    until: dict[str, Any] = {"idle_seconds": FORGOTTEN_SECONDS, "ttl_ms": LONG_MS}
    calls = [bench.ledger.take_back_blobs(job, "c", [SHA], **until) for job in ("waits", "new", "gone")]
    before = bench.redis.zscore(bench.keys.shared("blobs"), f"waits:c:{SHA}:50")
    wait_for_next_millisecond(bench)
    assert bench.runner.run_all(calls) == [0, 0, 0]
    left = [bench.redis.pttl(key) for key in keys]
    assert left[0] > LONG_MS * 2 / 3
    assert left[2] <= LONG_MS // 3, "no chunk waits for it"
    after = bench.redis.zscore(bench.keys.shared("blobs"), f"waits:c:{SHA}:50")
    assert after > before
    assert len(bench.run(bench.ledger.parked_images(0, 9))) == 3


def test_looking_at_a_parked_image_does_not_make_it_younger(bench: Bench) -> None:
    key = parked(bench, "unknown", seconds=FORGOTTEN_SECONDS - 100)
    look = bench.ledger.take_back_blobs("unknown", "c", [SHA], idle_seconds=FORGOTTEN_SECONDS)
    assert bench.run(look) == 0
    assert bench.redis.object("idletime", key) >= FORGOTTEN_SECONDS - 100


def test_the_image_of_a_dead_letter_outlives_its_job(bench: Bench) -> None:
    parked(bench, "j")
    bury(bench, letter("j.c.0"))
    key = bench.keys.blob("j", "c", SHA)
    bench.redis.restore(key, LONG_MS, bench.redis.dump(key), replace=True, idletime=9 * FORGOTTEN_SECONDS)
    bench.redis.delete(bench.keys.job("j"), bench.keys.parts("j"))  # as when its time to live has ended
    assert bench.run(bench.ledger.take_back_blobs("j", "c", [SHA], idle_seconds=FORGOTTEN_SECONDS)) == 0
    assert bench.redis.exists(key)
    assert bench.run(bench.ledger.discard("j.c.0")) is Discarded.DROPPED
    assert not bench.redis.exists(key)


# --- silent producers ----------------------------------------------------------------------------------------------


def test_a_job_without_its_producer_ends_with_what_it_has(bench: Bench) -> None:
    bench.put("j", "c1")
    bench.put("sealed", "c1", seal=True)
    assert bench.run(bench.ledger.abandon(LONG_MS, 9)) == []
    assert bench.run(bench.ledger.abandon(-1, 9)) == ["j"]
    assert bench.job("j")["state"] == "abandoned"
    bench.begin("j", "c1")
    bench.commit("j", "c1")
    fields = bench.job("j")
    assert (fields["state"], "finished_at" in fields) == ("abandoned", True)
    assert bench.put("j", "c2") is Put.ABANDONED
    assert bench.put("j", "c1") is Put.DONE


def test_a_producer_that_comes_back_in_time_goes_on(bench: Bench) -> None:
    bench.put("j", "c1")
    bench.run(bench.ledger.abandon(-1, 9))
    assert bench.put("j", "c2", seal=True) is Put.QUEUED
    assert bench.job("j")["state"] == "sealed"


def test_a_producer_that_must_wait_is_not_silent(bench: Bench) -> None:
    bench.put("j", "c1")
    before = bench.redis.zscore(bench.keys.shared("open"), "j")
    wait_for_next_millisecond(bench)
    assert bench.put("j", "c2", window=1) is Put.WINDOW
    middle = bench.redis.zscore(bench.keys.shared("open"), "j")
    wait_for_next_millisecond(bench)
    assert bench.put("j", "c2", limit=3) is Put.FULL
    assert before < middle < bench.redis.zscore(bench.keys.shared("open"), "j")


def test_a_complete_abandoned_job_is_not_opened_again_while_its_end_is_written(bench: Bench) -> None:
    bench.put("j", "c1", header=head(sink="file:///x"))
    bench.commit("j", "c1", bench.begin("j", "c1").attempt, part="p")
    bench.run(bench.ledger.abandon(-1, 9))
    assert bench.run(bench.ledger.finalisable(9)) == ["j"]
    assert bench.put("j", "c1", header=head(sink="file:///x")) is Put.DONE
    assert bench.put("j", "c2", header=head(sink="file:///x")) is Put.ABANDONED
    assert bench.seal("j") is Put.SEALED
    assert (bench.job("j")["state"], bench.counts("j")) == ("abandoned", (2, 1, 0, 2))
    assert bench.run(bench.ledger.finish("j", 1)) is False, "the caller's manifest lacks an image"
    assert bench.run(bench.ledger.finish("j", 2)) is True


def test_a_job_that_was_opened_again_is_not_ended_by_an_old_look(bench: Bench) -> None:
    bench.put("j", "c1", header=head(sink="file:///x"))
    bench.run(bench.ledger.abandon(-1, 9))
    bench.put("j", "c2", header=head(sink="file:///x"))
    assert bench.run(bench.ledger.finish("j")) is False
    assert bench.job("j")["state"] == "open"


# --- no room -------------------------------------------------------------------------------------------------------


def test_a_queue_takes_so_many_images_and_no_more(bench: Bench) -> None:
    assert bench.put("j", "c1", images=6, limit=10) is Put.QUEUED
    call = bench.ledger.put(
        "k", header=head(), request=REQUEST, chunk="c", images=5, digest=digest("c"), window=9, limit=10
    )
    assert bench.run(call) == PutReply(Put.FULL, "queue", 6, QUEUE)
    assert bench.job("k") == {}
    assert bench.put("j", "c1", images=6, limit=1) is Put.QUEUED, "what is here already is not refused"
    bench.begin("j", "c1")
    assert bench.run(call).outcome is Put.QUEUED


@pytest.fixture
def small(tmp_path: Path, settings: SettingsFactory) -> Iterator[Bench]:
    """A ledger on a Redis of 32 MiB, which refuses what is too much."""
    with RedisServer.start(tmp_path / "small", "--maxmemory", "32mb", "--maxmemory-policy", "noeviction") as server:
        bench = Bench(settings(broker_url=f"{server.url}/0"))
        yield bench
        bench.runner.close()


def stuff(bench: Bench) -> None:
    """Fill Redis to its last byte."""
    for size in (100_000, 1000, 10):
        for index in itertools.count():
            try:
                bench.redis.set(f"{bench.keys.prefix}stuffing:{size}:{index}", b"x" * size)
            except redis.exceptions.OutOfMemoryError:
                break


def test_memory_is_kept_free_for_the_records_of_what_was_accepted(small: Bench) -> None:
    put: Any = {"share": 0.5, "images": 1}
    assert small.put("j", "c1", room=4 << 20, **put) is Put.QUEUED
    assert small.put("j", "c2", room=4 << 20, **put) is Put.QUEUED
    refused: dict[str, Any] = {"chunk": "c3", "digest": digest("c3"), "room": 16 << 20}
    reply = small.run(small.ledger.put("j", header=head(), request=REQUEST, window=9, **refused, **put))
    assert (reply.outcome, reply.lacks, reply.queued_images) == (Put.FULL, "memory", 2)
    assert int(small.redis.get(small.keys.shared("room"))) == 8 << 20
    assert small.put("j", "c3", room=16 << 20, images=1, share=0.0) is Put.QUEUED, "0 turns the check off"
    blob = small.ledger.put_blob("j", "c4", SHA, b"x" * (1 << 20), ttl_ms=LONG_MS, cap=1 << 30, share=0.5)
    assert small.run(blob) is Parked.NO_MEMORY
    for chunk in ("c1", "c2", "c3"):
        small.commit("j", chunk, small.begin("j", chunk).attempt, images=1)
    assert int(small.redis.get(small.keys.shared("room"))) == 0
    assert small.run(blob) is Parked.STORED


def test_a_worker_goes_on_when_redis_is_full(small: Bench) -> None:
    """Whatever a worker or the reconciler asks works at maxmemory; only producers are refused."""
    run, ledger = small.run, small.ledger
    small.put("lost", "c")
    small.begin("lost", "c", "w1", queue=QUEUE, grant="lost")
    for chunk in ("a", "b", "c", "d", "e", "f"):
        small.put("j", chunk)
    small.put("open", "c")
    small.put("gone", "c")
    small.begin("j", "a", "w1")
    parked(small, "forgotten")
    stuff(small)
    with pytest.raises(LedgerUnavailable, match="memory"):
        small.put("j", "g")
    b, c, d = (small.begin("j", chunk, "w1", lease_ms=LONG_MS) for chunk in "bcd")
    assert b.outcome is c.outcome is d.outcome is Begin.RUN
    assert run(ledger.renew("w1", [("j", "a", 1), ("j", "b", 1)], lease_ms=LONG_MS)) == [True, True]
    assert run(ledger.mark("j", "a", "w1", 1, "image"))
    assert run(ledger.park("j", "b", "w1", 1))
    assert run(ledger.unpark(QUEUE, [("j", "b")])) == [("j", "b")]
    assert run(ledger.hand_back("w1", [("j", "c", 1)])) == [("j", "c")]
    assert run(ledger.renew("w1", [("j", "d", 1)], lease_ms=0)) == [True]
    assert run(ledger.expire_leases(QUEUE, limit=9)) == [("j", "d")]
    dead = [
        DeadLetter("k", "poison", "s3://b/k", '{"job": "j", "chunk": "a", "item": {"id": "a", "ref": "s3://b/k"}}')
    ]
    outcome = small.commit("j", "a", records=[("1", b"x" * 2000)], dead=dead, dead_ttl_ms=LONG_MS, dead_most=9)
    assert outcome == (Commit.COMMITTED, False)
    assert run(ledger.failed("j", "f", "w1", small.begin("j", "f", "w1").attempt)) == 1
    assert run(ledger.sink_failed("j", "f", gap_ms=LONG_MS)) == 0
    assert "sink_failed_at" in small.job("j")
    assert run(ledger.revoke(QUEUE, "lost", keep_ms=LONG_MS)) == [("lost", "c")]
    assert run(ledger.take_back_blobs("forgotten", "c", [SHA], idle_seconds=FORGOTTEN_SECONDS)) == 1
    assert run(ledger.enlist(WorkerInfo("w1", ("default",), ("imagenet@3",), "1.0"))) == 1
    assert run(ledger.hold("duty", "me", lease_ms=LONG_MS))
    assert small.seal("j") is Put.SEALED
    assert run(ledger.cancel("gone")) == "CANCELLED"
    assert small.commit("gone", "c", 0) == (Commit.COMMITTED, False)
    assert run(ledger.abandon(-1, 9)) == ["lost", "open"]
    small.commit("open", "c", small.begin("open", "c").attempt)
    assert run(ledger.finish("open")) is False, "it has ended"
    assert run(ledger.discard("k")) is Discarded.DROPPED
    assert run(ledger.delete("open")) == 1
