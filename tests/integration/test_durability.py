"""`durability=wait:N`: nothing counts as accepted, or as written, before N replicas have it."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from classifleet.config import Keys, LedgerUnavailable, NotReplicated, Settings
from classifleet.ledger import AsyncRunner, Begin, Commit, Ledger, Replicas, SyncRunner, Tally, connect, connect_async
from classifleet.producer import AsyncFleet, Fleet
from classifleet.worker.instruments import HANDED_BACK, IMAGES
from tests.fixtures_ledger import QUEUE, Bench
from tests.support import RedisServer
from tests.support.waiting import wait_until
from tests.support.workshop import Workshop, open_workshop

REF = "https://example.com/a.jpg"
TIMEOUT_SECONDS = 1.0


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer.start(tmp_path_factory.mktemp("primary"), "--repl-diskless-sync-delay", "0") as server:
        yield server


@pytest.fixture(scope="module")
def replica(primary: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    options = ("--replicaof", "127.0.0.1", str(primary.port))
    with RedisServer.start(tmp_path_factory.mktemp("replica"), *options) as server:
        with primary.client() as client:
            wait_until(lambda: client.wait(1, 100) == 1, "the replica")
        yield server
        server.process.signal(signal.SIGCONT)


@pytest.fixture
def durable(primary: RedisServer, namespace: str) -> Settings:
    return Settings.load(
        broker_url=f"{primary.url}/0",
        namespace=namespace,
        durability="wait:1",
        connect_timeout_seconds=TIMEOUT_SECONDS,
    )


@pytest.fixture
def stopped(replica: RedisServer) -> Iterator[RedisServer]:
    """The replica is connected, and answers nothing."""
    replica.process.signal(signal.SIGSTOP)
    yield replica
    replica.process.signal(signal.SIGCONT)


def fleet_of(settings: Settings) -> Fleet:
    return Fleet(
        settings.broker_url,
        namespace=settings.namespace,
        durability=settings.durability,
        connect_timeout_seconds=settings.connect_timeout_seconds,
    )


def test_what_is_accepted_is_on_the_replica(durable: Settings, replica: RedisServer) -> None:
    with fleet_of(durable) as fleet, replica.client() as client:
        for _ in range(50):
            job = fleet.submit(REF, models="m").id
            assert client.exists(Keys(durable.namespace).job(job))
        job = fleet.submit_many([REF] * 100, models="m", chunk_size=2).id
        assert client.hget(Keys(durable.namespace).job(job), "accepted") == b"100"


def test_too_few_replicas_are_an_error_that_may_be_repeated(durable: Settings, stopped: RedisServer) -> None:
    with fleet_of(durable) as fleet:
        begun = time.monotonic()
        for _ in range(2):  # a repetition, which finds the chunk there, is not taken for a success either
            with pytest.raises(NotReplicated, match=r"0 of 1 replicas .* may be repeated safely") as raised:
                fleet.submit(REF, models="m", id="j")
        assert isinstance(raised.value, LedgerUnavailable)
        assert time.monotonic() - begun < 4 * TIMEOUT_SECONDS
        assert fleet.job("j").progress().accepted == 1, "reading needs no replica"
        stopped.process.signal(signal.SIGCONT)
        wait_until(lambda: _accepts(fleet), "the replica to catch up")
        assert fleet.job("j").progress().accepted == 1


def _accepts(fleet: Fleet) -> bool:
    try:
        fleet.submit(REF, models="m", id="j")
    except NotReplicated:
        return False
    return True


def test_on_an_event_loop(durable: Settings, stopped: RedisServer) -> None:
    async def main() -> None:
        async with AsyncFleet(
            durable.broker_url,
            namespace=durable.namespace,
            durability="wait:1",
            connect_timeout_seconds=TIMEOUT_SECONDS,
        ) as fleet:
            with pytest.raises(NotReplicated):
                await fleet.submit(REF, models="m", id="j")

    asyncio.run(main())


def test_a_commit_waits_for_the_replica_too(durable: Settings, replica: RedisServer) -> None:
    client: Any = connect(durable)
    ledger, runner = Ledger(Keys(durable.namespace)), SyncRunner(client, durable.ledger_url(), Replicas.of(durable))
    with fleet_of(durable) as fleet:
        fleet.submit(REF, models="m", id="j")
    lease = runner.run(
        ledger.begin("j", "00000000", "w", lease_ms=60_000, latest={}, queue="", grant=uuid.uuid4().hex)
    )
    assert lease.outcome is Begin.RUN
    commit = ledger.commit("j", "00000000", lease.attempt, Tally(ok=1), records=[("j", b"{}")])
    replica.process.signal(signal.SIGSTOP)
    try:
        for _ in range(2):
            with pytest.raises(NotReplicated):
                runner.run(commit)
    finally:
        replica.process.signal(signal.SIGCONT)
    wait_until(lambda: client.wait(1, 100) == 1, "the replica")
    assert runner.run(commit)[0] is Commit.REPEATED
    runner.close()


@pytest.fixture
def workshop(durable: Settings) -> Iterator[Workshop]:
    """A worker's chunks on the primary."""
    bench = Bench(durable)
    with open_workshop(bench) as workshop:
        yield workshop
    bench.runner.close()


