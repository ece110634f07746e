"""Publishing on a real Redis broker: what lands on the queue, lost connections, brokers that are down, fork."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from classifleet.config import BrokerUnavailable, Settings, SettingsError, message
from classifleet.config.celery_app import Publisher, make_app
from classifleet.config.errors import BrokerFull
from classifleet.config.payload import TASK_NAME
from tests.conftest import SettingsFactory
from tests.support import RedisServer

QUEUE = "classify.default.bulk"


@pytest.fixture
def publisher(settings: SettingsFactory) -> Iterator[Publisher]:
    """On the test's own database."""
    publisher = Publisher(settings())
    yield publisher
    publisher.close()


@pytest.fixture
def broker(redis_url: str) -> Iterator[Any]:
    """A client of the same database."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


def waiting(broker: Any, queue: str = QUEUE) -> list[dict[str, Any]]:
    """Oldest first, in any namespace."""
    [key] = broker.keys(f"classifleet:*:broker:{queue}")
    return [json.loads(text) for text in reversed(broker.lrange(key, 0, -1))]


def test_messages_are_celery_tasks_that_carry_only_a_name(publisher: Publisher, broker: Any) -> None:
    publisher.publish(
        [(QUEUE, message("j", "0")), (QUEUE, message("j", "1")), ("classify.gpu.bulk", message("k", "0"))]
    )
    found = waiting(broker)
    bodies = [json.loads(base64.b64decode(each["body"])) for each in found]
    assert [body[1] for body in bodies] == [message("j", "0"), message("j", "1")]
    assert {each["headers"]["task"] for each in found} == {TASK_NAME}
    assert len({each["headers"]["id"] for each in found}) == 2
    assert len(waiting(broker, "classify.gpu.bulk")) == 1
    assert [key for key in broker.keys("*") if b":broker:classify." not in key] == []


def test_celery_understands_the_message(settings: SettingsFactory, publisher: Publisher) -> None:
    seen: list[dict[str, Any]] = []
    app = make_app(settings())

    @app.task(name=TASK_NAME)  # type: ignore[untyped-decorator]
    def classify(**arguments: Any) -> None:
        seen.append(arguments)

    publisher.publish([(QUEUE, message("j", "0"))])
    with app.connection_for_read() as connection, connection.SimpleQueue(QUEUE) as queue:
        received = queue.get(timeout=5)
        received.ack()
        arguments, keywords, _ = received.payload
    app.tasks[received.headers["task"]](*arguments, **keywords)
    assert seen == [{"v": 1, "job": "j", "chunk": "0"}]


def test_a_lost_connection_is_made_again(publisher: Publisher, broker: Any) -> None:
    publisher.publish([(QUEUE, message("j", "0"))])
    me = broker.client_id()
    broker.client_kill_filter(_type="normal", skipme=True)
    assert [each["id"] for each in broker.client_list(_type="normal")] == [str(me)]
    publisher.publish([(QUEUE, message("j", "1"))])
    assert len(waiting(broker)) == 2


def test_variables_of_the_host_do_not_redirect(
    publisher: Publisher, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("CELERY_BROKER_WRITE_URL", "redis://127.0.0.1:1/0")
    publisher.publish([(QUEUE, message("j", "0"))])
    assert len(waiting(broker)) == 1


@pytest.mark.parametrize("messages", [1, 3])
@pytest.mark.parametrize("transport", ["atomic", "stock"])
def test_a_broker_at_its_maxmemory_is_full_and_not_away(tmp_path: Path, transport: str, messages: int) -> None:
    with RedisServer.start(tmp_path, "--maxmemory-policy", "noeviction") as server, server.client() as admin:
        publisher = Publisher(Settings.load(broker_url=f"{server.url}/0", transport=transport))
        publisher.publish([(QUEUE, message("j", "0"))])
        admin.config_set("maxmemory", 1)
        with pytest.raises(BrokerFull):
            publisher.publish([(QUEUE, message("j", str(number))) for number in range(messages)])
        publisher.close()


@pytest.mark.parametrize("listens", [False, True], ids=["down", "silent"])
def test_a_broker_that_is_down_or_silent_is_unavailable_in_time(listens: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not listens:
            server.close()
        url = f"redis://:hunter2@127.0.0.1:{port}/0"
        publisher = Publisher(Settings.load(broker_url=url, connect_timeout_seconds=0.3))
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=rf"redis://:\*\*\*@127.0.0.1:{port}/0 did not ") as caught:
            publisher.publish([(QUEUE, message("j", "0"))])
        assert time.monotonic() - begun < 5
        assert "hunter2" not in str(caught.value)
        publisher.close()


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("zeromq://:hunter2@host/0", SettingsError, "zeromq://.* is not a broker that can be used.*redis://"),
        ("no.such.module://host", SettingsError, "is not a broker that can be used"),
        ("sentinel://:hunter2@host:26379/0", SettingsError, "is not a broker that can be used"),
    ],
)
def test_a_broker_that_cannot_be_used_is_named(url: str, error: type[Exception], says: str) -> None:
    settings = Settings.load(broker_url=url)
    for use in (lambda: make_app(settings), lambda: Publisher(settings).publish([(QUEUE, message("j", "0"))])):
        with pytest.raises(error, match=says) as caught:
            use()
        assert "hunter2" not in str(caught.value)


def test_without_a_broker_the_setting_is_named() -> None:
    with pytest.raises(BrokerUnavailable, match="set CLASSIFLEET_BROKER_URL"):
        Publisher(Settings.load())


def test_a_forked_child_publishes_on_connections_of_its_own(publisher: Publisher, broker: Any) -> None:
    publisher.publish([(QUEUE, message("parent", "0"))])
    child = os.fork()
    if child == 0:
        try:
            publisher.publish([(QUEUE, message("child", "0"))])
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    publisher.publish([(QUEUE, message("parent", "1"))])
    jobs = [json.loads(base64.b64decode(each["body"]))[1]["job"] for each in waiting(broker)]
    assert jobs == ["parent", "child", "parent"]
