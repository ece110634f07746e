"""`classifleet dead-letters`: see them, try them again, drop them."""

import pytest

from classifleet.producer import Fleet
from classifleet.producer.cli._terminal import EXIT_INTERRUPTED
from tests.cli_support import CTRL_C, OnTerminal
from tests.support import wait_until
from tests.support.dead import FailingWorker

SIGNED = "https://images.example/cat.jpg?signature=secret"


@pytest.fixture
def fleet(redis_url):
    with Fleet(redis_url) as fleet:
        yield fleet


@pytest.fixture
def worker(settings, redis_url):
    with FailingWorker(settings(namespace="default", broker_url=redis_url)) as worker:
        yield worker


@pytest.fixture
def letters(cli, redis_url):
    return lambda command, *arguments: cli("dead-letters", command, *arguments, "--broker-url", redis_url)


@pytest.fixture
def keys(fleet, worker):
    """Two letters of a job `nightly`, the first with a parked image."""
    fleet.submit_many([("big", b"x" * 100_000), ("cat", SIGNED)], models="imagenet", job_id="nightly")
    return worker.fail("model_failed", died=1)


def test_without_letters(letters):
    assert letters("list").err == "there are no dead letters\n"
    assert letters("list", "--code", "internal").err == "there are no dead letters that match\n"
    assert letters("list", "--json").out == ""
    assert letters("requeue", "--all").err == "there are no dead letters that match\n"
    assert letters("discard", "--all").err == "there are no dead letters that match\n"


def test_the_list(letters, keys):
    ended = letters("list", "--since", "2h", "--job", "nightly")
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    for seen in ("cat", "big", "model_failed", "imagenet"):
        assert seen in ended.out
    assert letters("list", "--code", "poison", "--json").records == []
    assert letters("list", "--model", "nsfw", "--json").records == []
    found = letters("list", "--json").records
    assert {letter["key"] for letter in found} == set(keys)
    assert len(letters("list", "--json", "--limit", "1").records) == 1


def test_one_letter_in_full_without_signature_or_bytes(letters, keys):
    shown = letters("show", keys[1])
    for seen in ("cat.jpg?redacted", "model_failed: it went wrong", "attempt 1", "died", "worker-1", "top_k=5"):
        assert seen in shown.out
    assert "data:;sha256=" in letters("show", keys[0]).out
    [letter] = letters("show", keys[1], "--json").records
    assert letter["history"][0]["ended"] == "died"
    assert "secret" not in shown.out + str(letter)


@pytest.mark.parametrize("command", ["show", "requeue", "discard"])
def test_a_letter_that_is_not_there_is_one_line(letters, command):
    assert letters(command, "x.1.2").error == "there is no dead letter 'x.1.2'; it may have expired or been discarded"


def test_an_age_that_is_none(letters):
    ended = letters("list", "--since", "yesterday")
    assert ended.code == 2
    assert "'yesterday' is not an age: write 30s, 15m, 2h, 7d" in " ".join(ended.err.replace("│", "").split())


@pytest.mark.parametrize("command", ["requeue", "discard"])
def test_what_is_meant_must_be_said(letters, keys, command):
    assert "which letters?" in letters(command).error
    assert "but not both" in letters(command, keys[0], "--job", "nightly").error


def test_requeue_prints_the_new_job_and_repeats_as_the_same(letters, keys, fleet):
    ended = letters("requeue", "--code", "model_failed")
    assert ended.code == 0
    [line] = ended.out.splitlines()
    job = line.removeprefix("job ")
    assert f"2 images requeued as {job}; classifleet jobs wait {job}" in ended.err
    assert fleet.job(job).progress().total == 2
    again = letters("requeue", *keys)
    assert (again.code, again.out) == (0, "")
    assert again.err == f"2 images had been requeued before, as {job}\n"


def test_the_new_job_says_where_it_comes_from(letters, cli, keys, redis_url):
    job = letters("requeue", keys[0]).out.split()[1]
    shown = cli("jobs", "show", job, "--broker-url", redis_url)
    assert "requeued from the dead letters of nightly" in shown.out
    assert "requeued  as " + job in letters("show", keys[0]).out
    assert [letter["requeued_as"] for letter in letters("list", "--json").records].count(None) == 1


def test_requeue_of_an_image_that_has_expired_is_exit_code_1(letters, keys, worker):
    worker.redis.delete(*worker.redis.keys(f"{worker.keys.prefix}blob:*"))
    ended = letters("requeue", "--job", "nightly")
    assert ended.code == 1
    assert f"error: {keys[0]} is not requeued: the image that was parked for it has expired" in ended.err
    assert "1 image requeued as nightly-requeue-" in ended.err
    [said] = letters("requeue", "--job", "nightly", "--json").records
    assert list(said["skipped"]) == [keys[0]]
    assert list(said["before"].values()) == [1]


def test_requeue_waits_for_room_and_says_so(keys, fleet, worker, redis_url, monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_MAX_QUEUED_IMAGES", "bulk=3")
    fleet.submit_many(["data:,1", "data:,2"], models="imagenet", job_id="before")
    command = ("dead-letters", "requeue", "--all", "--broker-url", redis_url)
    with OnTerminal(*command) as interrupted:
        wait_until(lambda: "waiting for room" in interrupted.screen, "the command to wait", 30)
        interrupted.press(CTRL_C)
        assert interrupted.process.wait(20) == EXIT_INTERRUPTED
    with OnTerminal(*command) as again:
        wait_until(lambda: "waiting for room" in again.screen, "the command to wait", 30)
        assert "MAX_QUEUED_IMAGES=3" in again.screen
        worker.begin("before", "00000000", "classify.default.bulk")
        assert again.process.wait(20) == 0
        assert "2 images requeued as nightly-requeue-" in again.screen
    [job] = [info for info in fleet.jobs() if info.requeued_from]
    assert job.progress.total == 2


def test_discard_with_yes(letters, keys):
    assert letters("discard", keys[0], "--yes").err == "1 dead letter discarded\n"
    assert letters("discard", "--all", "--yes").err == "1 dead letter discarded\n"
    assert letters("list", "--json").out == ""


@pytest.mark.parametrize(("answer", "left"), [(b"n\r", 2), (b"y\r", 0)])
def test_discard_asks(keys, redis_url, fleet, answer, left):
    with OnTerminal("dead-letters", "discard", "--all", "--broker-url", redis_url) as command:
        wait_until(lambda: "Discard 2 dead letters? [y/N]:" in command.screen, "the question", 30)
        command.press(answer)
        assert command.process.wait(20) == (1 if left else 0)
    assert len(fleet.dead_letters()) == left


def test_discard_where_nobody_can_answer_discards_nothing(keys, letters, fleet, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert letters("discard", "--all").code == 1
    assert len(fleet.dead_letters()) == 2
