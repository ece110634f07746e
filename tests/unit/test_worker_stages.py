from __future__ import annotations

import asyncio
import threading
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


def waiting() -> asyncio.Future[bytes]:
    return asyncio.get_running_loop().create_future()


def test_a_stage_that_hangs_says_which_and_no_other_image_suffers() -> None:
    async def run() -> list[bytes | BaseException]:
        limit = Limit("decode", 0.05)
        early, late, ended = waiting(), waiting(), waiting()
        asyncio.get_running_loop().call_later(0.03, ended.set_result, b"pixels")
        at_work = [asyncio.ensure_future(limit.of(each)) for each in (early, ended)]
        await asyncio.sleep(0.02)
        at_work.append(asyncio.ensure_future(limit.of(late)))
        return await asyncio.gather(*at_work, return_exceptions=True)

    early, ended, late = asyncio.run(run())
    assert ended == b"pixels"
    for error in (early, late):
        assert isinstance(error, ImageError)
        assert (error.code, str(error)) == (ErrorCode.INTERNAL, "decode took longer than 0.05 s")


def test_a_stage_has_its_limit_again_after_a_pause_and_on_another_loop() -> None:
    limit = Limit("decode", 0.001)

    async def hang() -> None:
        for _ in range(2):
            with pytest.raises(ImageError, match=r"longer than 0\.001 s"):
                await limit.of(waiting())

    for _ in range(2):
        asyncio.run(hang())


def test_an_outer_limit_and_other_errors_are_left_alone() -> None:
    async def deadline() -> bool:
        stage = waiting()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await Limit("decode", 60).of(stage)
        return stage.cancelled()

    async def fails() -> None:
        stage = waiting()
        stage.set_exception(ImageError(ErrorCode.UNDECODABLE))
        await Limit("decode", 60).of(stage)

    assert asyncio.run(deadline())
    with pytest.raises(ImageError, match="corrupt"):
        asyncio.run(fails())


class Fetched:
    """An image's bytes are its name."""

    async def fetch(self, reference: Reference, **_: Any) -> bytes:
        return reference.text.rpartition("/")[2].encode()


def test_a_decoder_that_hangs_costs_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
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
    with LaneExecutor(2, "test") as pool:
        pipeline = Pipeline(
            fetcher=Fetched(), models={"pets@1": description}, device=Device(), decode_pool=pool,
            limits=DecodeLimits(), decoded_in_flight=4, worker="w", decode_seconds=0.05,
        )  # fmt: skip
        hangs, corrupt = asyncio.run(pipeline.classify(payload, lease, "bulk"))
        go_on.set()
    assert (hangs["error"]["code"], corrupt["error"]["code"]) == ("internal", "undecodable")
    assert hangs["error"]["message"] == "decode took longer than 0.05 s"
