"""Decoding in a process of its own: what kills that process, and that nothing else is touched by it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifleet.config import ErrorCode, ImageError, Payload
from classifleet.ledger import Begin, Lease
from classifleet.worker.decode import DecodeLimits, prepare
from classifleet.worker.device import Device, ModelSlot
from classifleet.worker.lanes import LaneExecutor
from classifleet.worker.pipeline import Pipeline
from classifleet.worker.sandbox import Sandbox
from classifleet.worker.sandbox_child import FRAME, SandboxLimits
from tests.models_support import encode, noise, skimage_photo, spec
from tests.support.waiting import wait_until
from tests.unit.test_pipeline import Brightness, Fetch, describe, jpeg

HOSTILE = (sys.executable, "-I", str(Path(__file__).parents[1] / "support" / "hostile_child.py"))
SPEC = spec(resize="shortest_edge_crop", resize_size=256, crop_size=[224, 224])
OTHER = spec(resize="letterbox", resize_size=[64, 32], background=[0, 0, 255])
SPECS = {SPEC.digest: SPEC, OTHER.digest: OTHER}
LIMITS = SandboxLimits(memory_bytes=512 << 20, cpu_seconds=1, wall_seconds=20)
DECODE_LIMITS = DecodeLimits(truncated="lenient")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS, command=HOSTILE) as sandbox:
        yield sandbox


def refusal(sandbox: Sandbox, data: bytes, **options: bool) -> ImageError:
    with pytest.raises(ImageError) as caught:
        sandbox.prepare(data, SPECS, DECODE_LIMITS, **options)
    return caught.value


def state(sandbox: Sandbox, **options: bool) -> dict[str, Any]:
    return json.loads(str(refusal(sandbox, b"state:", **options)))


# the real child


@pytest.mark.parametrize("alone", [True, False])
def test_same_answers_as_without(alone):
    photo = skimage_photo("rocket.jpg").read_bytes()
    pictures = [photo, photo[: len(photo) // 2], encode(noise(60, 40), "PNG"), encode(noise(60, 40), "GIF")]
    with Sandbox() as sandbox:
        for data in pictures:
            info, arrays = sandbox.prepare(data, SPECS, DECODE_LIMITS, alone=alone)
            expected_info, expected = prepare(data, SPECS, DECODE_LIMITS)
            assert info == expected_info
            assert arrays.keys() == expected.keys()
            assert all(np.array_equal(arrays[digest], expected[digest]) for digest in expected)
        error = refusal(sandbox, b"<svg/>")
        assert error.code is ErrorCode.UNSUPPORTED_FORMAT
        with pytest.raises(ImageError) as caught:
            prepare(b"<svg/>", SPECS, DECODE_LIMITS)
        assert str(error) == str(caught.value)


def test_the_largest_picture_fits_into_the_default_memory():
    data = encode(noise(7071, 7071).convert("RGBA"), "PNG", compress_level=0)[: 300 << 20]
    with Sandbox(SandboxLimits()) as sandbox:
        assert sandbox.prepare(data, SPECS, DecodeLimits())[0]["width"] == 7071


# deaths


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("segfault", "SIGSEGV"),
        ("abort", "SIGABRT"),
        ("exit", "exit status 3"),
        ("kill", "SIGKILL"),
        ("exhaust", "more than 512 MiB of memory"),
        ("spin", "more time of a core"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_what_kills_the_child_is_poison_and_its_neighbours_live(sandbox, does, said, alone):
    good = encode(noise(60, 40), "PNG")
    assert sandbox.prepare(good, SPECS, DECODE_LIMITS, alone=alone)[0]["width"] == 60
    error = refusal(sandbox, does.encode() + b":", alone=alone)
    assert error.code is ErrorCode.POISON
    assert said in str(error)
    assert sandbox.prepare(good, SPECS, DECODE_LIMITS, alone=alone)[0]["width"] == 60


def test_what_never_returns_is_ended_by_the_clock():
    with Sandbox(SandboxLimits(wall_seconds=1.5), command=HOSTILE) as sandbox:
        error = refusal(sandbox, b"sleep:")
        assert error.code is ErrorCode.POISON
        assert "more than 1.5 s" in str(error)
        assert sandbox.prepare(encode(noise(8, 8), "PNG"), SPECS, DECODE_LIMITS)[0]["width"] == 8


def test_nobody_is_convicted_for_what_an_earlier_image_did(sandbox):
    good = encode(noise(60, 40), "PNG")
    sandbox.prepare(b"corrupt:" + good, SPECS, DECODE_LIMITS)
    assert sandbox.prepare(good, SPECS, DECODE_LIMITS)[0]["width"] == 60


def test_nobody_is_convicted_for_one_kill_from_outside(sandbox, tmp_path):
    """The kernel kills such a child first when a container is short of memory, whoever took it."""
    good, flag = encode(noise(60, 40), "PNG"), tmp_path / "killed"
    data = b"killed:" + str(flag).encode() + b"\n" + good
    assert sandbox.prepare(data, SPECS, DECODE_LIMITS, alone=True)[0]["width"] == 60
    assert flag.exists()


def test_a_defect_of_ours_is_internal_and_says_no_more_than_its_type(sandbox):
    error = refusal(sandbox, b"bug:")
    assert (error.code, str(error)) == (ErrorCode.INTERNAL, "KeyError")


def test_no_child_is_our_trouble_not_the_images():
    with Sandbox(command=(sys.executable, "-c", "import sys; sys.exit(7)")) as sandbox:
        error = refusal(sandbox, b"")
    assert error.code is ErrorCode.INTERNAL
    assert error.code.spec.retryable
    assert "exit status 7" in str(error)


# the child


def test_children_know_nothing_of_the_worker(sandbox, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    found = state(sandbox)
    assert set(found["environment"]) <= {"LC_ALL", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}
    assert (found["core"], found["files"], found["modules"]) == (0, 0, [])
    assert "/somewhere" not in found["path"]


def test_alone_means_a_child_for_each_image(sandbox):
    used = {state(sandbox)["pid"] for _ in range(3)}
    alone = {state(sandbox, alone=True)["pid"] for _ in range(3)}
    assert (len(used), len(alone)) == (1, 3)
    assert not used & alone


def test_close_ends_the_children():
    with Sandbox(LIMITS, command=HOSTILE) as sandbox:
        pid = state(sandbox)["pid"]
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_children_end_with_their_parent(tmp_path):
    """A worker that is killed leaves no child behind."""
    script = f"""
