"""The collection of hostile files through a real worker: one record each, and a worker that never noticed."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from classifleet.producer import ErrorCode, Fleet, Result
from tests.models_support import NASTY
from tests.support.fleet import Worker, start_worker
from tests.support.services import RedisServer

SLOWEST_SECONDS = 2.0
MORE_MEMORY_BYTES = 700 << 20
ALLOWED = {ErrorCode.UNSUPPORTED_FORMAT, ErrorCode.TOO_MANY_PIXELS, ErrorCode.UNDECODABLE, ErrorCode.TOO_LARGE}
WAIT_SECONDS = 240

pytestmark = pytest.mark.skipif(not NASTY.is_dir(), reason="the collection of nasty files is not here")


def resident_bytes(pid: int, what: str = "VmRSS") -> int:
    """Resident memory now, or `VmHWM`: the most it ever was."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) << 10


def child_pids(pid: int) -> set[str]:
    return {child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()}


@pytest.fixture(params=["suspect", "always"])
def worker(request: pytest.FixtureRequest, tmp_path: Path, zoo: Path) -> Iterator[Worker]:
    settings = {
        "MODEL_REPOSITORY": str(zoo),
        "MODELS": "imagenet",
        "FILE_ROOTS": str(NASTY.resolve()),
        "TRUNCATED": "lenient",
        "DECODE_ISOLATION": request.param,
    }
    with (
        RedisServer.start(tmp_path / "redis") as redis,
        start_worker(f"{redis.url}/0", tmp_path / "worker.log", settings=settings) as worker,
    ):
        yield worker


def test_every_nasty_file_is_one_record(worker: Worker, request: pytest.FixtureRequest) -> None:
    files = sorted(NASTY.resolve().iterdir())
    pid = worker.process.pid
    with Fleet(worker.broker_url) as fleet:
        before = resident_bytes(pid)
        began = time.monotonic()
        job = fleet.submit_many([(file.name, "file://" + quote(str(file))) for file in files], models="imagenet")
        job.wait(WAIT_SECONDS)
        seconds = time.monotonic() - began
        results = list(job.results())
    report(request.node.name, results, seconds, before, pid)
    assert sorted(result.id for result in results) == [file.name for file in files]
    assert {result.error.code for result in results if result.error} <= ALLOWED
    assert all("\n" not in result.error.message for result in results if result.error)
    assert sum(result.ok for result in results) > 250
    assert any(result.image.truncated for result in results if result.image)
    decoded = [result for result in results if result.ok or result.error.code is not ErrorCode.TOO_LARGE]
    assert max(result.timings["decode"] for result in decoded) < SLOWEST_SECONDS  # failed ones, too
    assert_untouched(worker, pid, before)


def assert_untouched(worker: Worker, pid: int, before: int) -> None:
    """The same process, alive, ready, without crashed or restarted children, and not much larger."""
    os.kill(pid, 0)
    assert worker.process.running()
    assert worker.probe("/livez")[0] == 200
    assert worker.probe("/readyz")[0] == 200
    log = worker.process.log.read_text()
    assert "image failed" not in log
    assert "sandbox died" not in log
    assert resident_bytes(pid, "VmHWM") - before < MORE_MEMORY_BYTES


def report(name: str, results: list[Result], seconds: float, before: int, pid: int) -> None:
    """What `pytest -s` shows."""
    codes = Counter(str(result.error.code) if result.error else "ok" for result in results)
    slowest = max(results, key=lambda result: result.timings.get("decode", 0))
    cut = sum(result.image.truncated for result in results if result.image)
    now, peak = resident_bytes(pid), resident_bytes(pid, "VmHWM")
    print(f"\n{name}: {len(results)} files in {seconds:.1f} s; {dict(codes.most_common())}; {cut} truncated")
    print(f"slowest decode {slowest.timings['decode']:.2f} s ({slowest.id})")
    print(f"resident {before >> 20} MiB before, {now >> 20} after, {peak >> 20} at most; children {child_pids(pid)}")
