"""`Fleet` in the processes that people run: many threads, forks, servers that are away, lost messages."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import Settings
from classifleet.ledger import connect
from classifleet.producer import (
    AsyncFleet,
    BrokerUnavailable,
    Fleet,
    LedgerUnavailable,
    QueueFull,
    ResultTimeout,
    Unavailable,
    _flows,
)
from classifleet.producer.embedded import free_ports
from tests.conftest import SettingsFactory
from tests.fixtures_fleet import LiveFleet
from tests.support.hand_worker import LABEL, HandWorker
from tests.support.waiting import wait_until

SECONDS = 60.0
TIMEOUT_SECONDS = 0.5
REF = "https://example.com/a.jpg"


@pytest.fixture
def own(settings: SettingsFactory) -> Settings:
    return settings()


@pytest.fixture
def worker(own: Settings) -> Iterator[HandWorker]:
    with HandWorker(own) as worker:
        yield worker


@pytest.fixture
def fleet(own: Settings) -> Iterator[Fleet]:
    with Fleet(own.broker_url, namespace=own.namespace) as fleet:
        yield fleet


# --- threads and processes --------------------------------------------------------------------------------------


def test_many_threads_share_one_fleet(live_fleet: LiveFleet) -> None:
    with Fleet(live_fleet.url, max_connections=4) as fleet, ThreadPoolExecutor(16) as pool:

        def classify(number: int) -> str:
            photo = ("chelsea", "coffee", "rocket", "astronaut")[number % 4]
            return fleet.submit(f"{live_fleet.web}/{photo}.jpg", models="imagenet").result(SECONDS).top

        tops = list(pool.map(classify, range(64)))
    assert len(set(tops)) == 4
    assert all(tops[number] == tops[number % 4] for number in range(64))


_FORKS = """
import os, sys
from classifleet.producer import Fleet

url, web = sys.argv[1:]
fleet = Fleet(url)

def use(who, photo):
    result = fleet.submit(f"{web}/{photo}.jpg", models="imagenet").result(60)
    os.write(1, f"{who} {result.top}\\n".encode())

use("before", "rocket")  # sockets and the listening thread exist when it forks
child = os.fork()
if child == 0:
    try:
        for _ in range(3):
            use("child", "coffee")
        fleet.close()
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(1)
    os._exit(0)
for _ in range(3):
    use("parent", "chelsea")
_, status = os.waitpid(child, 0)
use("after", "rocket")
fleet.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_both_sides_of_a_fork_go_on(live_fleet: LiveFleet) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", _FORKS, live_fleet.url, live_fleet.web]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert (ran.returncode, ran.stderr) == (0, "")
    answers: dict[str, set[str]] = {}
    for line in ran.stdout.splitlines():
        who, top = line.split(" ", 1)
        answers.setdefault(who, set()).add(top)
    assert set(answers) == {"before", "child", "parent", "after"}
    assert answers["before"] == answers["after"]
    assert all(len(tops) == 1 for tops in answers.values())
    assert answers["child"] != answers["parent"]


def test_nothing_is_left_open(own: Settings, worker: HandWorker) -> None:
    threads = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a socket that is collected open, too: pytest fails the test
        for _ in range(3):
            with Fleet(own.broker_url, namespace=own.namespace) as fleet:
                handle = fleet.submit(REF, models="m")
                worker.answer()
                assert handle.result(SECONDS).top == LABEL
        gc.collect()
    assert threading.active_count() == threads


def test_a_fleet_that_listens_closes_at_once(own: Settings) -> None:
    with Fleet(own.broker_url, namespace=own.namespace) as fleet:
        handle = fleet.submit(REF, models="m")
        with pytest.raises(ResultTimeout):
            handle.result(0.01)
        start = time.monotonic()
    assert time.monotonic() - start < 0.8  # a read of the subscription lasts a second


def test_an_answer_is_heard_of(fleet: Fleet, worker: HandWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_flows, "FIRST_LISTEN_SECONDS", SECONDS)  # no re-reading: what is heard must do
    handles = [fleet.submit(REF, models="m") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(handle.result, SECONDS) for handle in handles]
        worker.answer()
        assert [future.result(SECONDS / 2).top for future in waiting] == [LABEL] * 3


