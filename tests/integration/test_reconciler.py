"""Fleet-wide duties on a real Redis: leases that ran out, lost messages, parked chunks, silent producers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from classifleet.config import LedgerUnavailable
from classifleet.config.celery_app import Publisher
from classifleet.config.payload import make_payload
from classifleet.ledger import Begin, Put
from classifleet.worker.reconciler import Reconciler, messages, upkeep
from classifleet.worker.reconciler.leases import expire
from classifleet.worker.sink import Sinks
from tests.conftest import SettingsFactory
from tests.fixtures_ledger import LONG_MS, QUEUE, REQUEST, Bench, digest, head
from tests.support import RedisServer, wait_until

HEADER = head(options="{}", models='["imagenet"]')


class Make(Protocol):
    def __call__(self, owner: str = ..., *, is_worker: bool = ..., **overrides: Any) -> Reconciler: ...


@pytest.fixture
def make(bench: Bench, settings: SettingsFactory) -> Iterator[Make]:
    """Reconcilers on the bench's ledger; their threads are not started."""
    publishers: list[Publisher] = []

    def make(owner: str = "r1", *, is_worker: bool = True, **overrides: Any) -> Reconciler:
        given = settings(**{"lease_seconds": 1, **overrides})
        publishers.append(Publisher(given))
        return Reconciler(bench.ledger, bench.runner, publishers[-1], Sinks(given), given, owner, is_worker=is_worker)

    yield make
    for publisher in publishers:
        publisher.close()
    bench.redis.delete(*[k for k in bench.redis.keys("*") if not k.startswith(bench.keys.prefix.encode())] or ["-"])


def payload(job: str, chunk: str, ids: tuple[str, ...] = ("a", "b"), **changes: Any) -> bytes:
    items = [{"id": each, "ref": f"https://example.com/{each}.jpg"} for each in ids]
    return make_payload(job=job, chunk=chunk, items=items, models=["imagenet"], **changes).encode()


def put(bench: Bench, job: str, chunk: str, **changes: Any) -> None:
    given = {"payload": payload(job, chunk), "header": HEADER, **changes}
    assert bench.put(job, chunk, **given) is Put.QUEUED


def fill(bench: Bench, job: str, chunks: int) -> None:
    fixed: dict[str, Any] = {"header": HEADER, "request": REQUEST, "images": 2, "payload": b"{}", "window": 1 << 20}
    calls = [bench.ledger.put(job, chunk=str(i), digest=digest(str(i)), **fixed) for i in range(chunks)]
    for start in range(0, chunks, 1000):
        bench.runner.run_all(calls[start : start + 1000])


# --- leases --------------------------------------------------------------------------------------------------------


def test_a_thousand_leases_run_out_in_one_round(bench: Bench, make: Make) -> None:
    reconciler = make()
    fill(bench, "j", 1200)
    calls = [
        bench.ledger.begin("j", str(i), "w1", lease_ms=0, latest={}, queue=QUEUE, grant=str(i)) for i in range(1200)
    ]
    bench.runner.run_all(calls)
    start = time.monotonic()
    assert expire(reconciler.context, QUEUE) == 1000
    assert time.monotonic() - start < 5
    assert expire(reconciler.context, QUEUE) == 200
    assert reconciler.context.publisher.depth(QUEUE) == 1200


def test_a_process_that_starts_leaves_leases_alone_for_a_while(bench: Bench, make: Make) -> None:
    put(bench, "j", "c")
    bench.begin("j", "c", lease_ms=0)
    reconciler = make(lease_seconds=2)  # quiet for a second
    assert reconciler.round()
    assert bench.members("leased") == ["j/c"]
    wait_until(lambda: reconciler.round() and not bench.members("leased"), "the lease to be taken back")


def test_one_process_has_the_duty_and_another_takes_it_over(bench: Bench, make: Make) -> None:
    first, second = make("r1"), make("r2")
    assert (first.round(), second.round()) == (True, False)
    bench.redis.delete(bench.keys.lock("reconciler"))
    assert (second.round(), first.round()) == (True, False)


