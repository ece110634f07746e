"""Deadlines, slots and drips: nobody waits for a slow stranger longer than they must."""

import asyncio
import threading
import time

import pytest
from aiohttp import web

from classifleet.config import ErrorCode, Settings
from classifleet.worker.ingest import AddressPolicy, Fetcher
from classifleet.worker.ingest.memory import MemoryBudget
from classifleet.worker.ingest.resolver import CheckedResolver
from tests.support.waiting import wait_until_async
from tests.support.web import (
    IMAGE,
    LOOPBACK,
    NEVER_SECONDS,
    PUBLIC,
    answers,
    failure,
    fetching,
    get,
    metric,
    serve,
    serve_bytes,
)

# Time


@pytest.mark.parametrize(
    "parts",
    [
        [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 3_000],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", *[b"."] * 3_000],
        [b""] * 3_000,
    ],
    ids=["headers", "body", "silence"],
)
@pytest.mark.parametrize("by_setting", [True, False])
def test_a_drip_is_cut_at_the_deadline(parts, by_setting):
    limits = ({"fetch_timeout_seconds": 0.4}, {}) if by_setting else ({}, {"deadline_seconds": 0.4})

    async def scenario():
        async with (
            serve_bytes(*parts, pause_seconds=0.02) as site,
            fetching(f"{LOOPBACK}:{site.port}", **limits[0]) as fetcher,
        ):
            begun = time.monotonic()
            error = await failure(fetcher, site.url(), **limits[1])
            assert error.code is ErrorCode.FETCH_TIMEOUT
            assert 0.3 < time.monotonic() - begun < 3
            assert site.connections == 1

    asyncio.run(scenario())


def test_a_host_that_never_answers_the_phone_is_called_again_and_given_up(monkeypatch):
    dials = []

    async def sock_connect(_, __, address):
        dials.append(address)
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", sock_connect)

    async def scenario():
        async with fetching(f"{LOOPBACK}:80", connect_timeout_seconds=0.05) as fetcher:
            assert (await failure(fetcher, f"http://{LOOPBACK}/")).code is ErrorCode.FETCH_TIMEOUT
            assert dials == [(LOOPBACK, 80)] * 3

    asyncio.run(scenario())


def test_a_deadline_that_has_passed_dials_nobody():
    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert (await failure(fetcher, site.url(), deadline_seconds=0.0)).code is ErrorCode.FETCH_TIMEOUT
            assert site.connections == 0

    asyncio.run(scenario())


def test_a_slow_name_server_is_cut_at_the_deadline_and_others_go_on():
    release = threading.Event()

    def getaddrinfo(host, port, **_):
        if host == "slow.example":
            release.wait(NEVER_SECONDS)
        return answers([LOOPBACK])(host, port)

    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}", getaddrinfo=getaddrinfo) as fetcher:
            try:
                slow = asyncio.create_task(failure(fetcher, site.url(host="slow.example"), deadline_seconds=0.5))
                assert await get(fetcher, site.url(host="fast.example")) == IMAGE
                assert (await slow).code is ErrorCode.FETCH_TIMEOUT
            finally:
                release.set()

    asyncio.run(scenario())


def test_no_more_images_at_one_time_than_the_setting_says():
    gate, now, most = asyncio.Event(), [], []

    async def handler(request):
        now.append(request)
        most.append(len(now))
        await gate.wait()
        now.remove(request)
        return web.Response(body=IMAGE)

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}", fetch_concurrency=3) as fetcher:
            tasks = [asyncio.create_task(get(fetcher, site.url())) for _ in range(12)]
            await wait_until_async(lambda: len(now) == 3, "three requests are under way")
            assert (await failure(fetcher, site.url(), deadline_seconds=0.1)).code is ErrorCode.FETCH_TIMEOUT
            gate.set()
            assert await asyncio.gather(*tasks) == [IMAGE] * 12
            assert max(most) == 3

    asyncio.run(scenario())


def test_cancelling_passes_through_and_frees_the_slot():
    async def scenario():
        async with (
            serve_bytes(hold=True) as silent,
            serve() as site,
            fetching(f"{LOOPBACK}:{silent.port}", f"{LOOPBACK}:{site.port}", fetch_concurrency=1) as fetcher,
        ):
            task = asyncio.create_task(get(fetcher, silent.url()))
            await wait_until_async(lambda: silent.connections == 1, "the request is under way")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await get(fetcher, site.url()) == IMAGE

    asyncio.run(scenario())


