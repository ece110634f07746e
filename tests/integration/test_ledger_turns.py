"""Whose turn it is: jobs of a bulk queue share it by images, interactive work is first come, first served."""

from __future__ import annotations

from collections import Counter

import pytest

from classifleet.config import LedgerUnavailable
from classifleet.ledger import Begin, Commit, Lease, QueueDepth, read_depth
from tests.fixtures_ledger import LONG_MS, QUEUE, Bench, head, wait_for_next_millisecond

TALK = "classify.default.interactive"
OWNER = "w1"


def fill(bench: Bench, job: str, chunks: int, *, images: int = 32, queue: str = QUEUE, first: int = 0) -> None:
    for index in range(first, first + chunks):
        bench.put(job, str(index), images=images, window=100_000, header=head(queue=queue))


def turn(bench: Bench, named: tuple[str, str], *, queue: str = QUEUE) -> Lease:
    """What a message that names this chunk becomes."""
    return bench.begin(*named, OWNER, queue=queue)


def turns(bench: Bench, named: tuple[str, str], count: int) -> list[str]:
    return [turn(bench, named).job for _ in range(count)]


def test_a_small_job_does_not_wait_behind_a_huge_one(bench: Bench) -> None:
    """3,125 chunks of 32 are a hundred thousand images; the broker hands out their messages first."""
    fill(bench, "huge", 3125)
    fill(bench, "small", 4, images=25)
    jobs = [turn(bench, ("huge", str(index))).job for index in range(8)]
    assert Counter(jobs)["small"] == 4


def test_three_jobs_share_equally_by_images_whatever_their_chunks(bench: Bench) -> None:
    for job, chunks, images in (("a", 300, 4), ("b", 75, 16), ("c", 38, 32)):
        fill(bench, job, chunks, images=images)
    images: Counter[str] = Counter()
    for _ in range(80):
        lease = turn(bench, ("a", "0"))
        images[lease.job] += {"a": 4, "b": 16, "c": 32}[lease.job]
    assert max(images.values()) - min(images.values()) <= 2 * 32


def test_who_comes_late_gets_its_share_and_not_a_burst(bench: Bench) -> None:
    fill(bench, "early", 100)
    turns(bench, ("early", "0"), 50)
    fill(bench, "late", 50)
    assert Counter(turns(bench, ("early", "0"), 21)) == {"early": 11, "late": 10}


def test_a_stream_of_new_jobs_keeps_nobody_waiting(bench: Bench) -> None:
    """Their names sort first, and there is always another one."""
    fill(bench, "z", 3)
    served = []
    for index in range(12):
        fill(bench, f"a{index}", 2)
        served.append(turn(bench, ("z", "0")).job)
    assert served.count("z") == 3


def test_who_comes_again_and_again_gains_nothing(bench: Bench) -> None:
    """A job that is never more than one chunk ahead leaves the ring after each of them."""
    fill(bench, "steady", 60)
    served: Counter[str] = Counter()
    for index in range(40):
        bench.put("a-drip", str(index), images=32, window=9)
        served[turn(bench, ("steady", "0")).job] += 1
    assert served["steady"] >= 19


def test_a_queue_that_was_empty_remembers_whose_turn_it_was(bench: Bench) -> None:
    fill(bench, "before", 50)
    turns(bench, ("before", "0"), 50)
    assert bench.members("ring") == []
    fill(bench, "new", 20)
    fill(bench, "before", 20, first=50)
    assert Counter(turns(bench, ("new", "0"), 20)) == {"before": 10, "new": 10}


def test_interactive_work_is_first_come_first_served(bench: Bench) -> None:
    for job in ("z", "y", "x"):
        bench.put(job, "0", header=head(queue=TALK))
        wait_for_next_millisecond(bench)
    assert turn(bench, ("y", "0"), queue=TALK).job == "y", "the named one"
    assert turn(bench, ("y", "0"), queue=TALK).job == "z", "else the oldest"
    assert turn(bench, ("y", "0"), queue=TALK).job == "x"
    assert turn(bench, ("y", "0"), queue=TALK).outcome is Begin.JOIN