def test_after_an_outage_holders_have_time_to_renew(tmp_path: Path, settings: SettingsFactory) -> None:
    """Redis stands still for longer than a lease: nobody has died."""
    with RedisServer.start(tmp_path / "redis") as server:
        given = settings(broker_url=f"{server.url}/0", connect_timeout_seconds=0.2, lease_seconds=2)
        bench, publisher = Bench(given), Publisher(given)
        reconciler = Reconciler(bench.ledger, bench.runner, publisher, Sinks(given), given, "r1")
        wait_until(lambda: reconciler.round() and reconciler._contact.settled(reconciler.context.now_ms()), "contact")
        put(bench, "j", "c")
        bench.begin("j", "c", "w1", lease_ms=500)
        ends = time.monotonic() + 0.6
        server.process.signal(signal.SIGSTOP)
        try:
            wait_until(lambda: fails(reconciler.round) and time.monotonic() > ends, "the lease to end meanwhile")
        finally:
            server.process.signal(signal.SIGCONT)
        wait_until(lambda: not fails(reconciler.round), "Redis to answer")
        assert bench.members("leased") == ["j/c"]
        assert bench.run(bench.ledger.renew("w1", [("j", "c", 1)], lease_ms=LONG_MS)) == [True]
        wait_until(lambda: reconciler._contact.settled(reconciler.context.now_ms()), "the quiet to end")
        assert reconciler.round()
        assert bench.run(bench.ledger.chunk("j", "c"))["deaths"] == "0"
        publisher.close()
        bench.runner.close()


def fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except LedgerUnavailable:
        return True
    return False


@pytest.mark.parametrize("part", ["leased", "images", "queued", "parked"])
def test_one_queue_of_garbage_delays_no_other(bench: Bench, make: Make, part: str) -> None:
    put(bench, "j", "c")
    bench.begin("j", "c", lease_ms=0)
    put(bench, "k", "parked")
    bench.redis.zadd(bench.keys.shared("open"), {"j": 1, "k": 1})
    park(bench, "k", "parked")
    bench.redis.sadd(bench.keys.shared("queues"), "classify.aaa.bulk", "classify.zzz.bulk")
    for queue in ("classify.aaa.bulk", "classify.zzz.bulk"):
        bench.redis.set(bench.keys.queue(queue, part), "garbage")
    reconciler = make()

    def freed() -> bool:
        fails(reconciler.round)
        return not bench.members("leased")

    wait_until(freed, "the lease to be taken back")
    assert fails(reconciler.round), "and it is said"
    assert fails(reconciler.look_after) is (part == "parked")
    assert "k/parked" in bench.members("queued")
    assert bench.job("j")["state"] == bench.job("k")["state"] == "abandoned"
    bench.redis.delete(*(bench.keys.queue(queue, part) for queue in ("classify.aaa.bulk", "classify.zzz.bulk")))


# --- messages ------------------------------------------------------------------------------------------------------


@pytest.fixture
def backlog(bench: Bench, make: Make, monkeypatch: pytest.MonkeyPatch) -> Reconciler:
    """Ten thousand chunks in ledger and broker."""
    monkeypatch.setattr(messages, "MISSING_MS", 0)  # as if they had been queued for hours
    reconciler = make()
    fill(bench, "j", 10_000)
    reconciler.context.publish(QUEUE, [("j", str(index)) for index in range(10_000)])
    return reconciler


def rounds(reconciler: Reconciler, count: int) -> int:
    return sum(reconciler._messages.round(QUEUE) for _ in range(count))


def test_a_backlog_is_not_multiplied(backlog: Reconciler) -> None:
    assert rounds(backlog, 30) == 0
    assert backlog.context.publisher.depth(QUEUE) == 10_000


def test_as_many_messages_are_published_as_were_lost(bench: Bench, backlog: Reconciler) -> None:
    [broker_key] = [key for key in bench.redis.keys("*") if key.endswith(QUEUE.encode())]
    assert len(bench.redis.lpop(broker_key, 300)) == 300
    assert rounds(backlog, 9) == 0, "a message may just be on its way"
    assert rounds(backlog, 1) == 300
    assert rounds(backlog, 30) == 0
    bench.redis.delete(broker_key)
    assert rounds(backlog, 10) == 10_000
    assert backlog.context.publisher.depth(QUEUE) == 10_000
    assert rounds(backlog, 30) == 0


# --- parked chunks -------------------------------------------------------------------------------------------------


def park(bench: Bench, job: str, chunk: str) -> None:
    attempt = bench.begin(job, chunk).attempt
    assert bench.run(bench.ledger.park(job, chunk, "w1", attempt))


NEWER = b'{"v":2,"items":[{"id":"a","ref":"r","new":1},{"id":"b","ref":"r"}],"models":["m"]}'


def test_parked_chunks_go_to_whoever_understands_them(bench: Bench, make: Make) -> None:
    put(bench, "j", "known")
    put(bench, "j", "newer", payload=NEWER)
    for chunk in ("known", "newer"):
        park(bench, "j", chunk)
    make(is_worker=False)._parked.round()
    assert len(bench.members("parked")) == 2, "an exporter works on nothing, so what it understands is no matter"
    reconciler = make()
    reconciler._parked.round()
    assert bench.members("parked") == ["j/newer"]
    assert bench.members("queued") == ["j/known"]
    assert reconciler.context.publisher.depth(QUEUE) == 1