# --- servers that are away --------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server, ExitStack() as accepted:
        stop = threading.Event()
        server.settimeout(0.05)

        def accept() -> None:
            while not stop.is_set():
                try:
                    accepted.enter_context(server.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        stop.set()
        thread.join()


@pytest.fixture
def refusing() -> str:
    """A port on which nothing listens."""
    return f"redis://127.0.0.1:{free_ports(1)[0]}/0"


@pytest.mark.parametrize("server", ["silent", "refusing"])
@pytest.mark.parametrize("part", ["broker", "ledger"])
def test_a_server_that_is_away_is_a_typed_error_in_time(
    request: pytest.FixtureRequest, own: Settings, server: str, part: str
) -> None:
    away: str = request.getfixturevalue(server)
    url, redis_url = (away, own.broker_url) if part == "broker" else (own.broker_url, away)
    with Fleet(url, redis_url=redis_url, namespace=own.namespace, connect_timeout_seconds=TIMEOUT_SECONDS) as fleet:
        start = time.monotonic()
        with pytest.raises(BrokerUnavailable if part == "broker" else LedgerUnavailable) as raised:
            fleet.submit(REF, models="m")
        assert time.monotonic() - start < 3 * TIMEOUT_SECONDS
    assert isinstance(raised.value, Unavailable)
    assert away.removesuffix("/0") in str(raised.value)


def test_an_uncertain_submission_is_repeated_with_its_id(
    own: Settings, refusing: str, fleet: Fleet, worker: HandWorker
) -> None:
    image_id, meta = fleet.new_id(), {"user": "42"}
    with Fleet(refusing, redis_url=own.broker_url, namespace=own.namespace) as cut_off:
        for _ in range(2):
            with pytest.raises(BrokerUnavailable):
                cut_off.submit(REF, models="m", id=image_id, meta=meta)
        assert not cut_off.handle(image_id).done()
    handle = fleet.submit(REF, models="m", id=image_id, meta=meta)
    assert worker.answer() == 1
    assert handle.result(SECONDS).top == LABEL
    assert len(list(fleet.job(image_id).results())) == 1


def test_a_job_whose_submission_was_cut_off_is_resumed(
    own: Settings, refusing: str, fleet: Fleet, worker: HandWorker
) -> None:
    job_id, items = fleet.new_id(), [f"{REF}?{n}" for n in range(100)]
    with (
        Fleet(refusing, redis_url=own.broker_url, namespace=own.namespace) as cut_off,
        pytest.raises(BrokerUnavailable),
    ):
        cut_off.submit_many(items, models="m", job_id=job_id, chunk_size=2)
    assert 0 < fleet.job(job_id).progress().accepted < 100
    job = fleet.submit_many(items, models="m", job_id=job_id, chunk_size=2)
    worker.answer()
    assert job.wait(SECONDS).ok == 100
    assert {result.id for result in job.results()} == {str(n) for n in range(100)}


def test_a_server_that_comes_back_is_used_again(own: Settings, worker: HandWorker) -> None:
    import redis

    with Fleet(own.broker_url, namespace=own.namespace) as fleet, redis.Redis.from_url(own.ledger_url()) as client:
        waiting = fleet.submit(REF, models="m")
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(waiting.result, SECONDS)
            wait_until(lambda: client.client_list(_type="pubsub"), "the subscription")
            client.client_kill_filter(skipme=True, _type="normal")
            client.client_kill_filter(skipme=True, _type="pubsub")
            worker.answer()
            assert future.result(SECONDS).top == LABEL
        assert fleet.submit(REF, models="m").id


# --- a Redis that loses what it had accepted --------------------------------------------------------------------


GROUP = 16  # chunks that are put in one round trip


def submit_all(own: Settings, kind: str, items: Iterator[str]) -> None:
    options: dict[str, Any] = {"models": "m", "job_id": "lost", "chunk_size": 1}
    if kind == "sync":
        with Fleet(own.broker_url, namespace=own.namespace) as fleet:
            fleet.submit_many(items, **options)
        return

    async def submit() -> None:
        async with AsyncFleet(own.broker_url, namespace=own.namespace) as fleet:
            await fleet.submit_many(items, **options)

    asyncio.run(submit())


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("left", [0, GROUP])
def test_images_that_redis_lost_before_the_last_one_was_submitted_are_not_forgotten(
    own: Settings, fleet: Fleet, worker: HandWorker, kind: str, left: int
) -> None:
    """It comes back empty, or as it was a moment ago, while the caller's iterable has yet to end."""
    images = left + GROUP

    def lossy() -> Iterator[str]:
        with connect(own) as client:
            kept: dict[bytes, bytes] = {}
            for number in range(images):
                if left and number == left:  # the group before is in
                    kept = {key: client.dump(key) for key in client.keys("*")}
                yield f"{REF}?{number}"
            client.flushdb()
            for key, dumped in kept.items():
                client.restore(key, 0, dumped)

    with pytest.raises(LedgerUnavailable, match="lost images of job 'lost'"):
        submit_all(own, kind, lossy())
    worker.answer()
    assert [job.progress.state for job in fleet.jobs()] == ["open"] * bool(left)
    submit_all(own, kind, (f"{REF}?{number}" for number in range(images)))
    worker.answer()
    progress = fleet.job("lost").wait(SECONDS)
    assert (progress.accepted, progress.ok, progress.state) == (images, images, "done")
    assert sorted(int(result.id) for result in fleet.job("lost").results()) == list(range(images))


# --- limits -----------------------------------------------------------------------------------------------------


def test_the_window_makes_a_producer_wait(own: Settings, worker: HandWorker) -> None:
    taken: list[int] = []

    def items() -> Iterator[tuple[str, bytes]]:
        for number in range(40):
            taken.append(number)
            yield f"n{number}", b"x" * 50_000  # over the inline cap: parked in Redis

    with (
        Fleet(own.broker_url, namespace=own.namespace, submission_window=5) as fleet,
        ThreadPoolExecutor(1) as pool,
    ):
        future = pool.submit(fleet.submit_many, items(), models="m", job_id="slow", chunk_size=1)
        wait_until(lambda: fleet.jobs() and fleet.job("slow").progress().accepted == 5, "a full window")
        assert len(taken) == 16  # one group of chunks is ready, no more is taken
        wait_until(lambda: worker.answer() >= 0 and future.done(), "the end of the submission", SECONDS)
        worker.answer()
        assert future.result().wait(SECONDS).ok == 40


def test_a_large_image_finds_no_room(own: Settings, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    with Fleet(own.broker_url, namespace=own.namespace, blob_max_total_bytes=150_000) as fleet:
        fleet.submit(tmp_path / "large", models="m")
        with pytest.raises(QueueFull) as raised:
            fleet.submit(tmp_path / "large", models="m")
        assert raised.value.retry_after_seconds > 0
