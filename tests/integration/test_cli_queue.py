"""`classifleet queue stats`: what waits, how fast it goes, and hints."""

import signal

import pytest

from classifleet.producer import Fleet
from tests.cli_support import CTRL_C, OnTerminal, started
from tests.support import wait_until
from tests.support.dead import OWNER, FailingWorker

QUEUE = "classify.default.bulk"


@pytest.fixture
def fleet(redis_url):
    with Fleet(redis_url) as fleet:
        yield fleet


@pytest.fixture
def worker(settings, redis_url):
    with FailingWorker(settings(namespace="default", broker_url=redis_url)) as worker:
        yield worker


@pytest.fixture
def stats(cli, redis_url):
    return lambda *arguments: cli("queue", "stats", *arguments, "--broker-url", redis_url)


def submit(fleet, job, count=3):
    return fleet.submit_many([f"data:,{n}" for n in range(count)], models="imagenet", job_id=job, chunk_size=1)


def test_without_queues(stats):
    assert stats().out == "there are no queues: nothing was ever submitted\n"
    [sample] = stats("--json").records
    assert (sample["queues"], sample["dead_letters"]) == ({}, 0)


def test_each_state_is_counted(stats, fleet, worker):
    submit(fleet, "failed", 2)
    worker.fail()
    submit(fleet, "mine", 6)
    leases = [worker.begin("mine", f"{number:08d}", QUEUE) for number in range(3)]
    worker.run(worker.ledger.park(leases[0].job, leases[0].chunk, OWNER, leases[0].attempt))
    [sample] = stats("--json").records
    found = sample["queues"][QUEUE]
    assert [found[f"{state}_images"] for state in ("queued", "leased", "parked", "done")] == [3, 2, 1, 2]
    assert found["drain_seconds"] is None
    assert sample["dead_letters"] == 2
    ended = stats()
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    text = " ".join(ended.out.split())
    assert "no worker understands 1 parked images, which a newer classifleet submitted" in text
    assert "2 dead letters: `classifleet dead-letters list` says why" in text
    assert "not draining" in text


def test_watching_on_a_terminal_until_ctrl_c(redis_url, fleet, worker):
    submit(fleet, "mine", 3)
    with OnTerminal("queue", "stats", "--watch", "--interval", "0.1", "--broker-url", redis_url) as command:
        wait_until(lambda: "draining" in command.screen, "the first look", 30)
        submit(fleet, "another", 4000)
        wait_until(lambda: "4003" in command.screen, "a later look", 30)
        command.press(CTRL_C)
        assert command.process.wait(20) == 130
    assert "Traceback" not in command.screen


def test_watching_as_json_is_a_line_a_look(redis_url, tmp_path):
    with started(
        tmp_path, "queue", "stats", "--watch", "--json", "--interval", "0.1", "--broker-url", redis_url
    ) as it:
        wait_until(lambda: len(it.out.splitlines()) >= 3, "three looks", 30)
        it.signal(signal.SIGTERM)
        assert it.wait(20) == 143
