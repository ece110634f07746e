"""The transport from the inside: reserve, settle, restore and lanes, on a real Redis and without Celery's worker."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Consumer

from classifleet.config import message
from classifleet.config.celery_app import make_app
from classifleet.worker import transport
from classifleet.worker.transport.turns import GARBAGE_KEPT, MESSAGE_BYTES
from tests.conftest import SettingsFactory
from tests.integration.transport_bench import BULK, INTERACTIVE, Bench, Client
from tests.support.services import RedisServer
from tests.support.waiting import wait_until


@pytest.fixture
def bench(settings: SettingsFactory) -> Iterator[Bench]:
    bench = Bench(settings())
    yield bench
    bench.publisher.close()
    bench.redis.close()


def chunks(messages: list[Any]) -> list[str]:
    return [each.payload[1]["chunk"] for each in messages]


def test_messages_are_reserved_in_order_and_settled_for_good(bench: Bench) -> None:
    bench.publish(5)
    with bench.client() as client:
        taken = client.take(5)
        assert chunks(taken) == ["0", "1", "2", "3", "4"]
        assert {each.delivery_info["routing_key"] for each in taken} == {BULK}
        assert (bench.held(), bench.publisher.depth(BULK)) == (5, 0)
        for each in taken[:3]:
            each.ack()
        taken[3].reject()
        assert bench.held() == 1
        assert len(bench.garbage()) == 1
    # What was not settled is back when the channel is closed.
    assert (bench.held(), bench.publisher.depth(BULK)) == (0, 1)
    assert [key for key in bench.redis.keys("*") if not key.startswith(bench.prefix.encode())] == []


def test_what_is_handed_back_comes_first_and_in_order(bench: Bench) -> None:
    bench.publish(6)
    with bench.client(slots=4) as client:
        assert chunks(client.take(3)) == ["0", "1", "2"]  # one slot of four is kept for the other lane
        assert transport.hand_back() == 3
        assert transport.hand_back() == 0
        assert chunks(client.take(3)) == ["0", "1", "2"]


def test_a_restored_message_is_another_one_to_its_old_holder(bench: Bench) -> None:
    bench.publish(1)
    with bench.client() as silent, bench.client() as other:
        [first] = silent.take(1)
        bench.overdue()
        other.reserver._next_sweep = 0
        [second] = other.take(1)
        assert second.delivery_tag != first.delivery_tag
        first.ack()
        first.channel.reserver.ack(first.delivery_tag)
        assert bench.held() == 1
        second.ack()
        assert bench.held() == 0


def test_a_clock_that_is_wrong_restores_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.publish(3)
    with bench.client() as holder, bench.client() as other:
        holder.take(3)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 600)
        other.reserver._next_sweep = 0
        assert other.nothing_comes()
        assert bench.held() == 3


def test_what_is_held_is_kept_and_what_is_not_comes_back(bench: Bench) -> None:
    bench.publish(2)
    with bench.client(lease_seconds=1) as holder, bench.client(lease_seconds=1) as other:
        holder.take(2)
        began = time.monotonic()

        def round_() -> bool:
            assert holder.nothing_comes()
            assert other.nothing_comes()
            return time.monotonic() - began > 2

        wait_until(round_, "two deadlines to pass", 10)
        assert bench.held() == 2
        began = time.monotonic()
        other.drain(lambda: len(other.got) == 2)  # nobody drives the holder now
        assert time.monotonic() - began < 3


def test_a_thousand_come_back_without_a_stall(bench: Bench) -> None:
    bench.publish(1000)
    with bench.client(slots=2000) as dead, bench.client(slots=2) as other:
        dead.take(1000)
        bench.overdue()
        other.reserver._next_sweep = 0
        slowest, began = 0.0, time.monotonic()

        def back() -> bool:
            nonlocal slowest
            start = time.monotonic()
            other.nothing_comes()
            bench.redis.ping()
            slowest = max(slowest, time.monotonic() - start)
            return bench.publisher.depth(BULK) == 999

        wait_until(back, "all to be back", 10)
        assert slowest < 1
        assert time.monotonic() - began < 5
        assert chunks(other.take(1)) in (["0"], ["200"], ["400"], ["600"], ["800"])


def test_interactive_comes_first_and_neither_lane_takes_all(bench: Bench) -> None:
    bench.publish(20, BULK)
    bench.publish(20, INTERACTIVE)
    with bench.client(slots=8) as client:
        taken = client.take(8)
        lanes = [each.delivery_info["routing_key"] for each in taken]
        assert lanes == [INTERACTIVE] * 6 + [BULK] * 2
        for each in taken[:6]:
            each.ack()
        bench.redis.delete(bench.prefix + INTERACTIVE)
        assert [each.delivery_info["routing_key"] for each in client.take(4)] == [BULK] * 4
        assert client.nothing_comes()


def test_bulk_leaves_slots_for_interactive(bench: Bench) -> None:
    bench.publish(20, BULK)
    with bench.client(slots=8) as client:
        assert len(client.take(6)) == 6
        assert client.nothing_comes()
        bench.publish(1, INTERACTIVE)
        assert client.take(1)[0].delivery_info["routing_key"] == INTERACTIVE


def test_pools_of_a_lane_take_turns(bench: Bench) -> None:
    bench.publish(50, "classify.a.bulk")
    bench.publish(50, "classify.b.bulk")
    with bench.client(slots=4, queues=["a", "b"]) as client:
        seen = []
        while len(seen) < 30:
            for each in client.take(1):
                seen.append(each.delivery_info["routing_key"])
                each.ack()
    assert min(seen.count("classify.a.bulk"), seen.count("classify.b.bulk")) > 6


GARBAGE = {
    "no JSON": b"\x80\x04\x95pickle\xff",
    "empty": b"",
    "a list": b"[1, 2]",
    "a number": b"1",
    "null": b"null",
    "no properties": b'{"body": "x", "headers": {}}',
    "properties of a wrong type": b'{"body": "x", "properties": "p"}',
    "body of a wrong type": b'{"body": 5, "properties": {"body_encoding": "base64"}}',
    "not base64": b'{"body": "YQ", "properties": {"body_encoding": "base64"}}',
    "no such encoding": b'{"body": "x", "properties": {"body_encoding": "rot13"}}',
    "deep": b"[" * 100_000,
    "oversized": b'{"body": "' + b"x" * (MESSAGE_BYTES + 1) + b'"}',
    "a newline": b"\n",
}


def test_garbage_is_put_aside_and_strands_nothing(bench: Bench) -> None:
    for number, body in enumerate(GARBAGE.values()):
        bench.publisher.publish([(BULK, message("j", str(number)))])
        bench.redis.lpush(bench.prefix + BULK, body)
    with bench.client(slots=100) as client:
        taken = client.take(len(GARBAGE))
        assert chunks(taken) == [str(number) for number in range(len(GARBAGE))]
        client.drain(lambda: bench.held() == len(GARBAGE))
        assert len(bench.garbage()) == len(GARBAGE)
        assert max(map(len, bench.garbage())) < 10_000
        for each in taken:
            each.ack()
        assert bench.held() == 0


def test_the_list_of_garbage_is_capped(bench: Bench) -> None:
    bench.redis.lpush(bench.prefix + BULK, *[f"garbage {number}" for number in range(GARBAGE_KEPT + 10)])
    with bench.client(slots=2000) as client:
        client.drain(lambda: bench.publisher.depth(BULK) == bench.held() == 0)
    assert len(bench.garbage()) == GARBAGE_KEPT
    assert bench.garbage()[0] == f"garbage {GARBAGE_KEPT + 9}".encode()


def test_a_consumer_that_fails_does_not_stop_the_next_message(bench: Bench) -> None:
    bench.publish(3)
    with bench.client() as client:
        seen = []

        def fail_once(each: Any) -> None:
            seen.append(each)
            if len(seen) == 1:
                raise RuntimeError("a defect")

        client.consumer.on_message = fail_once
        client.drain(lambda: len(seen) == 3)
        client.drain(lambda: bench.held() == 2)
        assert len(bench.garbage()) == 1


def test_namespaces_never_meet(bench: Bench) -> None:
    other = Bench(bench.settings.model_copy(update={"namespace": "other"}))
    bench.publish(3)
    other.publish(2, job="theirs")
    assert (bench.publisher.depth(BULK), other.publisher.depth(BULK)) == (3, 2)
    with bench.client() as ours, other.client() as theirs:
        assert {each.payload[1]["job"] for each in ours.take(3)} == {"j"}
        assert {each.payload[1]["job"] for each in theirs.take(2)} == {"theirs"}
        bench.overdue()
        theirs.reserver._next_sweep = 0
        assert theirs.nothing_comes()
        assert (bench.held(), other.held()) == (3, 2)
    other.publisher.close()


@pytest.mark.parametrize(("sends", "serves"), [("stock", "atomic"), ("atomic", "stock"), ("stock", "stock")])
def test_either_end_may_be_kombus_own(settings: SettingsFactory, sends: str, serves: str) -> None:
    bench = Bench(settings(transport=sends))
    bench.publish(3)
    assert bench.publisher.depth(BULK) == 3
    app_settings = settings(transport=serves)
    app = make_app(app_settings)
    transport.install(app, app_settings)
    got: list[Any] = []
    with app.connection_for_read() as connection:
        with Consumer(connection, queues=app.conf.task_queues, on_message=got.append, accept=["json"]):
            wait_until(lambda: _drain_once(connection) or len(got) == 3, "all three", 5)
        for each in got:
            each.ack()
    assert chunks(got) == ["0", "1", "2"]
    assert bench.publisher.depth(BULK) == 0
    bench.publisher.close()
    bench.redis.close()


def _drain_once(connection: Any) -> None:
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.1)


def test_messages_that_woke_a_dead_worker_are_counted_and_found(bench: Bench) -> None:
    with bench.client() as client:
        client.nothing_comes()
        bench.publish(1)  # the client blocks and does not look: its message lies beside the queue
        wait_until(lambda: bench.redis.llen(f"{bench.prefix}{BULK}:woken") == 1, "the client to be woken")
        assert bench.publisher.depth(BULK) == 1
        with bench.client() as other:
            other.reserver._must_turn = True
            assert chunks(other.take(1)) == ["0"]
            assert client.nothing_comes()


def test_one_message_wakes_one_worker(bench: Bench) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(bench.client()) for _ in range(5)]
        for client in clients:
            client.nothing_comes()
        bench.redis.config_resetstat()
        bench.publish(1)
        wait_until(lambda: bench.redis.llen(f"{bench.prefix}{BULK}:woken") == 1, "one to be woken")
        served = bench.redis.info("commandstats")["cmdstat_lpush"]["calls"]
        assert served == 1
        assert sum(_lines_ready(client) for client in clients) == 1


def _lines_ready(client: Client) -> int:
    from classifleet.worker.transport.line import _readable

    return sum(_readable(line._fd) for line in client.reserver._waits.values())


def test_a_worker_that_stops_takes_nothing_and_gives_back_what_woke_it(bench: Bench) -> None:
    with bench.client() as client, bench.client() as other:
        client.nothing_comes()
        bench.publish(1)
        wait_until(lambda: bench.redis.llen(f"{bench.prefix}{BULK}:woken") == 1, "the client to be woken")
        client.reserver.stop()
        assert client.nothing_comes()
        bench.publish(2)
        assert client.nothing_comes()
        other.drain(lambda: len(other.got) == 3)
        assert bench.held() == 3


def test_redis_forgets_the_script(bench: Bench) -> None:
    with bench.client() as client:
        bench.publish(1)
        client.take(1)[0].ack()
        bench.redis.script_flush()
        bench.publish(1)
        [each] = client.take(1)
        bench.redis.script_flush()
        each.ack()
        assert bench.held() == 0


def test_a_full_redis_still_hands_out_and_takes_back(tmp_path: Path, settings: SettingsFactory) -> None:
    with RedisServer.start(tmp_path / "redis") as server, server.client() as plain:
        bench = Bench(settings(broker_url=f"{server.url}/0"))
        bench.publish(50)
        with bench.client(slots=10) as client, bench.client(slots=2) as other:
            held = client.take(7)
            plain.config_set("maxmemory", 1)
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                plain.set("more", "x")
            for each in held[:3]:
                each.ack()
            client.reserver._next_keep = 0
            assert len(client.take(3)) >= 3
            held[3].requeue()
            held[4].reject()
            plain.config_set("maxmemory", 0)
            bench.overdue()
            plain.config_set("maxmemory", 1)
            other.reserver._next_sweep = 0
            assert len(other.take(1)) == 1
            # An empty lane: Redis refuses to block, and messages come all the same when it is not full any more.
            plain.delete(bench.prefix + BULK)
            other.got.clear()
            for each in list(other.reserver._held):
                other.reserver.ack(each)
            other.nothing_comes()
            plain.config_set("maxmemory", 0)
            bench.publish(1, job="later")
            other.drain(lambda: any(each.payload[1]["job"] == "later" for each in [*other.got, *client.got]))
        bench.publisher.close()
        bench.redis.close()


def commands(client: redis.Redis) -> int:
    """What clients sent; INFO also counts what scripts do."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval", "blmove", "ping"))


@pytest.mark.parametrize("bulk_is_full", [False, True])
def test_an_idle_worker_sends_next_to_nothing(bench: Bench, bulk_is_full: bool) -> None:
    with bench.client(slots=4) as client:
        if bulk_is_full:
            bench.publish(20)
            client.take(3)
        client.nothing_comes()
        before, began = commands(bench.redis), time.monotonic()
        client.drain(lambda: time.monotonic() - began > 1.5)
        assert client.got == []
        assert commands(bench.redis) - before <= 4


def test_a_message_is_what_celery_wrote(bench: Bench) -> None:
    bench.publish(1)
    raw = bench.redis.lindex(bench.prefix + BULK, 0)
    with bench.client() as client:
        client.take(1)
        [entry] = bench.redis.hvals(f"{bench.prefix}reserved")
        assert entry == BULK.encode() + b"\n" + raw  # and comes back as it was
        assert json.loads(base64.b64decode(json.loads(raw)["body"]))[1] == message("j", "0")