def test_a_cancelled_job_has_no_turn(bench: Bench) -> None:
    fill(bench, "a", 3)
    fill(bench, "b", 1)
    bench.run(bench.ledger.cancel("a"))
    assert turn(bench, ("a", "0")).job == "b"
    assert turn(bench, ("a", "0")).outcome is Begin.CANCELLED


def test_a_lost_answer_is_given_again(bench: Bench) -> None:
    fill(bench, "a", 2)
    fill(bench, "b", 2)
    first = bench.begin("a", "1", OWNER, queue=QUEUE, grant="g1")
    again = bench.begin("a", "1", OWNER, queue=QUEUE, grant="g1")
    assert (again.job, again.chunk, again.attempt) == (first.job, first.chunk, 1)
    assert len(bench.members("leased")) == 1
    other = bench.begin("a", "1", OWNER, queue=QUEUE, grant="g2")
    assert (other.job, other.chunk) != (first.job, first.chunk), "the call had not arrived at all"
    bench.commit(first.job, first.chunk, 1, images=32)
    third = bench.begin("a", "1", OWNER, queue=QUEUE, grant="g1")
    assert third.outcome is Begin.RUN, "what is done is not given again"
    assert third.attempt == 1
    assert (third.job, third.chunk) not in {(first.job, first.chunk), (other.job, other.chunk)}


def test_what_nobody_was_told_of_is_handed_back(bench: Bench) -> None:
    fill(bench, "a", 2)
    lost = bench.begin("a", "1", OWNER, queue=QUEUE, grant="g1")
    for expected in ([(lost.job, lost.chunk)], []):
        assert bench.run(bench.ledger.revoke(QUEUE, "g1", keep_ms=LONG_MS)) == expected
    assert bench.members("leased") == []
    assert bench.run(bench.ledger.chunk(lost.job, lost.chunk))["deaths"] == "0"
    assert bench.begin("a", "1", OWNER, queue=QUEUE, grant="g1").outcome is Begin.GONE, "it was still on its way"
    assert len(bench.members("queued")) == 2
    other = bench.begin("a", "1", OWNER, queue=QUEUE, grant="g2")
    assert bench.run(bench.ledger.revoke(QUEUE, "g1", keep_ms=LONG_MS)) == []
    assert bench.members("leased") == [f"{other.job}/{other.chunk}"]


def test_a_grant_ends_with_its_lease(bench: Bench) -> None:
    fill(bench, "a", 1)
    bench.begin("a", "0", OWNER, queue=QUEUE, grant="g1", lease_ms=0)
    bench.run(bench.ledger.expire_leases(QUEUE, limit=9))
    bench.begin("a", "0", "w2", queue=QUEUE, grant="g2")
    assert bench.begin("a", "0", OWNER, queue=QUEUE, grant="g1").outcome is Begin.HELD
    assert bench.redis.hlen(bench.keys.queue(QUEUE, "grants")) == 1


@pytest.mark.parametrize("what", ["job", "chunk", "pending", "models"])
def test_garbage_stops_nobody_else(bench: Bench, what: str) -> None:
    fill(bench, "a", 2)
    fill(bench, "b", 2)
    wrong = {
        "job": bench.keys.job("a"),
        "chunk": bench.keys.chunk("a", "0"),
        "pending": bench.keys.pending("a"),
    }
    if what == "models":
        bench.redis.hset(bench.keys.job("a"), "models", "not JSON")
    else:
        bench.redis.delete(wrong[what])
        bench.redis.set(wrong[what], "garbage")
    begun = [turn(bench, ("a", "0")) for _ in range(5)]
    assert {"0", "1"} == {lease.chunk for lease in begun if lease.job == "b"}
    leases = [(lease.job, lease.chunk, lease.attempt) for lease in begun if lease.outcome is Begin.RUN]
    assert bench.run(bench.ledger.renew(OWNER, [("a", "0", 1), *leases], lease_ms=0))[1:] == [True] * len(leases)
    back = bench.run(bench.ledger.expire_leases(QUEUE, limit=9))
    assert {("b", "0"), ("b", "1")} <= set(back)
    assert bench.run(bench.ledger.hand_back(OWNER, [("a", "0", 1)])) == []
    assert bench.run(bench.ledger.unpark(QUEUE, [("a", "0"), ("b", "0")])) == []