@pytest.mark.parametrize("body", [NEWER, b"\xff not JSON"])
@pytest.mark.parametrize("code", ["deadline_exceeded", "cancelled"])
def test_what_nobody_understood_in_time_has_its_records(bench: Bench, make: Make, code: str, body: bytes) -> None:
    put(bench, "j", "c", payload=body, deadline_ms=0 if code == "deadline_exceeded" else None, seal=True)
    park(bench, "j", "c")
    if code == "cancelled":
        bench.run(bench.ledger.cancel("j"))
    make(is_worker=False)._parked.round()
    fields = bench.job("j")
    assert (fields["failed"], fields[f"code:{code}"], "finished_at" in fields) == ("2", "2", True)
    ids = {"a", "b"} if body == NEWER else {"c/0", "c/1"}
    assert set(bench.run(bench.ledger.records("j", "c"))) == ids


def test_what_is_listed_as_parked_and_is_not_is_dropped(bench: Bench, make: Make) -> None:
    put(bench, "j", "c")
    bench.redis.zadd(bench.keys.queue(QUEUE, "parked"), {"j/c": 1, "x/y": 2})
    make()._parked.round()
    assert bench.members("parked") == []
    assert bench.begin("j", "c").outcome is Begin.RUN


# --- upkeep --------------------------------------------------------------------------------------------------------


def test_the_job_of_a_silent_producer_is_abandoned(bench: Bench, make: Make) -> None:
    reconciler = make(open_job_ttl_seconds=60)
    for job, ago_ms in (("silent", 61_000), ("waiting", 59_000)):
        put(bench, job, "c")
        bench.redis.zadd(bench.keys.shared("open"), {job: bench.run(bench.ledger.now()) - ago_ms})
    reconciler.look_after()
    assert [bench.job(job)["state"] for job in ("silent", "waiting")] == ["abandoned", "open"]


def test_names_of_expired_jobs_are_forgotten(bench: Bench, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "PAGE", 2)
    reconciler = make(result_ttl_seconds=10)
    now = bench.run(bench.ledger.now())
    put(bench, "running", "c")
    bench.redis.zadd(bench.keys.shared("jobs"), {f"gone-{i}": now - 21_000 - i for i in range(5)})
    bench.redis.zadd(bench.keys.shared("jobs"), {"running": now - 99_000, "just-expired": now - 19_000})
    reconciler.look_after()
    reconciler.look_after()
    assert bench.run(bench.ledger.jobs(0, 99)) == ["just-expired", "running"]


def test_images_parked_for_no_chunk_are_looked_at_in_pages(
    bench: Bench, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "PAGE", 2)
    for job in ("a", "b", "c", "d", "e"):
        bench.run(bench.ledger.put_blob(job, "c", "ab" * 32, b"x" * 50, ttl_ms=LONG_MS, cap=1000))
        if job not in "ac":  # those of the others wait for their chunk, or their producer does
            key = bench.keys.blob(job, "c", "ab" * 32)
            bench.redis.restore(key, LONG_MS, bench.redis.dump(key), replace=True, idletime=upkeep.FORGOTTEN_SECONDS)
    reconciler = make()
    left = []
    for _ in range(4):
        reconciler.look_after()
        left.append(int(bench.redis.get(bench.keys.shared("blob_bytes"))) // 50)
    assert left == [4, 3, 2, 2]
    assert [job for job, _, _ in bench.run(bench.ledger.parked_images(0, 9))] == ["a", "c"]


def test_forgotten_images_are_swept_by_one_process_an_hour(make: Make, tmp_path: Path) -> None:
    first, second = (make(owner, claim_store=f"file://{tmp_path}") for owner in ("r1", "r2"))
    namespace = first.context.settings.namespace
    old = tmp_path / namespace / "job" / "chunk" / ("ab" * 32)
    for reconciler, is_there in ((first, False), (second, True)):
        old.parent.mkdir(parents=True, exist_ok=True)
        old.write_bytes(b"x")
        os.utime(old, (0, 0))
        reconciler._upkeep.sweep()
        assert old.exists() is is_there


# --- the whole -----------------------------------------------------------------------------------------------------


def test_its_threads_do_all_of_it_and_end(bench: Bench, make: Make) -> None:
    put(bench, "dead", "c")
    bench.begin("dead", "c", lease_ms=0)
    put(bench, "cancelled", "c")
    bench.run(bench.ledger.cancel("cancelled"))
    reconciler = make()
    reconciler.start()
    assert reconciler.alive()
    wait_until(lambda: reconciler.context.publisher.depth(QUEUE) == 1, "the dead worker's chunk to be published")
    wait_until(lambda: "finished_at" in bench.job("cancelled"), "the cancelled job to end")
    start = time.monotonic()
    reconciler.close()
    assert time.monotonic() - start < 2
    assert not reconciler.alive()
