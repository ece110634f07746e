"""`classifleet worker` and plain `celery worker`: from the first signs of life to the last."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from classifleet.producer import Fleet
from tests.cli_support import COMMAND, descendants, is_alive
from tests.support import RedisServer, wait_until
from tests.support.fleet import start_worker

CELERY = (str(Path(sys.executable).with_name("celery")), "-A", "classifleet.worker.app", "worker", "-P", "threads")
SERVE = (*COMMAND, "worker")
# Celery's own command line takes these from the environment; an ordinary container may well have them.
ELSEWHERE = {"APP": "nonsense", "BROKER_URL": "redis://127.0.0.1:1/0", "LOADER": "nonsense"}


def logged(log):
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return {line["event"]: line for line in lines}


@pytest.mark.parametrize(("command", "number"), [(SERVE, signal.SIGINT), (CELERY, signal.SIGTERM)])
def test_a_worker_loads_takes_a_job_and_ends_cleanly(zoo, photos, redis_url, tmp_path, monkeypatch, command, number):
    if command is SERVE:
        for name, value in ELSEWHERE.items():
            monkeypatch.setenv(name, value)
    settings = {"MODEL_REPOSITORY": str(zoo), "MODELS": "imagenet"}
    log = tmp_path / "worker.log"
    with start_worker(redis_url, log, settings=settings, command=command, wait=False) as worker:
        status, body = wait_until(
            lambda: worker.probe("/readyz")[1].get("models") and worker.probe("/readyz"), "signs", 60
        )
        assert status == 503
        assert body["state"] == "starting"
        assert body["models"]["imagenet@1"] in ("waiting", "loading", "warming")
        assert worker.probe("/livez")[0] == 200
        worker.wait_ready()
        status, body = worker.probe("/readyz")
        assert (status, body["state"], body["models"]) == (200, "ready", {"imagenet@1": "ready"})
        with Fleet(redis_url) as fleet:
            assert fleet.submit(photos / "coffee.jpg", models="imagenet").result(60).top == "espresso"
        assert 'classifleet_images_total{outcome="ok"' in worker.metrics()
        children = descendants(worker.process.pid)
        worker.process.signal(number)
        assert worker.process.process.wait(20) == 0, worker.process.tail()
        assert not [pid for pid in children if is_alive(pid)]
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_still_loads_ends_at_once(zoo, redis_url, tmp_path, number):
    settings = {"MODEL_REPOSITORY": str(zoo)}
    log = tmp_path / "worker.log"
    with start_worker(redis_url, log, settings=settings, command=SERVE, wait=False) as worker:
        wait_until(lambda: "loading" in worker.probe("/readyz")[1].get("models", {}).values(), "loading", 60)
        worker.process.signal(number)
        assert worker.process.process.wait(20) == 0
    assert '"event": "ready"' not in log.read_text()


def test_two_workers_on_one_host_do_not_clash(zoo, redis_url, tmp_path):
    settings = {"MODEL_REPOSITORY": str(zoo), "MODELS": "imagenet", "HTTP_PORT": ""}
    with ExitStack() as stack:
        logs = [tmp_path / "first.log", tmp_path / "second.log"]
        for log in logs:
            stack.enter_context(start_worker(redis_url, log, settings=settings, command=SERVE, wait=False))
        urls = [wait_until(lambda log=log: logged(log).get("listening"), "listening", 60)["url"] for log in logs]
    assert len(set(urls)) == 2


def fail(redis_url, zoo, command=SERVE, **settings):
    """Run a worker that cannot start; its one error."""
    given = {"BROKER_URL": redis_url, "MODEL_REPOSITORY": str(zoo), "LOG_FORMAT": "json", "HTTP_PORT": "0", **settings}
    environment = os.environ | {f"CLASSIFLEET_{name}": value for name, value in given.items()}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    errors = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{") and '"error"' in line]
    if errors:
        [line] = errors
        return line["error"]
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def test_a_port_that_is_taken_is_one_clear_error(zoo, redis_url):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = fail(redis_url, zoo, HTTP_PORT=str(port))
    assert error == f"cannot listen on 127.0.0.1, port {port}: Address already in use; set CLASSIFLEET_HTTP_PORT"


@pytest.mark.parametrize("command", [SERVE, CELERY])
def test_a_missing_model_is_one_clear_error(zoo, redis_url, command):
    error = fail(redis_url, zoo, command, MODELS="cats")
    assert error == f"{zoo} has no model cats; it has imagenet@1, nsfw@1"
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys("*") == [b"classifleet:{default}:schema"]


def test_a_redis_that_is_unfit_is_one_clear_error(zoo, tmp_path):
    with RedisServer.start(tmp_path, "--maxmemory-policy", "allkeys-lru") as server:
        error = fail(f"{server.url}/0", zoo)
    assert "it deletes keys when full" in error
    assert "set maxmemory-policy noeviction" in error


def test_a_redis_that_is_away_is_one_clear_error(zoo):
    assert "redis://127.0.0.1:1/0 did not answer" in fail("redis://127.0.0.1:1/0", zoo, CONNECT_TIMEOUT_SECONDS="1")


def test_a_worker_without_a_broker_says_how_to_name_one(zoo):
    assert "no broker is configured: set CLASSIFLEET_BROKER_URL" in fail("", zoo)


def test_a_setting_that_is_wrong_is_one_clear_error(zoo, redis_url):
    assert "device" in fail(redis_url, zoo, DEVICE="tpu")


def test_a_defect_at_start_ends_the_worker(zoo, redis_url):
    """Celery logs and ignores what a signal's receiver raises: the worker would take jobs without its models."""
    broken = (
        "import classifleet.worker.runtime as runtime\n"
        "def start(self): raise RuntimeError('a defect')\n"
        "runtime.Runtime.start = start\n"
        "from classifleet.producer.cli import main\n"
        "main()"
    )
    environment = os.environ | {"CLASSIFLEET_BROKER_URL": redis_url, "CLASSIFLEET_LOG_FORMAT": "json"}
    command = [sys.executable, "-c", broken, "worker"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert ended.returncode == 1
    assert "a defect" in ended.stderr


def test_options_are_settings(zoo, redis_url):
    command = (*SERVE, "--broker-url", redis_url, "--model", "cats", "--device", "cpu", "--http-port", "0")
    assert "has no model cats" in fail("redis://127.0.0.1:1/0", zoo, command, MODELS="imagenet")