import os, json, sys
from classifleet.worker.sandbox import Sandbox
from classifleet.config import ImageError
from classifleet.worker.decode import DecodeLimits
sandbox = Sandbox(command={HOSTILE!r})
try:
    sandbox.prepare(b"state:", {{}}, DecodeLimits())
except ImageError as error:
    open(sys.argv[1], "w").write(str(error))
os.kill(os.getpid(), 9)
"""
    import subprocess

    subprocess.run([sys.executable, "-c", script, str(tmp_path / "state")], check=False)
    pid = json.loads((tmp_path / "state").read_text())["pid"]
    wait_until(lambda: not _runs(pid), "the orphan to end", 20)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_many_threads(sandbox):
    good, start = encode(noise(60, 40), "PNG"), threading.Barrier(4)

    def work(number: int) -> int:
        start.wait()
        if number == 2:
            return refusal(sandbox, b"segfault:").code is ErrorCode.POISON
        return sum(sandbox.prepare(good, SPECS, DECODE_LIMITS)[0]["width"] == 60 for _ in range(10)) == 10

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def framed(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return FRAME.pack(len(data)) + data


@pytest.mark.parametrize(
    "answer",
    [
        FRAME.pack(1 << 62),
        FRAME.pack(3) + b"\xff\xff\xff",
        framed([]),
        framed({}),
        framed({"info": {"width": "60", "height": 40, "format": "PNG"}}),
        framed({"info": {"width": 60, "height": 40, "format": "<script>"}}),
        framed({"error": {"code": "ok", "message": "?"}}),
        framed({"info": {"width": 60, "height": 40, "format": "PNG"}}) + FRAME.pack(1 << 40),
        framed({"info": {"width": 60, "height": 40, "format": "PNG"}}) + FRAME.pack(1) + b"x",
    ],
)
def test_a_child_that_was_taken_over_cannot_fool_its_parent(answer):
    with Sandbox(LIMITS, command=(*HOSTILE, answer.hex())) as sandbox:
        error = refusal(sandbox, b"image")
    assert error.code is ErrorCode.POISON
    assert "no sense" in str(error)


# in the pipeline


def classify(images: dict[str, Any], deaths: int, **options: Any) -> list[dict[str, Any]]:
    device = Device()
    device.start()
    device.load("brightness@1", partial(ModelSlot, Brightness(), 8))
    items = [{"id": name, "ref": f"https://h/{name}"} for name in images]
    payload = Payload.model_validate({"job": "j", "chunk": "0", "items": items, "models": ["brightness"]})
    with LaneExecutor(2, "test") as pool:
        pipeline = Pipeline(
            fetcher=Fetch({f"https://h/{name}": data for name, data in images.items()}),
            models={"brightness@1": describe("brightness")},
            device=device,
            decode_pool=pool,
            limits=DecodeLimits(),
            decoded_in_flight=4,
            worker="w",
            **options,
        )
        lease = Lease(Begin.RUN, b"", attempt=3, deaths=deaths, models=("brightness@1",))
        try:
            return [dict(record) for record in asyncio.run(pipeline.classify(payload, lease, "bulk"))]
        finally:
            device.close()


@pytest.mark.parametrize(("isolation", "deaths"), [("suspect", 2), ("suspect", 3), ("always", 0), ("always", 2)])
def test_the_killer_is_poison_and_the_rest_of_its_chunk_is_classified(sandbox, isolation, deaths):
    images = {"first": jpeg(9), "killer": b"segfault:", "hog": b"exhaust:", "last": jpeg(250)}
    records = classify(images, deaths, isolation=isolation, sandbox=sandbox)
    assert [record["id"] for record in records] == list(images)
    assert [record.get("error", {}).get("code") for record in records] == [None, "poison", "poison", None]
    assert records[3]["models"]["brightness@1"]["top"] == "light"


@pytest.mark.parametrize(("isolation", "deaths"), [("suspect", 0), ("suspect", 1), ("never", 2)])
def test_unsuspected_images_are_decoded_in_the_worker(isolation, deaths):
    with Sandbox(command=("this does not exist",)) as sandbox:
        options = {} if isolation == "never" else {"isolation": isolation, "sandbox": sandbox}
        [record] = classify({"a": jpeg(9)}, deaths, **options)
    assert record["status"] == "ok"


def test_suspects_are_taken_one_by_one():
    at_once = most = 0

    class Slow(Fetch):
        async def fetch(self, *args: Any, **options: Any) -> bytes:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            data = await super().fetch(*args, **options)
            at_once -= 1
            return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "Fetch", Slow)
        classify({str(n): jpeg(n) for n in range(8)}, 0)
        together, most = most, 0
        classify({str(n): jpeg(n) for n in range(8)}, 2)
    assert (together, most) == (8, 1)


def test_isolation_needs_a_sandbox():
    with pytest.raises(ValueError, match="needs a sandbox"):
        classify({"a": jpeg(9)}, 0, isolation="always")