SHARED = ["images", "rates", "grants", "queued", "leased", "parked", "ring"]


@pytest.mark.parametrize("name", [*SHARED, "room", "blob_bytes", "dead", "blobs", "finalise"])
def test_garbage_in_what_a_queue_shares_loses_no_chunk(bench: Bench, name: str) -> None:
    """It is written after the point of no return: so it is an error that names the key, and nothing has changed."""
    fill(bench, "a", 3)
    leases = [bench.begin("a", chunk) for chunk in ("0", "1")]
    held = [(lease.job, lease.chunk, lease.attempt) for lease in leases]
    key = bench.keys.queue(QUEUE, name) if name in SHARED else bench.keys.shared(name)
    kept = bench.redis.dump(key)
    bench.redis.delete(key)
    bench.redis.lpush(key, "garbage")
    before = bench.dump()
    for attempt in (
        lambda: bench.put("b", "0", seal=True),
        lambda: bench.begin("a", "2"),
        lambda: bench.commit("a", "0", 1),
        lambda: bench.run(bench.ledger.hand_back("w1", held)),
        lambda: bench.run(bench.ledger.revoke(QUEUE, leases[1].grant, keep_ms=LONG_MS)),
    ):
        with pytest.raises(LedgerUnavailable, match=f"garbage in {key}|WRONGTYPE"):
            attempt()
    assert {k: v for k, v in bench.dump().items() if "revoked" not in str(k)} == before
    if name != "leased":
        assert bench.run(bench.ledger.renew("w1", held, lease_ms=LONG_MS)) == [True, True], "no worker counts as dead"
    bench.redis.delete(key)
    if kept:
        bench.redis.restore(key, 0, kept)
    assert bench.commit("a", "0", 1) == (Commit.COMMITTED, False)
    assert bench.run(bench.ledger.hand_back("w1", held)) == [("a", "1")]


def test_garbage_of_one_queue_holds_no_chunk_of_another(bench: Bench) -> None:
    other = "classify.other.bulk"
    fill(bench, "a", 1)
    bench.put("b", "0", header=head(queue=other))
    held = [(lease.job, lease.chunk, lease.attempt) for lease in (bench.begin("a", "0"), bench.begin("b", "0"))]
    bench.redis.set(bench.keys.queue(QUEUE, "rates"), "garbage")
    assert bench.run(bench.ledger.renew("w1", held, lease_ms=LONG_MS)) == [True, True]
    with pytest.raises(LedgerUnavailable, match="garbage in"):
        bench.run(bench.ledger.hand_back("w1", held))
    assert [bench.run(bench.ledger.chunk(job, "0"))["state"] for job in "ab"] == ["leased", "queued"]


# --- rates ---------------------------------------------------------------------------------------------------------


def depth(bench: Bench) -> QueueDepth:
    return read_depth(bench.runner.run_all(bench.ledger.depth(QUEUE)))


def test_rates_count_the_last_minute(bench: Bench) -> None:
    now_slot = bench.run(bench.ledger.now()) // 10_000
    slots = {now_slot - 1: 300, now_slot - 6: 60, now_slot - 7: 1000, now_slot: 1000}
    for slot, images in slots.items():
        bench.redis.hset(bench.keys.queue(QUEUE, "rates"), f"done:{slot % 61}", f"{slot} {images}")
    assert depth(bench).done_rate in {6.0, (1000 + 300) / 60}, "the second: ten seconds ended just now"
    assert depth(bench).accepted_rate == 0


def test_accepted_and_done_images_are_counted(bench: Bench) -> None:
    fill(bench, "a", 3, images=5)
    bench.commit("a", "0", bench.begin("a", "0").attempt, images=5)
    values = {
        name.split(b":")[0]: int(value.split()[1])
        for name, value in bench.redis.hgetall(bench.keys.queue(QUEUE, "rates")).items()
    }
    assert values in ({b"accepted": 15, b"done": 5}, {b"accepted": 10, b"done": 5}, {b"accepted": 5, b"done": 5})
