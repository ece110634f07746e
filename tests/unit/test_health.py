from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from classifleet.config import SettingsError
from classifleet.worker.health import FIRST_PORT, Health, HealthServer


@contextmanager
def serving(port: int | None, **probes: Health) -> Iterator[HealthServer]:
    server = HealthServer("127.0.0.1", port, {f"/{name}": lambda h=health: h for name, health in probes.items()})
    server.start()
    try:
        yield server
    finally:
        server.close()


def get(url: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def test_probes_metrics_and_the_rest() -> None:
    with serving(0, livez=Health(True, {"state": "live"}), readyz=Health(False, {"why": "loading"})) as server:
        assert get(server.url + "/livez")[0] == 200
        status, kind, body = get(server.url + "/readyz?verbose")
        assert (status, kind, json.loads(body)) == (503, "application/json", {"why": "loading"})
        status, kind, body = get(server.url + "/metrics")
        assert status == 200
        assert kind.startswith("text/plain")
        assert b"classifleet_batch_size" in body
        assert get(server.url + "/nowhere")[0] == 404


def test_two_workers_on_one_host_do_not_clash() -> None:
    with serving(None) as first, serving(None) as second:
        ports = [int(server.url.rpartition(":")[2]) for server in (first, second)]
    assert ports[0] != ports[1]
    assert all(port >= FIRST_PORT for port in ports)


def test_a_port_that_is_taken_is_one_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port}.*CLASSIFLEET_HTTP_PORT"):
            HealthServer("127.0.0.1", port, {})
