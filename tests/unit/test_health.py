from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from classifleet.config import SettingsError
from classifleet.worker import health as module
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


@pytest.mark.parametrize(("host", "callers"), [("::", ("127.0.0.1", "[::1]")), ("::1", ("[::1]",))])
def test_addresses_of_ipv6(host: str, callers: tuple[str, ...]) -> None:
    """`::` answers in pods that have addresses of either kind."""
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = HealthServer(host, 0, {"/livez": lambda: Health(True, {})})
    server.start()
    try:
        assert server.url.startswith(f"http://[{host}]:")
        port = server.url.rpartition(":")[2]
        assert [get(f"http://{caller}:{port}/livez")[0] for caller in callers] == [200] * len(callers)
    finally:
        server.close()


def test_without_ipv6_every_address_is_that_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._DualServer, "address_family", 255)  # none: refused as IPv6 is by such a kernel
    server = HealthServer("::", 0, {})
    server.close()
    assert server.url.startswith("http://0.0.0.0:")
    with pytest.raises(SettingsError, match="cannot listen on ::1, port 0"):
        HealthServer("::1", 0, {})


def test_a_port_that_is_taken_is_one_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port}.*CLASSIFLEET_HTTP_PORT"):
            HealthServer("127.0.0.1", port, {})