def test_a_fetcher_that_was_not_started_says_so(caplog):
    async def scenario():
        fetcher = Fetcher(Settings(), read_blob=lambda *_: None)
        try:
            error = await failure(fetcher, "http://public.example/?signature=secret")
            assert error.code is ErrorCode.INTERNAL
            assert "secret" not in caplog.text
        finally:
            await fetcher.close()

    asyncio.run(scenario())


# Slow strangers


def test_slow_strangers_hold_their_own_slots_alone():
    """As many drips as there are slow slots, all until their deadline; all fast slots stay free for others."""

    async def scenario():
        async with (
            serve_bytes(DRIP_HEAD, *[b"."] * 3_000, pause_seconds=0.05) as drip,
            serve() as site,
            fetching(
                f"{LOOPBACK}:{drip.port}", f"127.0.0.1:{site.port}", fetch_concurrency=4, fetch_slow_concurrency=6,
                fetch_host_concurrency=64, fetch_timeout_seconds=30.0,
            ) as fetcher,
        ):  # fmt: skip
            slow = [asyncio.create_task(get(fetcher, drip.url())) for _ in range(6)]
            await wait_until_async(lambda: metric(SLOTS, lane="slow") == 6, "all drips have moved")
            assert metric(SLOTS, lane="fast") == 0
            assert await asyncio.gather(*(get(fetcher, site.url()) for _ in range(100))) == [IMAGE] * 100
            assert not any(task.done() for task in slow)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
            assert metric(SLOTS, lane="slow") == 0

    asyncio.run(scenario())


SLOTS = "classifleet_fetch_slots"
DRIP_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n"


def test_a_server_that_asks_for_patience_holds_no_slot_and_no_turn():
    async def handler(_):
        return web.Response(status=503, headers={"Retry-After": "8"})

    async def scenario():
        async with (
            serve(handler) as busy,
            serve() as site,
            fetching(f"{LOOPBACK}:{busy.port}", f"{LOOPBACK}:{site.port}", fetch_concurrency=1) as fetcher,
        ):
            waiting = asyncio.create_task(get(fetcher, busy.url()))
            await wait_until_async(lambda: busy.requests and metric(SLOTS, lane="fast") == 0, "it waits")
            assert await get(fetcher, site.url()) == IMAGE
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(scenario())


def test_slow_names_do_not_keep_other_names_waiting(monkeypatch):
    """More slow names than threads that lookups begin in, and the time for one lookup is up long before they end."""
    monkeypatch.setattr("classifleet.worker.ingest.resolver.LOOKUP_SECONDS", 3.0)
    release, asked = threading.Event(), []

    def getaddrinfo(host, port, **_):
        if host.startswith("slow"):
            asked.append(host)
            release.wait(NEVER_SECONDS)
        return answers([LOOPBACK])(host, port)

    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}", getaddrinfo=getaddrinfo) as fetcher:
            try:
                slow = [asyncio.create_task(failure(fetcher, site.url(host=f"slow{n}.example"))) for n in range(40)]
                again = asyncio.create_task(failure(fetcher, site.url(host="slow1.example")))
                await wait_until_async(lambda: len(asked) == 16, "the lookups have begun")
                assert await get(fetcher, site.url(host="fast.example")) == IMAGE
                errors = await asyncio.gather(*slow, again)
                assert {error.code for error in errors} == {ErrorCode.FETCH_TIMEOUT}
                assert "looked up" in str(errors[0])
                assert sorted(set(asked)) == sorted(asked)  # none twice at one time
            finally:
                release.set()

    asyncio.run(scenario())


def slow_names(address, release, asked):
    """Names that begin with `slow` are answered when told so; all are noted."""

    def getaddrinfo(host, port, **_):
        asked.append(host)
        if host.startswith("slow"):
            release.wait(NEVER_SECONDS)
        return answers([address])(host, port)

    return getaddrinfo


def test_an_attack_on_names_does_not_outlive_itself(monkeypatch):
    """Names that were given up before their lookup began are never looked up; names that others wait for, at once."""
    for name, value in {"DNS_THREADS": 2, "SLOW_DNS_THREADS": 2, "LOOKUP_SECONDS": 0.3}.items():
        monkeypatch.setattr(f"classifleet.worker.ingest.resolver.{name}", value)
    release, asked = threading.Event(), []
    getaddrinfo = slow_names(LOOPBACK, release, asked)

    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}", getaddrinfo=getaddrinfo) as fetcher:
            try:
                flood = [failure(fetcher, site.url(host=f"slow{n}.example")) for n in range(60)]
                assert {error.code for error in await asyncio.gather(*flood)} == {ErrorCode.FETCH_TIMEOUT}
                assert len(asked) <= 4
                failures = [await failure(fetcher, site.url(host="again.example")) for _ in range(2)]
                assert {error.code for error in failures} == {ErrorCode.FETCH_TIMEOUT}
            finally:
                release.set()
            assert await get(fetcher, site.url(host="again.example")) == IMAGE
            assert len(asked) <= 5

    asyncio.run(scenario())


