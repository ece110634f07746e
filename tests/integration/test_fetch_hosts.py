"""Hosts: so many requests at one time, and rest for those that keep failing; the metrics name none of them."""

import asyncio

from aiohttp import web
from prometheus_client import generate_latest

from classifleet.config import ErrorCode
from classifleet.worker.ingest.hosts import MIN_OUTCOMES
from classifleet.worker.instruments import REGISTRY
from tests.support.waiting import wait_until_async
from tests.support.web import IMAGE, LOOPBACK, answers, failure, fetching, get, metric, serve

ANYWHERE = answers([LOOPBACK])
OPEN = "classifleet_fetch_circuits_open"


def test_one_host_gets_so_many_requests_at_one_time_and_others_go_on():
    gate, now, most = asyncio.Event(), [], []

    async def handler(request):
        if request.host.startswith("popular"):
            now.append(request)
            most.append(len(now))
            await gate.wait()
            now.remove(request)
        return web.Response(body=IMAGE)

    async def scenario():
        async with (
            serve(handler) as site,
            fetching(
                f"{LOOPBACK}:{site.port}", getaddrinfo=ANYWHERE, fetch_host_concurrency=3, fetch_concurrency=8
            ) as fetcher,
        ):
            # The name's case and its last dot make no other host of it.
            names = ["popular.example", "POPULAR.example", "popular.example."]
            tasks = [asyncio.create_task(get(fetcher, site.url(host=names[n % 3]))) for n in range(30)]
            await wait_until_async(lambda: len(now) == 3, "three requests are under way")
            # Those that wait for the host hold no slot: eight slots would be taken otherwise.
            assert await get(fetcher, site.url(host="other.example")) == IMAGE
            gate.set()
            assert await asyncio.gather(*tasks) == [IMAGE] * 30
            assert max(most) == 3

    asyncio.run(scenario())


def test_a_host_that_keeps_failing_is_left_alone_and_tried_again(monkeypatch):
    monkeypatch.setattr("classifleet.worker.ingest.hosts.OPEN_SECONDS", 0.3)
    broken = True

    async def handler(_):
        return web.Response(status=503) if broken else web.Response(body=IMAGE)

    async def scenario():
        nonlocal broken
        before = metric(OPEN)
        async with (
            serve(handler) as site,
            serve() as other,
            fetching(f"{LOOPBACK}:{site.port}", f"{LOOPBACK}:{other.port}", getaddrinfo=ANYWHERE) as fetcher,
        ):
            url = site.url(host="bad.example")
            errors = await asyncio.gather(*(failure(fetcher, url) for _ in range(100)))
            assert {error.code for error in errors} == {ErrorCode.FETCH_FAILED}
            assert any("circuit open" in str(error) for error in errors)
            assert MIN_OUTCOMES <= len(site.requests) < 100  # of up to 300
            assert metric(OPEN) == before + 1
            assert await get(fetcher, other.url(host="good.example")) == IMAGE
            broken = False

            async def recovered():
                return await get_or_none(fetcher, url) == IMAGE

            await wait_until_async(recovered, "the host is asked again")
            assert metric(OPEN) == before
            assert await asyncio.gather(*(get(fetcher, url) for _ in range(20))) == [IMAGE] * 20

    asyncio.run(scenario())


async def get_or_none(fetcher, url):
    results = await asyncio.gather(get(fetcher, url), return_exceptions=True)
    return results[0]


def test_a_few_bad_references_close_no_shared_host_to_others():
    async def handler(request):
        return web.Response(status=503) if request.path == "/bad" else web.Response(body=IMAGE)

    async def scenario():
        async with serve(handler) as site, fetching(f"{LOOPBACK}:{site.port}") as fetcher:
            jobs = [failure(fetcher, site.url("/bad")) if n % 4 == 0 else get(fetcher, site.url()) for n in range(200)]
            results = await asyncio.gather(*jobs)
            assert sum(result == IMAGE for result in results) == 150

    asyncio.run(scenario())


def test_no_metric_names_a_host():
    async def scenario():
        async with serve() as site, fetching(f"{LOOPBACK}:{site.port}", getaddrinfo=ANYWHERE) as fetcher:
            await get(fetcher, site.url(host="customer-of-ours.example"))
            text = generate_latest(REGISTRY).decode()
            for name in ("slots", "connections", "host_waits_total", "circuits_open", "circuit_refusals_total"):
                assert f"classifleet_fetch_{name}" in text
            assert "customer-of-ours" not in text
            assert LOOPBACK not in text

    asyncio.run(scenario())
