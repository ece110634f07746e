from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from classifleet.config import ErrorCode, ImageError, Item, Payload
from classifleet.config.reference import Reference
from classifleet.ledger import Begin, Lease
from classifleet.worker.batching import Device
from classifleet.worker.decode import DecodeLimits
from classifleet.worker.lanes import LaneExecutor
from classifleet.worker.models import ModelDescription
from classifleet.worker.pipeline import Pipeline
from classifleet.worker.stages import bounded
from tests.models_support import description_fields


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def test_a_stage_that_hangs_says_which() -> None:
    async def run() -> None:
        async with bounded("decode", 0.001):
            await forever()

    with pytest.raises(ImageError, match=r"decode took longer than 0\.001 s") as raised:
        asyncio.run(run())
    assert raised.value.code is ErrorCode.INTERNAL


def test_an_outer_limit_and_other_errors_are_left_alone() -> None:
    async def deadline() -> None:
        async with asyncio.timeout(0.001), bounded("decode", 60):
            await forever()

    async def fails() -> None:
        async with bounded("decode", 60):
            raise ImageError(ErrorCode.UNDECODABLE)

    with pytest.raises(TimeoutError):
        asyncio.run(deadline())
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
