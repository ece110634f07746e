"""The ledger's protocol on a real Redis: a chunk's way from `put` to its commit, and any order of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest

from classifleet.ledger import (
    Begin,
    Commit,
    Put,
)
from classifleet.worker import versions
from tests.fixtures_ledger import (
    LONG_MS,
    QUEUE,
    TTL_SECONDS,
    Bench,
    digest,
    head,
    undocumented,
    wait_for_next_millisecond,
)

# --- put -----------------------------------------------------------------------------------------------------------


def test_the_check_of_keys_would_see_a_stranger(bench: Bench) -> None:
    bench.finished("j")
    assert undocumented(bench.names() | {"jobx", "job:a:b", "queue:q:other"}) == {"jobx", "job:a:b", "queue:q:other"}


def test_put_opens_a_job_and_queues_its_chunk(bench: Bench) -> None:
    assert bench.put("j", "c1", images=3) is Put.QUEUED
    assert bench.counts("j") == (3, 1, 1, 0)
    assert bench.job("j")["state"] == "open"
    assert bench.images() == (3, 0, 0)
    assert bench.members("queued") == ["j/c1"]
    assert bench.run(bench.ledger.pending("j", 0, 10)) == ["c1"]
    assert bench.run(bench.ledger.jobs(0, 10)) == ["j"]
    assert bench.run(bench.ledger.queues()) == [QUEUE]
    chunk = bench.run(bench.ledger.chunk("j", "c1"))
    assert (chunk["state"], chunk["attempt"], chunk["deaths"], chunk["n"]) == ("queued", "0", "0", "3")


def test_put_again_changes_nothing_and_says_where_the_chunk_is(bench: Bench) -> None:
    steps: list[tuple[Callable[[], object], Put]] = [
        (lambda: bench.put("j", "c1"), Put.QUEUED),
        (lambda: bench.begin("j", "c1"), Put.LEASED),
        (lambda: bench.commit("j", "c1"), Put.DONE),
        (lambda: bench.seal("j"), Put.DONE),
    ]
    for step, outcome in steps:
        step()
        before = bench.dump()
        assert bench.put("j", "c1") is outcome
        assert bench.dump() == before


@pytest.mark.parametrize("state", ["queued", "leased", "done"])
def test_put_of_another_payload_under_the_same_name_conflicts(bench: Bench, state: str) -> None:
    bench.put("j", "c1")
    if state != "queued":
        bench.begin("j", "c1")
    if state == "done":
        bench.commit("j", "c1")
    before = bench.dump()
    assert bench.put("j", "c1", digest=digest("other")) is Put.CONFLICT
    assert bench.put("j", "c1", request="other") is Put.CONFLICT
    assert bench.put("j", "c2", request="other") is Put.CONFLICT
    assert bench.dump() == before


def test_a_sealed_job_takes_no_new_chunk_and_knows_its_old_ones(bench: Bench) -> None:
    assert bench.put("j", "c1", seal=True) is Put.QUEUED
    assert bench.job("j")["state"] == "sealed"
    assert bench.put("j", "c2") is Put.CONFLICT
    assert bench.put("j", "c1", seal=True) is Put.QUEUED
    assert bench.counts("j") == (2, 1, 1, 0)


def test_put_without_a_header_needs_the_job(bench: Bench) -> None:
    assert bench.put("j", "c1", header=None) is Put.UNKNOWN
    assert bench.seal("j") is Put.UNKNOWN
    assert bench.names() == set()
    bench.put("j")
    assert bench.put("j", "c1", header=None) is Put.QUEUED


def test_put_waits_for_the_window(bench: Bench) -> None:
    assert [bench.put("j", f"c{i}", window=2) for i in range(3)] == [Put.QUEUED, Put.QUEUED, Put.WINDOW]
    assert bench.counts("j") == (4, 2, 2, 0)
    assert bench.put("j", "c1", window=2) is Put.QUEUED, "what is queued already takes no place"
    bench.begin("j", "c0")
    assert bench.put("j", "c2", window=2) is Put.QUEUED
    assert bench.put("other", "c", window=2) is Put.QUEUED, "each job has its own window"


def test_each_put_shows_that_the_producer_lives(bench: Bench) -> None:
    bench.put("j", "c1")
    seen = bench.job("j")["last_seen"]
    wait_for_next_millisecond(bench)
    bench.put("j", "c1")
    assert bench.job("j")["last_seen"] > seen


def test_a_cancelled_job_takes_nothing(bench: Bench) -> None:
    bench.put("j", "c1")
    assert bench.run(bench.ledger.cancel("j")) == "CANCELLED"
    assert bench.put("j", "c2") is Put.CANCELLED
    assert bench.put("j", "c1") is Put.QUEUED
    assert bench.counts("j") == (2, 1, 1, 0)


def test_the_first_header_stays_except_for_where_to_reply(bench: Bench) -> None:
    bench.put("j", "c1")
    bench.put("j", "c2", header=head(reply_to="client-2", queue="classify.other.bulk"))
    fields = bench.job("j")
    assert (fields["reply_to"], fields["queue"], fields["ttl_seconds"]) == ("client-2", QUEUE, str(TTL_SECONDS))
    assert bench.members("queued") == ["j/c1", "j/c2"]


def test_sealing_ends_a_job_that_has_nothing_left(bench: Bench) -> None:
    assert bench.put("empty", seal=True) is Put.SEALED
    bench.put("j", "c1")
    bench.begin("j", "c1")
    bench.commit("j", "c1")
    assert bench.job("j")["state"] == "open", "more may come"
    assert bench.seal("j") is Put.SEALED
    for job in ("empty", "j"):
        assert bench.job(job)["state"] == "done"
        assert "finished_at" in bench.job(job)
    assert bench.seal("j") is Put.SEALED


# --- begin ---------------------------------------------------------------------------------------------------------


def test_begin_hands_out_the_payload_once(bench: Bench) -> None:
    bench.put("j", "c1", payload=b"\x00payload", images=3)
    lease = bench.begin("j", "c1")
    assert (lease.outcome, lease.payload, lease.attempt, lease.deaths) == (Begin.RUN, b"\x00payload", 1, 0)
    assert 0 <= lease.waited_ms < 5000
    assert lease.left_ms is None
    assert bench.begin("j", "c1").outcome is Begin.JOIN
    assert bench.begin("j", "c1", "w2").outcome is Begin.HELD
    assert bench.counts("j") == (3, 1, 0, 0)
    assert bench.images() == (0, 3, 0)
    assert (bench.members("queued"), bench.members("leased")) == ([], ["j/c1"])
    assert "started_at" in bench.job("j")


def test_begin_of_what_needs_no_work(bench: Bench) -> None:
    assert bench.begin("j", "c1").outcome is Begin.GONE
    bench.put("j", "c1")
    assert bench.begin("j", "c2").outcome is Begin.GONE
    bench.put("j", "c2")
    bench.begin("j", "c1")
    bench.commit("j", "c1")
    assert bench.begin("j", "c1").outcome is Begin.DONE
    bench.run(bench.ledger.cancel("j"))
    assert bench.begin("j", "c2").outcome is Begin.CANCELLED
    assert bench.begin("j", "c1").outcome is Begin.DONE
    assert bench.counts("j") == (4, 2, 1, 2)


def test_begin_after_the_deadline_leases_without_work(bench: Bench) -> None:
    bench.put("late", "c", deadline_ms=0)
    bench.put("soon", "c", deadline_ms=LONG_MS)
    late, soon = bench.begin("late", "c"), bench.begin("soon", "c")
    assert late.outcome is Begin.EXPIRED
    assert late.left_ms is not None
    assert late.left_ms <= 0
    assert late.payload
    assert soon.outcome is Begin.RUN
    assert soon.left_ms is not None
    assert 0 < soon.left_ms <= LONG_MS
    assert bench.members("leased") == ["late/c", "soon/c"]


def test_a_lease_that_ran_out_is_not_taken_over_by_a_message(bench: Bench) -> None:
    """After an outage of Redis its holder may still renew it: only the reconciler, which waits, calls it dead."""
    bench.put("j", "c1")
    bench.begin("j", "c1", "w1", lease_ms=0)
    assert bench.begin("j", "c1", "w2").outcome is Begin.HELD
    assert bench.begin("j", "c1", "w1").outcome is Begin.JOIN
    assert bench.run(bench.ledger.renew("w1", [("j", "c1", 1)], lease_ms=LONG_MS)) == [True]
    assert bench.run(bench.ledger.expire_leases(QUEUE, limit=10)) == []


def test_begin_after_a_silent_worker_knows_of_its_death(bench: Bench) -> None:
    bench.put("j", "c1")
    bench.begin("j", "c1", "w1", lease_ms=0)
    assert bench.run(bench.ledger.expire_leases(QUEUE, limit=10)) == [("j", "c1")]
    lease = bench.begin("j", "c1", "w2")
    assert (lease.outcome, lease.attempt, lease.deaths) == (Begin.RUN, 2, 1)
    assert bench.images() == (0, 2, 0)
    assert bench.counts("j") == (2, 1, 0, 0)
    assert bench.commit("j", "c1", 2)[0] is Commit.COMMITTED
    assert bench.images() == (0, 0, 2)


def test_the_first_begin_pins_versions_for_the_job(bench: Bench) -> None:
    bench.put("j", "c1")
    bench.put("j", "c2")
    assert bench.begin("j", "c1", latest={"imagenet": "3", "nsfw": "9"}).models == ("imagenet@3", "nsfw@2")
    assert bench.begin("j", "c2", latest={"imagenet": "4"}).models == ("imagenet@3", "nsfw@2")
    assert bench.job("j")["pin:imagenet"] == "3"
    bench.put("other", "c1")
    assert bench.begin("other", "c1", latest={}).models == ("imagenet", "nsfw@2"), "this worker lacks the model"


def test_the_canary_of_a_job_is_the_one_that_the_policy_says(bench: Bench) -> None:
    shares = [("1", 50.0), ("2", 20.0), ("13", 30.0)]
    got = []
    for job in [f"job-{number}" for number in range(60)]:
        bench.put(job, "c")
        [name, _] = bench.begin(job, "c", latest={"imagenet": shares}).models
        assert name == f"imagenet@{versions.chosen(job, 'imagenet', shares)}"
        got.append(name)
    assert len(set(got)) == 3


def test_a_job_keeps_its_version_whatever_the_next_worker_is_set_to(bench: Bench) -> None:
    for chunk in ("c1", "c2"):
        bench.put("j", chunk)
    first = bench.begin("j", "c1", latest={"imagenet": [("1", 95.0), ("2", 5.0)]}).models
    assert bench.begin("j", "c2", "w2", latest={"imagenet": [("3", 5.0), ("4", 95.0)]}).models == first


# --- leases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_counters_agree_with_the_chunks_whatever_happens(bench: Bench, seed: int) -> None:
    """Random calls by two workers, repeated and too late: no image is lost or counted twice."""
    dice = random.Random(seed)
    chunks = {str(index): index + 1 for index in range(6)}
    for step in range(150):
        chunk = dice.choice(list(chunks))
        owner = dice.choice(["w1", "w2"])
        attempt = dice.randint(1, 3)
        match dice.choice(["put", "begin", "begin", "brief", "renew", "back", "expire", "commit"]):
            case "put":
                bench.put("j", chunk, images=chunks[chunk], seal=step > 100)
            case "begin":
                bench.begin("j", chunk, owner)
            case "brief":
                bench.begin("j", chunk, owner, lease_ms=0)
            case "renew":
                bench.run(bench.ledger.renew(owner, [("j", chunk, attempt)], lease_ms=dice.choice([0, LONG_MS])))
            case "back":
                bench.run(bench.ledger.hand_back(owner, [("j", chunk, attempt)]))
            case "expire":
                bench.run(bench.ledger.expire_leases(QUEUE, limit=dice.randint(1, 3)))
            case "commit":
                bench.commit("j", chunk, attempt, images=chunks[chunk])
        if step % 10 == 0:
            check_balance(bench, chunks)
    check_balance(bench, chunks)


def check_balance(bench: Bench, chunks: Mapping[str, int]) -> None:
    fields = bench.job("j")
    if not fields:
        return
    by_state: dict[str, set[str]] = {"queued": set(), "leased": set()}
    for chunk in chunks:
        if state := bench.run(bench.ledger.chunk("j", chunk)).get("state"):
            by_state[state].add(chunk)
    log = bench.run(bench.ledger.log("j", 0, 100))
    done = set(log)
    assert len(log) == len(done)
    sums = [sum(chunks[chunk] for chunk in group) for group in (by_state["queued"], by_state["leased"], done)]
    assert bench.images() == tuple(sums)
    assert int(fields["queued"]) == len(by_state["queued"])
    assert int(fields["done"]) == int(fields["ok"]) == sums[2]
    assert int(fields["accepted"]) == sum(sums)
    assert set(bench.members("queued")) == {f"j/{chunk}" for chunk in by_state["queued"]}
    assert set(bench.members("leased")) == {f"j/{chunk}" for chunk in by_state["leased"]}
    assert done.isdisjoint(by_state["queued"] | by_state["leased"])
    if "finished_at" not in fields:
        pending = bench.run(bench.ledger.pending("j", 0, 100))
        assert set(pending) == by_state["queued"]
    assert ("finished_at" in fields) == (fields["state"] == "done")