def _committed(workshop: Workshop) -> bool:
    return "done" in workshop.bench.job("j") and workshop.bench.counts("j")[3] == 2


def test_a_worker_waits_with_its_commit_for_the_replica(
    durable: Settings, replica: RedisServer, workshop: Workshop
) -> None:
    workshop.build(durable)
    workshop.put("0")
    counted = _metric(IMAGES.labels(QUEUE, "not_found"))
    replica.process.signal(signal.SIGSTOP)
    try:
        running = workshop.start("0")
        longer = 3 * TIMEOUT_SECONDS  # than three tries take
        wait_until(lambda: workshop.outages.away().get("replicas", 0) > longer, "the commit to wait for the replica")
        assert not running.done()
        assert _metric(IMAGES.labels(QUEUE, "not_found")) == counted, "told as done by nobody yet"
    finally:
        replica.process.signal(signal.SIGCONT)
    running.result(10)
    assert (_committed(workshop), workshop.pipeline.begun, workshop.outages.away()) == (True, 1, {})
    assert _metric(IMAGES.labels(QUEUE, "not_found")) == counted + 2
    workshop.run("0")
    assert workshop.pipeline.begun == 1


@pytest.mark.parametrize("why", ["time is up", "drain"])
def test_a_commit_that_was_not_replicated_in_time_is_not_done_again(
    durable: Settings, replica: RedisServer, workshop: Workshop, why: str
) -> None:
    keep = 1.0 if why == "time is up" else 600.0
    chunks = workshop.build(durable.model_copy(update={"keep_results_seconds": keep}))
    workshop.put("0")
    handed_back = _metric(HANDED_BACK)
    replica.process.signal(signal.SIGSTOP)
    try:
        running = workshop.start("0")
        wait_until(lambda: _committed(workshop), "the commit on the primary")
        if why == "drain":
            wait_until(lambda: "replicas" in workshop.outages.away(), "the commit to wait for the replica")
            chunks.abort()
        running.result(20)
    finally:
        replica.process.signal(signal.SIGCONT)
    assert _committed(workshop)
    assert workshop.bench.members("queued") == workshop.bench.members("leased") == []
    assert _metric(HANDED_BACK) == handed_back


def _metric(counter: Any) -> float:
    return sum(one.value for one in counter.collect()[0].samples if one.name.endswith("_total"))


def test_scripts_that_the_server_lost_do_not_hide_it(durable: Settings, stopped: RedisServer) -> None:
    async def main() -> None:
        runner = AsyncRunner(connect_async(durable), durable.ledger_url(), Replicas.of(durable))
        await runner.client.script_flush()
        header = {"queue": "q", "models": '["m"]', "ttl_seconds": "9", "reply_to": ""}
        with pytest.raises(NotReplicated):
            await runner.run_all([Ledger(Keys("x")).put("j", header=header, request="r", seal=True)])
        await runner.close()

    asyncio.run(main())


def test_without_the_setting_nobody_waits(durable: Settings, stopped: RedisServer) -> None:
    with Fleet(durable.broker_url, namespace=durable.namespace) as fleet:
        begun = time.monotonic()
        fleet.submit(REF, models="m")
        assert time.monotonic() - begun < TIMEOUT_SECONDS / 2


def test_a_replica_that_is_gone(durable: Settings, primary: RedisServer, replica: RedisServer) -> None:
    """The last of this file: the replica stays away."""
    replica.process.stop()
    with primary.client() as client, fleet_of(durable) as fleet:
        wait_until(lambda: client.info("replication")["connected_slaves"] == 0, "the end of the replica")
        with pytest.raises(NotReplicated, match="0 of 1 replicas"):
            fleet.submit(REF, models="m")
