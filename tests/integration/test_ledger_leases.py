"""Leases: renewed, handed back, run out; on a real Redis."""

from __future__ import annotations

import time

from classifleet.ledger import (
    Begin,
)
from tests.fixtures_ledger import (
    LONG_MS,
    QUEUE,
    SHORT_MS,
    Bench,
    wait_for_next_millisecond,
)
from tests.support import wait_until


def lease_ends_in_ms(bench: Bench, member: str) -> float:
    ends = bench.redis.zscore(bench.keys.queue(QUEUE, "leased"), member)
    assert isinstance(ends, float)
    return ends - bench.run(bench.ledger.now())


def test_renew_prolongs_what_is_held_and_only_that(bench: Bench) -> None:
    for chunk in ("mine", "theirs", "done", "queued"):
        bench.put("j", chunk)
    bench.begin("j", "mine", "w1", lease_ms=10_000)
    bench.begin("j", "theirs", "w2", lease_ms=10_000)
    bench.begin("j", "done", "w1")
    bench.commit("j", "done")
    leases = [
        ("j", "mine", 1),
        ("j", "mine", 2),
        ("j", "theirs", 1),
        ("j", "done", 1),
        ("j", "queued", 1),
        ("x", "y", 1),
    ]
    kept = bench.run(bench.ledger.renew("w1", leases, lease_ms=LONG_MS))
    assert kept == [True, False, False, False, False, False]
    assert lease_ends_in_ms(bench, "j/mine") > 10_000
    assert lease_ends_in_ms(bench, "j/theirs") <= 10_000
    assert bench.members("leased") == ["j/theirs", "j/mine"]
    assert bench.run(bench.ledger.renew("w1", [], lease_ms=LONG_MS)) == []


def test_renewal_keeps_a_short_lease_alive(bench: Bench) -> None:
    bench.put("j", "c1")
    bench.begin("j", "c1", "w1", lease_ms=400)
    end = time.monotonic() + 1.0

    def renewed_for_a_while() -> bool:
        assert bench.run(bench.ledger.renew("w1", [("j", "c1", 1)], lease_ms=400)) == [True]
        assert bench.run(bench.ledger.expire_leases(QUEUE, limit=10)) == []
        return time.monotonic() > end

    wait_until(renewed_for_a_while, "more than twice the lease")


def test_hand_back_keeps_the_place_and_counts_no_death(bench: Bench) -> None:
    for chunk in ("c1", "c2", "c3"):
        bench.put("j", chunk)
        wait_for_next_millisecond(bench)
    bench.begin("j", "c2", "w1")
    bench.begin("j", "c3", "w2")
    assert bench.members("queued") == ["j/c1"]
    leases = [("j", "c2", 1), ("j", "c2", 2), ("j", "c3", 1), ("j", "c1", 1), ("x", "y", 1)]
    assert bench.run(bench.ledger.hand_back("w1", leases)) == [("j", "c2")]
    assert bench.members("queued") == ["j/c1", "j/c2"]
    assert bench.counts("j") == (6, 3, 2, 0)
    assert bench.images() == (4, 2, 0)
    assert bench.run(bench.ledger.hand_back("w1", leases)) == [], "once is enough"
    lease = bench.begin("j", "c2", "w3")
    assert (lease.outcome, lease.attempt, lease.deaths) == (Begin.RUN, 2, 0)
    bench.run(bench.ledger.hand_back("w2", [("j", "c3", 1)]))
    assert bench.members("queued") == ["j/c1", "j/c3"]


def test_what_died_with_its_device_goes_back_at_once_and_speaks_against_a_marked_image(bench: Bench) -> None:
    bench.put("j", "c1")
    lease = bench.begin("j", "c1", "w1")
    for deaths in (1, 2):
        assert bench.run(bench.ledger.mark("j", "c1", "w1", lease.attempt, "i1"))
        assert bench.run(bench.ledger.hand_back("w1", [("j", "c1", lease.attempt)], died=True)) == [("j", "c1")]
        lease = bench.begin("j", "c1", "w1")
        assert (lease.outcome, lease.attempt, lease.deaths) == (Begin.RUN, deaths + 1, deaths)
        assert lease.lone_deaths == ("i1",) * deaths


def test_garbage_in_one_chunk_keeps_no_other_under_its_lease(bench: Bench) -> None:
    for chunk in ("c1", "c2"):
        bench.put("j", chunk)
        bench.begin("j", chunk, "w1", lease_ms=SHORT_MS)
        bench.run(bench.ledger.mark("j", chunk, "w1", 1, "i1"))
    bench.redis.hset(bench.keys.chunk("j", "c1"), "lone_deaths", "{")
    back: list[tuple[str, str]] = []

    def both_are_back() -> bool:
        back.extend(bench.run(bench.ledger.expire_leases(QUEUE, limit=10)))
        return len(back) == 2

    wait_until(both_are_back, "both leases to run out")
    assert sorted(back) == [("j", "c1"), ("j", "c2")]


def test_expired_leases_go_back_to_their_place_with_one_death_more(bench: Bench) -> None:
    for chunk in ("c1", "c2", "c3"):
        bench.put("j", chunk)
        wait_for_next_millisecond(bench)
    bench.begin("j", "c1", "w1", lease_ms=SHORT_MS)
    bench.begin("j", "c3", "w2", lease_ms=LONG_MS)
    back = wait_until(lambda: bench.run(bench.ledger.expire_leases(QUEUE, limit=10)), "the lease of c1 to end")
    assert back == [("j", "c1")]
    assert bench.members("queued") == ["j/c1", "j/c2"]
    assert bench.members("leased") == ["j/c3"]
    assert bench.images() == (4, 2, 0)
    assert bench.counts("j") == (6, 3, 2, 0)
    assert bench.run(bench.ledger.expire_leases(QUEUE, limit=10)) == []
    assert bench.run(bench.ledger.renew("w1", [("j", "c1", 1)], lease_ms=LONG_MS)) == [False]
    lease = bench.begin("j", "c1", "w3")
    assert (lease.attempt, lease.deaths) == (2, 1)


def test_expiry_works_in_pages(bench: Bench) -> None:
    for index in range(5):
        bench.put("j", str(index))
        bench.begin("j", str(index), lease_ms=0)
    pages = [len(bench.run(bench.ledger.expire_leases(QUEUE, limit=2))) for _ in range(4)]
    assert pages == [2, 2, 1, 0]
    assert bench.images() == (10, 0, 0)


def test_expiry_drops_what_it_does_not_know(bench: Bench) -> None:
    bench.redis.zadd(bench.keys.queue(QUEUE, "leased"), {"j/gone": 0, "garbage": 0})
    assert bench.run(bench.ledger.expire_leases(QUEUE, limit=10)) == []
    assert bench.members("leased") == []


# --- any order -----------------------------------------------------------------------------------------------------
