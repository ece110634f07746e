"""RabbitMQ, SQS, and Redis with kombu's own transport: the ledger makes up for what a broker does not promise."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import quote

import pytest
from amqp import PreconditionFailed
from kombu import Connection

from classifleet.config import BrokerUnavailable, Settings, message
from classifleet.config.brokers import broker_queue
from classifleet.config.celery_app import Publisher
from classifleet.producer import Fleet
from tests.support.brokers import rabbitmq, sqs
from tests.support.fleet import start_worker
from tests.support.waiting import wait_until

QUEUE = "classify.default.bulk"
BROKERS = ["rabbitmq", "sqs", "stock redis"]


def serve(start: Callable[[Path], AbstractContextManager[str]], factory: pytest.TempPathFactory) -> Iterator[str]:
    with start(factory.mktemp(start.__name__)) as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(rabbitmq, tmp_path_factory)


@pytest.fixture(scope="session")
def sqs_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("moto")
    pytest.importorskip("pycurl")
    yield from serve(sqs, tmp_path_factory)


@pytest.fixture(params=["rabbitmq_url", "sqs_url"], ids=BROKERS[:2])
def broker_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    url: str = request.getfixturevalue(request.param)
    return url


def refs(photos: Path, count: int) -> list[tuple[str, str]]:
    files = sorted(photos.iterdir())
    return [(f"image-{n}", "file://" + quote(str(files[n % len(files)]))) for n in range(count)]


def test_messages_are_kept_apart_by_namespace_and_counted(broker_url: str, redis_url: str) -> None:
    settings = [
        Settings.load(broker_url=broker_url, redis_url=redis_url, namespace=f"n{uuid.uuid4().hex[:8]}")
        for _ in range(2)
    ]
    ours, theirs = (Publisher(each) for each in settings)
    assert ours.depth(QUEUE) == 0
    ours.publish([(QUEUE, message("j", str(number))) for number in range(5)])
    wait_until(lambda: ours.depth(QUEUE) == 5, "the messages to be counted")
    assert theirs.depth(QUEUE) == 0
    ours.close()
    theirs.close()


def test_rabbitmq_keeps_messages_on_several_nodes_and_confirms_them(rabbitmq_url: str, redis_url: str) -> None:
    namespace = f"n{uuid.uuid4().hex[:8]}"
    given = Settings.load(broker_url=rabbitmq_url, redis_url=redis_url, namespace=namespace)
    publisher, name = Publisher(given), broker_queue(given, rabbitmq_url, QUEUE)
    publisher.publish([(QUEUE, message("j", "0"))])
    with publisher._connections().acquire() as connection:
        assert connection.default_channel._confirm_selected, "a publish waits for the broker's word"
    publisher.close()
    with Connection(rabbitmq_url) as connection:  # a queue that exists is refused with other properties than its own
        arguments = {"x-queue-type": "classic"}
        with pytest.raises(PreconditionFailed, match="received 'classic' but current is 'quorum'"):
            connection.channel().queue_declare(queue=name, durable=True, auto_delete=False, arguments=arguments)
        connection.channel().queue_delete(name)


@pytest.mark.parametrize("broker_url", ["rabbitmq_url", "sqs_url", "redis_url"], ids=BROKERS, indirect=True)
def test_a_job_from_end_to_end_and_over_the_death_of_its_worker(
    broker_url: str, redis_url: str, zoo: Path, photos: Path, tmp_path: Path
) -> None:
    namespace = f"n{uuid.uuid4().hex[:8]}"
    settings = {
        "MODEL_REPOSITORY": str(zoo),
        "MODELS": "imagenet",
        "FILE_ROOTS": str(photos),
        "LEASE_SECONDS": "2",
        "REDIS_URL": redis_url,
        "NAMESPACE": namespace,
        "CHUNKS_IN_FLIGHT": "4",
        "TRANSPORT": "stock",  # of Redis
    }
    with Fleet(broker_url, redis_url=redis_url, namespace=namespace, chunk_size=4) as fleet:
        with start_worker(broker_url, tmp_path / "first.log", settings=settings) as worker:
            assert fleet.submit(refs(photos, 1)[0][1], models="imagenet").result(timeout=60).ok
            job = fleet.submit_many(refs(photos, 120), models="imagenet")
            wait_until(lambda: 0 < job.progress().done < 60, "the job to be at work", 60)
            worker.process.signal(signal.SIGKILL)
            worker.process.process.wait()
        with start_worker(broker_url, tmp_path / "second.log", settings=settings) as worker:
            progress = job.wait(120)
            assert (progress.ok, progress.done) == (120, 120)
            assert len({result.id for result in job.results()}) == 120
            worker.process.signal(signal.SIGTERM)
            assert worker.process.process.wait(30) == 0


def test_a_broker_that_is_down_is_unavailable_in_time() -> None:
    publisher = Publisher(Settings.load(broker_url="amqp://guest:guest@127.0.0.1:1//", connect_timeout_seconds=0.3))
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        publisher.publish([(QUEUE, message("j", "0"))])
    publisher.close()
