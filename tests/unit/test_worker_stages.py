from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from classifleet.config import ErrorCode, ImageError, Item, Payload
from classifleet.config.reference import Reference
from classifleet.ledger import Begin, Lease
from classifleet.worker.decode import DecodeLimits
from classifleet.worker.device import Device
from classifleet.worker.lanes import LaneExecutor
from classifleet.worker.models import ModelDescription
from classifleet.worker.pipeline import Pipeline
from classifleet.worker.stages import Limit
from tests.models_support import description_fields
from tests.support import wait_until
from tests.support.waiting import wait_until_async


@contextmanager
def hanging(threads: int = 1) -> Iterator[tuple[LaneExecutor, Callable[[], bool]]]:
    """A pool, and a call that hangs until the end."""
    go_on = threading.Event()
    with LaneExecutor(threads, "test") as pool:
        yield pool, lambda: go_on.wait(10)
        go_on.set()
    wait_until(lambda: not pool.lost, "lost threads to end")


async def outcomes(limit: Limit, pool: LaneExecutor, *calls: Callable[[], object]) -> list[str]:
    """What comes of these calls, as text."""
    futures = [limit.of(pool.submit("bulk", call)) for call in calls]
    return list(map(str, await asyncio.gather(*futures, return_exceptions=True)))


def test_a_stage_that_hangs_says_which_and_no_other_image_suffers() -> None:
    """With all threads in images that hang, the next waits for the thread that takes the place of theirs."""
    with hanging(2) as (pool, hang):
        limit = Limit("decode", 0.05, pool)
        found = asyncio.run(outcomes(limit, pool, hang, hang, hang, lambda: "pixels", lambda: "more"))
        assert found == ["decode took longer than 0.05 s"] * 3 + ["pixels", "more"]
        assert pool.lost == 3
        assert not pool.busy()


def test_a_wait_for_a_thread_is_not_the_image_s_fault() -> None:
    async def scenario(pool: LaneExecutor) -> list[str]:
        limit, pause = Limit("decode", 0.2, pool), threading.Event()
        return await outcomes(limit, pool, *[lambda: pause.wait(0.05)] * 8)

    with LaneExecutor(1, "test") as pool:
        assert asyncio.run(scenario(pool)) == ["False"] * 8
        assert not pool.lost


def test_a_stage_has_its_limit_again_after_a_pause_and_on_another_loop() -> None:
    with hanging() as (pool, hang):
        limit = Limit("decode", 0.001, pool)

        async def hang_twice() -> list[list[str]]:
            return [await outcomes(limit, pool, hang) for _ in range(2)]

        assert [asyncio.run(hang_twice()) for _ in range(2)] == [[["decode took longer than 0.001 s"]] * 2] * 2


def test_an_outer_limit_and_other_errors_are_left_alone() -> None:
    """What an outer limit has ended is found stuck all the same."""

    async def deadline(pool: LaneExecutor, hang: Callable[[], bool]) -> None:
        hanging = pool.submit("bulk", hang)
        await wait_until_async(pool.busy, "the thread to be at it")  # what has not begun is not stuck
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await Limit("decode", 0.2, pool).of(hanging)
        assert not pool.lost
        await wait_until_async(lambda: pool.lost == 1, "the thread to be lost")

    def corrupt() -> None:
        raise ImageError(ErrorCode.UNDECODABLE, "corrupt")

    with hanging() as (pool, hang):
        asyncio.run(deadline(pool, hang))
        assert asyncio.run(outcomes(Limit("decode", 60, pool), pool, corrupt)) == ["corrupt"]


class Fetched:
    """An image's bytes are its name."""

    async def fetch(self, reference: Reference, **_: Any) -> bytes:
        return reference.text.rpartition("/")[2].encode()


def test_a_decoder_that_hangs_costs_one_image_and_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def hang(data: bytes, *_: Any) -> Any:
        if data == b"hangs":
            go_on.wait(10)
        raise ImageError(ErrorCode.UNDECODABLE)

    monkeypatch.setattr("classifleet.worker.pipeline.prepare", hang)
    items = [Item(id=name, ref=f"https://h/{name}") for name in ("hangs", "corrupt")]
    payload = Payload(job="j", chunk="0", items=items, models=["pets"])
    lease = Lease(Begin.RUN, "j", "0", attempt=1, models=("pets@1",))
    description = ModelDescription.model_validate(description_fields(), strict=False)
    with LaneExecutor(1, "test") as pool:
        pipeline = Pipeline(
            fetcher=Fetched(), models={"pets@1": description}, device=Device(), decode_pool=pool,
            limits=DecodeLimits(), decoded_in_flight=4, worker="w", decode_seconds=0.05,
        )  # fmt: skip
        hangs, corrupt = asyncio.run(pipeline.classify(payload, lease, "bulk"))
        go_on.set()
    assert (hangs["error"]["code"], corrupt["error"]["code"]) == ("internal", "undecodable")
    assert hangs["error"]["message"] == "decode took longer than 0.05 s"
