"""Running the ledger's calls: both runners, scripts that the server lost, servers that are down, silent or full."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import Keys, LedgerFull, LedgerUnavailable, Settings
from classifleet.ledger import (
    AsyncRunner,
    Begin,
    Call,
    Commit,
    Ledger,
    Put,
    PutReply,
    SyncRunner,
    connect,
    connect_async,
)
from classifleet.ledger._scripts import ALL
from tests.conftest import SettingsFactory
from tests.fixtures_ledger import (
    LONG_MS,
    QUEUE,
    REQUEST,
    Bench,
    digest,
    head,
)
from tests.support import RedisServer

# --- runners -------------------------------------------------------------------------------------------------------


def test_scripts_are_loaded_when_the_server_lacks_them(bench: Bench) -> None:
    bench.redis.script_flush()
    calls: list[Call[Any]] = [
        bench.ledger.now(),
        bench.ledger.put("j", header=head(), request=REQUEST, chunk="c", images=1, digest=digest("c"), window=9),
        bench.ledger.cancel("j"),
        bench.ledger.cancel("x"),
    ]
    answers = bench.runner.run_all(calls)
    assert isinstance(answers[0], int)
    assert answers[1:] == [PutReply(Put.QUEUED), "CANCELLED", "UNKNOWN"]
    loaded = bench.redis.script_exists(*(script.sha1 for script in ALL))
    assert sum(loaded) == 2, "only what was asked for"


def test_the_scripts_have_the_names_that_redis_gives_them(bench: Bench) -> None:
    assert [bench.redis.script_load(script.source) for script in ALL] == [script.sha1 for script in ALL]
    assert len({script.name for script in ALL}) == len(ALL)


def test_the_async_runner_runs_the_same_calls(bench: Bench, settings: SettingsFactory) -> None:
    async def main() -> list[Any]:
        runner = AsyncRunner(connect_async(settings()), bench.url)
        await runner.client.script_flush()
        try:
            put = bench.ledger.put(
                "j", header=head(), request=REQUEST, chunk="c", images=1, digest=digest("c"), window=9
            )
            answers = await runner.run_all([put, put])
            begin = partial(bench.ledger.begin, "j", "c", lease_ms=LONG_MS, latest={}, queue="")
            leases = [await runner.run(begin(owner=w, grant=w)) for w in ("a", "b")]
            return [*answers, *(lease.outcome for lease in leases), await runner.run(bench.ledger.jobs(0, 9))]
        finally:
            await runner.close()

    assert asyncio.run(main()) == [PutReply(Put.QUEUED)] * 2 + [Begin.RUN, Begin.HELD, ["j"]]


def test_one_failed_call_fails_the_batch_with_our_error(bench: Bench) -> None:
    bench.redis.set(bench.keys.job("j"), "not a hash")
    with pytest.raises(LedgerUnavailable, match="WRONGTYPE"):
        bench.runner.run_all([bench.ledger.now(), bench.ledger.cancel("j")])


def ask_sync(settings: Settings) -> None:
    runner = SyncRunner(connect(settings), settings.ledger_url())
    try:
        runner.run(Ledger(Keys("x")).now())
    finally:
        runner.close()


def ask_async(settings: Settings) -> None:
    async def main() -> None:
        runner = AsyncRunner(connect_async(settings), settings.ledger_url())
        try:
            await runner.run(Ledger(Keys("x")).now())
        finally:
            await runner.close()

    asyncio.run(main())


@pytest.mark.parametrize("ask", [ask_sync, ask_async])
@pytest.mark.parametrize("listens", [False, True], ids=["down", "silent"])
def test_a_server_that_is_down_or_silent_is_unavailable_in_time(
    ask: Callable[[Settings], None], listens: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not listens:
            server.close()
        settings = Settings.load(broker_url=f"redis://:hunter2@127.0.0.1:{port}/0", connect_timeout_seconds=0.3)
        begun = time.monotonic()
        with pytest.raises(LedgerUnavailable, match=rf"redis://:\*\*\*@127.0.0.1:{port}/0 did not answer"):
            ask(settings)
        assert time.monotonic() - begun < 3


def test_a_unix_socket_in_either_spelling(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path / "r", "--unixsocket", str(tmp_path / "redis.sock")):
        for url in (f"unix://{tmp_path}/redis.sock?db=3", f"redis+socket://{tmp_path}/redis.sock?virtual_host=3"):
            bench = Bench(Settings.load(broker_url=url))
            bench.put("j", "c1")
            assert bench.redis.connection_pool.connection_kwargs["db"] == 3
            bench.runner.close()


# --- the server is full --------------------------------------------------------------------------------------------


def test_a_full_redis_takes_no_new_work_and_lets_the_old_finish(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path / "full", "--maxmemory", "100mb") as server:
        bench = Bench(Settings.load(broker_url=f"{server.url}/0"))
        for chunk in ("run", "back", "silent", "again"):
            bench.put("j", chunk, seal=chunk == "again")
        bench.put("sunk", "c1", header=head(sink="file:///out"), seal=True)
        bench.begin("sunk", "c1")
        for chunk in ("back", "silent", "again"):
            bench.begin("j", chunk, lease_ms=LONG_MS if chunk == "back" else 0)
        bench.redis.config_set("maxmemory", 1)
        with pytest.raises(LedgerFull, match=r"is at its maxmemory"):
            bench.put("k", "c")
        assert bench.begin("j", "run").outcome is Begin.RUN
        assert bench.run(bench.ledger.renew("w1", [("j", "run", 1)], lease_ms=LONG_MS)) == [True]
        assert bench.run(bench.ledger.hand_back("w1", [("j", "back", 1)])) == [("j", "back")]
        assert sorted(bench.run(bench.ledger.expire_leases(QUEUE, limit=9))) == [("j", "again"), ("j", "silent")]
        assert bench.begin("j", "again", "w2").outcome is Begin.RUN
        for chunk in ("run", "back", "silent", "again"):
            assert bench.commit("j", chunk, records=[("a", b"{}")])[0] is Commit.COMMITTED
        assert bench.job("j")["state"] == "done"
        assert bench.run(bench.ledger.hold("finalise", "w1", lease_ms=LONG_MS))
        assert bench.commit("sunk", "c1", part="p") == (Commit.COMMITTED, True)
        assert bench.run(bench.ledger.finish("sunk"))
        assert bench.run(bench.ledger.delete("sunk")) == 1
        bench.runner.close()
