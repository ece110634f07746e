"""`classifleet jobs`: what became of earlier submissions."""

import json

import pytest
from redis import Redis

from classifleet.config import Keys, data_reference
from classifleet.ledger import Ledger, SyncRunner
from classifleet.producer import Fleet
from classifleet.producer.cli import _progress
from tests.cli_support import started
from tests.support import wait_until
from tests.support.hand_worker import HandWorker


@pytest.fixture
def fleet(redis_url):
    with Fleet(redis_url) as fleet:
        yield fleet


@pytest.fixture
def worker(settings, redis_url):
    with HandWorker(settings(namespace="default", broker_url=redis_url)) as worker:
        yield worker


@pytest.fixture
def jobs(cli, redis_url):
    return lambda *arguments: cli("jobs", *arguments, "--broker-url", redis_url)


def submit(fleet, name, count=3):
    return fleet.submit_many([f"data:,{n}" for n in range(count)], models="imagenet", job_id=name, chunk_size=1)


def test_the_list_is_newest_first(jobs, fleet, worker):
    assert (jobs("list").out, jobs("list").err) == ("", "there are no jobs\n")
    submit(fleet, "older")
    worker.answer()
    submit(fleet, "x" * 120)
    fleet.job("x" * 120).cancel()
    ended = jobs("list")
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    assert ended.out.index("xxx") < ended.out.index("older")
    assert "0/3" in ended.out
    assert "cancelled" in ended.out
    assert [line for line in ended.out.splitlines() if line.split()[:3] == ["older", "done", "3/3"]]
    listed = jobs("list", "--json", "--count", "1")
    assert [info["id"] for info in listed.records] == ["x" * 120]
    assert listed.records[0]["progress"]["accepted"] == 3


def test_a_job_is_shown_with_what_was_asked_for_and_its_errors(live_fleet, cli):
    with Fleet(live_fleet.url) as live:
        job = live.submit_many([data_reference(b"no image"), f"{live_fleet.web}/coffee.jpg"], models="imagenet")
        job.wait(60)
        ended = cli("jobs", "show", job.id, "--broker-url", live_fleet.url)
        [shown] = cli("jobs", "show", job.id, "--json", "--broker-url", live_fleet.url).records
    assert ended.code == 0
    [code] = shown["progress"]["by_code"]
    for text in (job.id, "done", "imagenet", "classify.default.bulk", f"error: {code}"):
        assert text in ended.out
    assert shown["models"] == ["imagenet"]


def test_wait_follows_to_the_end(fleet, worker, redis_url, tmp_path):
    submit(fleet, "mine")
    with started(tmp_path, "jobs", "wait", "mine", "--broker-url", redis_url) as command:
        worker.answer(2)
        wait_until(lambda: fleet.job("mine").progress().done == 2, "two of three")
        assert command.process.poll() is None
        worker.answer()
        ended = command.ended()
    assert ended.code == 0
    assert "3/3" in ended.err
    assert ["ok", "3"] in [line.split() for line in ended.out.splitlines()]


def test_wait_gives_up_and_the_job_goes_on(jobs, fleet, monkeypatch):
    monkeypatch.setattr(_progress, "NO_WORKER_SECONDS", 0.0)
    submit(fleet, "mine")
    ended = jobs("wait", "mine", "--timeout", "0.3")
    assert ended.error == "job mine has not ended after 0.3 s; it goes on"
    assert "no worker has taken anything from classify.default.bulk" in ended.err


def test_cancel(jobs, fleet, worker):
    submit(fleet, "done")
    worker.answer()
    assert jobs("cancel", "done").err == "done had ended; nothing to cancel\n"
    submit(fleet, "mine")
    assert jobs("cancel", "mine").err == "mine is cancelled\n"
    assert fleet.job("mine").progress().state == "cancelled"


def test_an_abandoned_job_says_so(jobs, fleet, worker, redis_url):
    def items():
        yield from (f"data:,{n}" for n in range(16))  # as many as go to the ledger at one time
        raise KeyboardInterrupt  # the producer is gone

    with pytest.raises(KeyboardInterrupt):
        fleet.submit_many(items(), models="imagenet", job_id="mine", chunk_size=1)
    with Redis.from_url(redis_url) as client:
        assert SyncRunner(client, redis_url).run(Ledger(Keys("default")).abandon(0, 10)) == ["mine"]
    assert "abandoned, ending" in jobs("show", "mine").out
    worker.answer()
    [shown] = jobs("show", "mine", "--json").records
    assert shown["progress"]["state"] == "abandoned"
    assert "abandoned, ending" not in jobs("list").out
    assert "abandoned" in jobs("list").out


def test_results_are_printed_a_line_each(jobs, fleet, worker):
    submit(fleet, "mine")
    worker.answer(2)
    ended = jobs("results", "mine")
    assert [record["id"] for record in ended.records] == ["0", "1"]
    assert len(jobs("results", "mine", "--format", "mlkit").records) == 2
    assert jobs("results", "mine", "--failed").out == ""


def test_results_can_be_followed(fleet, worker, redis_url, tmp_path):
    submit(fleet, "mine")
    worker.answer(1)
    with started(tmp_path, "jobs", "results", "mine", "--follow", "--broker-url", redis_url) as command:
        wait_until(lambda: command.out.count("\n") == 1, "the first record", 30)
        worker.answer()
        ended = command.ended()
    assert [record["id"] for record in ended.records] == ["0", "1", "2"]


def test_results_in_a_format_without_a_place_for_errors(cli, live_fleet):
    with Fleet(live_fleet.url) as fleet:
        job = fleet.submit_many(
            [("bad", data_reference(b"no image")), ("good", f"{live_fleet.web}/coffee.jpg")],
            models=["imagenet", "nsfw"],
        )
        job.wait(60)
    printed = cli("jobs", "results", job.id, "--format", "roboflow", "--broker-url", live_fleet.url)
    assert printed.code == 0
    assert len(printed.records) == 2  # one for each model of the good image
    [line] = printed.err.splitlines()
    assert line.startswith("error: bad: ")
    truncated = cli("jobs", "results", job.id, "--format", "label_map", "--broker-url", live_fleet.url)
    assert 'submit with scores="all"' in truncated.err
    failed = cli("jobs", "results", job.id, "--failed", "--broker-url", live_fleet.url)
    assert [record["id"] for record in failed.records] == ["bad"]


def test_delete(jobs, fleet, worker):
    submit(fleet, "mine")
    assert jobs("delete", "mine").error == "mine still runs: cancel it first, or wait for it"
    worker.answer()
    assert jobs("delete", "mine").err == "mine is deleted\n"
    assert jobs("list", "--json").out == ""


@pytest.mark.parametrize("command", ["show", "wait", "cancel", "results", "delete"])
def test_a_job_that_is_not_there_is_one_line(jobs, command):
    assert jobs(command, "nothing").error == "there is no job 'nothing' in namespace 'default'"


def test_the_fleet_may_come_from_a_file(cli, fleet, redis_url, tmp_path, monkeypatch):
    submit(fleet, "mine")
    (tmp_path / "fleet.toml").write_text(f"broker_url = {json.dumps(redis_url)}\n")
    monkeypatch.setenv("CLASSIFLEET_CONFIG_FILE", str(tmp_path / "fleet.toml"))
    assert cli("jobs", "list", "--json").records[0]["id"] == "mine"
