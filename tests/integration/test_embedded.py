"""An embedded fleet: starts whatever the person's settings are, says why it does not, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections import defaultdict

import pytest
import redis

from classifleet.producer import Fleet
from classifleet.producer import embedded as embedded_module
from classifleet.producer._children import child
from classifleet.producer.embedded import EmbeddedError, embedded_fleet, embedded_redis, last_error, worker_environment
from tests.cli_support import descendants, is_alive
from tests.support import wait_until

# Each of these would keep a worker from the jobs of this command, or this command from the worker.
HOSTILE = {
    "CLASSIFLEET_BROKER_URL": "redis://203.0.113.1:1/0",
    "CLASSIFLEET_REDIS_URL": "redis://203.0.113.1:1/0",
    "CLASSIFLEET_QUEUES": "other",
    "CLASSIFLEET_POOLS": "imagenet=gpu",
    "CLASSIFLEET_MODELS": "nothing",
    "CLASSIFLEET_HTTP_HOST": "203.0.113.1",
    "CLASSIFLEET_HTTP_PORT": "1",
    "CLASSIFLEET_FILE_ROOTS": "/nowhere",
    "CLASSIFLEET_LOG_LEVEL": "error",
    "CLASSIFLEET_LOG_FORMAT": "console",
    "CLASSIFLEET_NAMESPACE": "mine",
    "classifleet_sink_allow": "s3://elsewhere",
    "CELERY_BROKER_URL": "redis://203.0.113.1:1/0",
    "BROKER_URL": "redis://203.0.113.1:1/0",
    "APP": "nonsense",
}


def client(url):
    return redis.Redis.from_url(url)


def test_a_fleet_works_whatever_the_persons_settings_are_and_ends_with_its_block(zoo, photos, monkeypatch, tmp_path):
    for name, value in {**HOSTILE, "CLASSIFLEET_MODEL_REPOSITORY": str(zoo)}.items():
        monkeypatch.setenv(name, value)
    states = defaultdict(list)

    def report(models):
        for name, state in models.items():
            if state not in states[name]:
                states[name].append(state)

    settings = {"MODELS": "imagenet", "FILE_ROOTS": str(photos)}
    before = descendants(os.getpid())
    with embedded_fleet(settings=settings, folder=tmp_path, report=report) as running:
        assert states["imagenet@1"][-1] == "ready"
        assert "loading" in states["imagenet@1"]
        children = descendants(os.getpid()) - before
        assert len(children) >= 2
        with Fleet(running.url, redis_url=running.url) as fleet:
            file = fleet.submit(f"file://{photos}/coffee.jpg", models="imagenet").result(30)
            assert file.top == "espresso"
            [queue] = fleet.queues()
            assert queue == "classify.gpu.interactive"
        running.require_running()
        running.processes["worker"].kill()
        wait_until(lambda: running.processes["worker"].poll() is not None, "the worker's end")
        with pytest.raises(EmbeddedError, match=r"the embedded worker has ended \(killed by signal 9\)"):
            running.require_running()
    assert not [pid for pid in children if is_alive(pid)]


def test_what_it_may_read_and_write_is_said_by_the_command_alone(monkeypatch):
    monkeypatch.setenv("CLASSIFLEET_FILE_ROOTS", "/")
    monkeypatch.setenv("classifleet_sink_allow", "file:///")
    environment = worker_environment({"SINK_ALLOW": '["file:///out"]'})
    ours = {name: value for name, value in environment.items() if name.upper().endswith(("_ROOTS", "_ALLOW"))}
    assert ours == {
        "CLASSIFLEET_FILE_ROOTS": "[]",
        "CLASSIFLEET_SOURCE_ALLOW": "[]",
        "CLASSIFLEET_SINK_ALLOW": '["file:///out"]',
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MODELS": "cats"}, r"the worker did not start: .* has no model cats; it has imagenet@1, nsfw@1"),
        ({"MODELS": "imagenet", "MAX_BATCH": "many"}, r"the worker did not start: settings: max_batch: .*integer"),
    ],
)
def test_why_a_worker_does_not_start_is_one_line(zoo, settings, message):
    before = descendants(os.getpid())
    with (
        pytest.raises(EmbeddedError, match=message) as caught,
        embedded_fleet(settings={"MODEL_REPOSITORY": str(zoo), **settings}),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert descendants(os.getpid()) <= before


def test_redis_keeps_its_data_in_its_folder(tmp_path):
    for expected in (None, b"1"):
        with embedded_redis(tmp_path / "data") as url, client(url) as connection:
            assert connection.get("seen") == expected
            connection.set("seen", 1)


def test_two_fleets_in_one_folder_would_destroy_each_others_data(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_module, "LOCK_SECONDS", 0.2)
    with (
        embedded_redis(tmp_path),
        pytest.raises(EmbeddedError, match=f"another embedded fleet is at work in {tmp_path}"),
        embedded_redis(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match="cannot write to"), embedded_redis(tmp_path / "file"):
        pass


def test_a_redis_that_ends_at_once_says_why(tmp_path, monkeypatch):
    (tmp_path / "appendonlydir").write_text("in the way")
    (tmp_path / "appendonly.aof").mkdir()
    with pytest.raises(EmbeddedError, match=r"the embedded Redis did not start: .+"), embedded_redis(tmp_path):
        pass


KILLED = """
import sys, time
from pathlib import Path
from classifleet.producer.embedded import embedded_redis
with embedded_redis(Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(60)
"""


def test_children_end_with_a_parent_that_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        [server] = descendants(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    wait_until(lambda: not is_alive(server), "the end of Redis")
    with embedded_redis(tmp_path):  # its lock is free again
        pass


def test_a_child_that_ignores_sigterm_is_killed():
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    with child([sys.executable, "-c", stubborn], output=subprocess.PIPE, stop_seconds=0.2) as process:
        process.stdout.readline()
    assert process.returncode == -signal.SIGKILL
    process.stdout.close()


def test_the_last_error_of_a_log_is_what_a_person_reads(tmp_path):
    log = tmp_path / "log"
    assert last_error(log) == "it wrote nothing"
    log.write_text("")
    assert last_error(log) == "it wrote nothing"
    log.write_text("Traceback …\nRuntimeError: oh\n")
    assert last_error(log) == "RuntimeError: oh"
    log.write_text(
        '{"level": "error", "event": "cannot start", "error": "no model"}\n{"level": "info", "event": "bye"}\n'
    )
    assert last_error(log) == "no model"
    log.write_text("warning: x\nerror: a worker needs the extra [worker]\n[1]\n")
    assert last_error(log) == "a worker needs the extra [worker]"
