"""examples/fastapi: with a fleet in memory, with no fleet at all, and with a real one."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from classifleet.producer import AsyncFleet, BrokerUnavailable, ErrorCode
from classifleet.producer.testing import AsyncInMemoryFleet
from tests.fixtures_fleet import LiveFleet

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

APP = Path(__file__).parents[2] / "examples" / "fastapi" / "app.py"
URL = "https://example.com/tom.jpg"
CAT = {"tabby": 0.9, "lynx": 0.1}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_fastapi", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    return module


def serve(example: ModuleType, fleet: AsyncFleet, talk: Callable[[Any], Awaitable[None]]) -> None:
    """Run the application on a fleet and let a client talk with it."""

    async def main() -> None:
        example.app.dependency_overrides[example.get_fleet] = lambda: fleet
        async with fleet, client_of(example) as client:
            await talk(client)

    asyncio.run(main())


@asynccontextmanager
async def client_of(example: ModuleType) -> AsyncIterator[Any]:
    transport = httpx.ASGITransport(app=example.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


def test_an_image_by_url(example: ModuleType) -> None:
    fleet = AsyncInMemoryFleet({URL: CAT}, paused=True)

    async def talk(client: Any) -> None:
        accepted = await client.post("/images", json={"url": URL})
        assert accepted.status_code == 202
        where = accepted.headers["location"]
        assert where == f"/results/{accepted.json()['id']}" == accepted.json()["result"]
        pending = await client.get(where)
        assert (pending.status_code, pending.json()["state"]) == (202, "pending")
        assert pending.headers["retry-after"] == "1"
        fleet.run_pending()
        answer = await client.get(where, params={"wait": 5})
        assert answer.status_code == 200
        assert answer.json()["models"]["imagenet@1"]["top"] == "tabby"

    serve(example, fleet, talk)
    assert fleet.submitted[0].models == ("imagenet", "nsfw")


def test_an_image_as_the_body(example: ModuleType) -> None:
    fleet = AsyncInMemoryFleet({b"\xff\xd8 picture": CAT}, max_bytes=100)

    async def talk(client: Any) -> None:
        accepted = await client.post("/images", content=b"\xff\xd8 picture", headers={"Content-Type": "image/jpeg"})
        assert (await client.get(accepted.headers["location"])).status_code == 200
        assert (await client.post("/images", content=b"x" * 101)).status_code == 413

    serve(example, fleet, talk)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_an_image_error_has_its_status(example: ModuleType, code: ErrorCode) -> None:
    async def talk(client: Any) -> None:
        accepted = await client.post("/images", json={"url": URL})
        answer = await client.get(accepted.headers["location"])
        assert answer.status_code == code.spec.http_status
        assert answer.json()["error"]["code"] == code

    serve(example, AsyncInMemoryFleet({URL: code}), talk)


def test_a_partial_answer_is_an_answer(example: ModuleType) -> None:
    async def talk(client: Any) -> None:
        accepted = await client.post("/images", json={"url": URL})
        answer = await client.get(accepted.headers["location"])
        assert (answer.status_code, answer.json()["status"]) == (200, "partial")

    serve(example, AsyncInMemoryFleet({URL: {"imagenet": CAT, "nsfw": ErrorCode.MODEL_FAILED}}), talk)


def test_bad_requests(example: ModuleType) -> None:
    fleet = AsyncInMemoryFleet({URL: CAT})

    async def talk(client: Any) -> None:
        bodies: list[Any] = [{"url": "file:///etc/passwd"}, {"url": "s3://private/key"}, {"uri": URL}, []]
        for body in bodies:
            assert (await client.post("/images", json=body)).status_code == 422, body
        assert (await client.post("/images", content=b"")).status_code == 422
        assert (await client.post("/images", json={"url": URL}, headers={"Idempotency-Key": "a/b"})).status_code == 422
        assert (await client.get("/results/no-such")).status_code == 404
        assert (await client.get("/results/no-such", params={"wait": 1000})).status_code == 422

    serve(example, fleet, talk)
    assert fleet.submitted == []


def test_a_repeated_request_is_the_same_image(example: ModuleType) -> None:
    fleet = AsyncInMemoryFleet({URL: CAT})

    async def talk(client: Any) -> None:
        key = {"Idempotency-Key": "order-7"}
        first = await client.post("/images", json={"url": URL}, headers=key)
        again = await client.post("/images", json={"url": URL}, headers=key)
        assert (first.status_code, first.json()) == (again.status_code, again.json())
        other = await client.post("/images", json={"url": URL + "?other"}, headers=key)
        assert (other.status_code, other.json()["error"]) == (409, "IdConflict")
        fleet.expire("order-7")
        assert (await client.get("/results/order-7")).status_code == 410

    serve(example, fleet, talk)
    assert len(fleet.submitted) == 1


def test_a_broker_that_is_down(example: ModuleType) -> None:
    fleet = AsyncInMemoryFleet({URL: CAT})

    async def talk(client: Any) -> None:
        key = {"Idempotency-Key": "order-8"}
        with fleet.unavailable(BrokerUnavailable):
            refused = await client.post("/images", json={"url": URL}, headers=key)
        assert (refused.status_code, refused.json()["error"]) == (503, "BrokerUnavailable")
        assert refused.headers["retry-after"] == "1"
        assert (await client.post("/images", json={"url": URL}, headers=key)).status_code == 202
        assert (await client.get("/results/order-8")).status_code == 200

    serve(example, fleet, talk)


def test_a_fleet_with_no_room(example: ModuleType) -> None:
    async def talk(client: Any) -> None:
        refused = await client.post("/images", content=b"x" * 50_000)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")

    serve(example, AsyncInMemoryFleet({}, blob_max_total_bytes=0), talk)


def test_no_broker_at_all(example: ModuleType) -> None:
    async def talk(client: Any) -> None:
        refused = await client.post("/images", json={"url": URL})
        assert (refused.status_code, refused.json()["error"]) == (503, "LedgerUnavailable")
        assert "retry-after" in refused.headers

    serve(example, AsyncFleet("redis://127.0.0.1:1", connect_timeout_seconds=0.5), talk)


def test_on_a_real_fleet(example: ModuleType, live_fleet: LiveFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own lifespan, many at a time."""
    monkeypatch.setenv("CLASSIFLEET_BROKER_URL", live_fleet.url)
    photo = (live_fleet.photos / "coffee.jpg").read_bytes()

    async def ask(client: Any, **body: Any) -> Any:
        accepted = await client.post("/images", **body)
        assert accepted.status_code == 202
        return await client.get(accepted.headers["location"], params={"wait": 30})

    async def main() -> list[Any]:
        async with example.app.router.lifespan_context(example.app), client_of(example) as client:
            bodies: list[dict[str, Any]] = [
                {"json": {"url": f"{live_fleet.web}/coffee.jpg"}},
                {"content": photo},
                {"json": {"url": f"{live_fleet.web}/no-such.jpg"}},
                {"content": b"this is no image"},
            ]
            return await asyncio.gather(*(ask(client, **body) for body in bodies * 3))

    answers = asyncio.run(main())
    assert [answer.status_code for answer in answers] == [200, 200, 404, 415] * 3
    assert answers[0].json()["models"]["imagenet@1"]["top"] == answers[1].json()["models"]["imagenet@1"]["top"]