def test_a_lookup_goes_on_while_anybody_waits_for_it(monkeypatch):
    """And who comes after the last has left begins a new one."""
    for name, value in {"DNS_THREADS": 1, "SLOW_DNS_THREADS": 1}.items():
        monkeypatch.setattr(f"classifleet.worker.ingest.resolver.{name}", value)
    release, asked = threading.Event(), []
    getaddrinfo = slow_names(PUBLIC, release, asked)

    async def scenario():
        resolver = CheckedResolver(AddressPolicy(), getaddrinfo)
        try:
            slow = [asyncio.create_task(resolver.resolve(f"slow{n}.example", 80)) for n in range(2)]
            await wait_until_async(lambda: len(asked) == 2, "all threads are taken", 10)
            impatient, patient = (asyncio.create_task(resolver.resolve("shared.example", 80)) for _ in range(2))
            lonely = asyncio.create_task(resolver.resolve("lonely.example", 80))
            await asyncio.sleep(0)
            for task in (impatient, lonely):
                task.cancel()
            await asyncio.gather(impatient, lonely, return_exceptions=True)
            late = asyncio.create_task(resolver.resolve("lonely.example", 80))
            release.set()
            for task in (patient, late, *slow):
                assert [found["host"] for found in await task] == [PUBLIC]
        finally:
            release.set()
            await resolver.close()

    asyncio.run(scenario())


# Memory


@pytest.mark.parametrize("declared", [True, False])
def test_images_in_flight_stay_within_their_memory(declared, monkeypatch):
    size, most = 1 << 20, []
    add = MemoryBudget.add

    def adding(budget, *arguments):
        add(budget, *arguments)
        most.append(budget.used_bytes)

    monkeypatch.setattr(MemoryBudget, "add", adding)

    async def handler(request):
        if declared:
            return web.Response(body=bytes(size))
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(bytes(size))
        return response

    async def scenario():
        async with (
            serve(handler) as site,
            fetching(f"{LOOPBACK}:{site.port}", fetch_max_total_bytes=3 << 20) as fetcher,
        ):
            images = await asyncio.gather(*(get(fetcher, site.url()) for _ in range(48)))
            assert images == [bytes(size)] * 48
            assert 1 << 20 < max(most) <= 3 << 20
            assert metric("classifleet_fetched_bytes") == 0

    asyncio.run(scenario())


def test_memory_that_strangers_sit_on_is_taken_back(monkeypatch):
    """They send almost all of their images and then drip, until there is no room for anybody else's."""
    monkeypatch.setattr("classifleet.worker.ingest.memory.SHORT_SECONDS", 0.05)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n"

    async def scenario():
        async with (
            serve_bytes(head + bytes(1_000_000), hold=True) as stranger,
            serve() as site,
            fetching(
                f"{LOOPBACK}:{stranger.port}", f"{LOOPBACK}:{site.port}", fetch_max_total_bytes=2 << 20,
                fetch_timeout_seconds=60.0,
            ) as fetcher,
        ):  # fmt: skip
            sitting = [asyncio.create_task(failure(fetcher, stranger.url())) for _ in range(4)]
            await wait_until_async(lambda: metric("classifleet_fetched_bytes") > 1_500_000, "they sit")
            others = asyncio.gather(*(get(fetcher, site.url()) for _ in range(10)))
            done, _ = await asyncio.wait(sitting, return_when=asyncio.FIRST_COMPLETED)
            error = done.pop().result()
            assert error.code is ErrorCode.FETCH_TIMEOUT
            assert "memory" in str(error)
            for task in sitting:
                task.cancel()
            assert await others == [IMAGE] * 10
            await asyncio.gather(*sitting, return_exceptions=True)

    asyncio.run(scenario())


def test_a_failed_attempt_holds_no_memory():
    async def scenario():
        half = b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + bytes(200_000)
        async with serve_bytes(half) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            assert (await failure(fetcher, site.url())).code is ErrorCode.FETCH_FAILED
            assert metric("classifleet_fetched_bytes") == 0

    asyncio.run(scenario())
