"""Messages that come twice, make no sense, or are too new: 15, 17, 18."""

from __future__ import annotations

import json
import pickle
import threading

import pytest

from classifleet.config import Keys, Payload, message
from classifleet.config.celery_app import Publisher
from tests.chaos.arena import NAMESPACE, SABOTEUR, Arena
from tests.chaos.conftest import Scenario
from tests.chaos.load import CHUNK_SIZE, Accepted
from tests.chaos.observer import QUEUES
from tests.chaos.saboteur import NEWER_FIELD
from tests.support import wait_until

ROUNDS = 20


@pytest.mark.chaos("17", "every message published twice", quick=True)
def test_twice(scenario: Scenario) -> None:
    with scenario.arena() as it:
        it.start(2)
        publisher = Publisher(it.fleet.settings)

        def publish_again(accepted: Accepted) -> None:
            queue = QUEUES[len(accepted.ids) > 1]
            chunks = [f"{n:08d}" for n in range(-(-len(accepted.ids) // CHUNK_SIZE))]
            publisher.publish([(queue, message(accepted.job, chunk)) for chunk in chunks])
            it.inject()

        with it.load() as load:
            load.after = publish_again
            wanted = 1500 if scenario.full else 300
            wait_until(lambda: load.images >= wanted, f"{wanted} images", 120)
        publisher.close()


@pytest.mark.chaos("18", "garbage, pickle, oversized, unknown task", quick=True)
def test_garbage(scenario: Scenario) -> None:
    with scenario.arena() as it:
        it.start(2)
        with it.load(), it.redis.client() as client:
            for turn in range(ROUNDS if scenario.full else 3):
                for queue in QUEUES:
                    it.inject(lambda queue=queue: client.lpush(Keys(NAMESPACE).broker + queue, *garbage(queue)))
                done = it.observer.count("done")
                wait_until(lambda done=done: it.observer.count("done") > done + 20, f"work after round {turn}", 60)
            assert all(worker.process.running() for worker in it.workers)
            assert client.llen(Keys(NAMESPACE).broker + "garbage") > 0


def garbage(queue: str) -> list[bytes]:
    """What strangers and accidents leave in a broker's list."""
    stranger = envelope(queue, "somebody.elses.task", {})
    return [
        b"",
        b"\x00\xff garbage",
        b"[]",
        b'{"body": "not base64!", "properties": {}}',
        pickle.dumps({"a": "pickle"}),
        json.dumps({"padding": "x" * (4 << 20)}).encode(),
        envelope(queue, "classifleet.classify", {"v": 1, "job": "no-such-job", "chunk": "00000000"}),
        envelope(queue, "classifleet.classify", {"v": 1, "job": None}),
        envelope(queue, "classifleet.classify", {"v": 99, "job": "a", "chunk": "b"}),
        stranger,
        stranger.replace(b"application/json", b"application/x-python-serialize"),
    ]


def envelope(queue: str, task: str, arguments: dict[str, object]) -> bytes:
    """A message as Celery writes it."""
    body = json.dumps([[], arguments, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    fields = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": "f" * 32, "root_id": "f" * 32, "retries": 0},
        "properties": {
            "correlation_id": "f" * 32,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "delivery_tag": "f" * 32,
        },
    }
    return json.dumps(fields).encode()


@pytest.mark.chaos("15", "two versions of the worker side by side")
def test_two_versions(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one parks what it does not understand, and the new one gets it."""
    with scenario.arena() as it:
        it.start(1, wait=False)
        it.start(1, command=(*SABOTEUR, "newer"))
        with it.load(backlog=60):
            for turn in range(4):
                it.inject(lambda turn=turn: submit_newer(it, f"newer-{turn}", monkeypatch))
                threading.Event().wait(2)  # of ordinary load
        logs = "".join(worker.process.log.read_text() for worker in it.workers)
        assert "not understood" in logs


def submit_newer(it: Arena, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose payloads have a field more."""
    encode = Payload.encode
    with monkeypatch.context() as patch:
        patch.setattr(
            Payload, "encode", lambda self: json.dumps(json.loads(encode(self)) | {NEWER_FIELD: "new"}).encode()
        )
        it.submit(job, [(f"{job}/{n}", it.place.ref()) for n in range(48)])
