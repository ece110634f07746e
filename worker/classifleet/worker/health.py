"""One small HTTP server for /metrics, /livez and /readyz."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final
from urllib.parse import urlsplit

from prometheus_client.exposition import choose_encoder

from classifleet.config import SettingsError
from classifleet.worker.instruments import REGISTRY

FIRST_PORT: Final = 9464  # Prometheus' port for exporters of this kind
PORTS_TRIED: Final = 100
HEADER_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Health:
    """The answer of a probe: healthy or not, and why."""

    ok: bool
    body: Mapping[str, Any]


Probe = Callable[[], Health]


class HealthServer:
    """Serves the probes on threads of its own.

    Args:
        host: Address to listen on.
        port: Port, or None for the first free one from 9464 on, so that two workers on one host do not clash.
        probes: By path, `/livez` and `/readyz`.

    Raises:
        SettingsError: The port is taken.
    """

    def __init__(self, host: str, port: int | None, probes: Mapping[str, Probe]) -> None:
        self._server = _bind(host, port, _handler(probes))
        self._thread = threading.Thread(target=self._server.serve_forever, name="classifleet-http", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = str(self._server.server_address[0]), self._server.server_address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is not worth a traceback."""


class _DualServer(_Server):
    """For IPv6 addresses; `::` is every address of IPv4, too."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's, which asks the resolver for the name of `::`.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


def _bind(host: str, port: int | None, handler: type[BaseHTTPRequestHandler]) -> _Server:
    ports = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED)
    for candidate in ports:
        try:
            return _listen(host, candidate, handler)
        except OSError as error:
            reason = error.strerror or str(error)
    tried = f"port {port}" if port is not None else f"none of the ports {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1}"
    raise SettingsError(f"cannot listen on {host}, {tried}: {reason}; set CLASSIFLEET_HTTP_PORT")


def _listen(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> _Server:
    if ":" not in host:
        return _Server((host, port), handler)
    try:
        return _DualServer((host, port), handler)
    except OSError as error:
        # A kernel without IPv6: every address is every address of IPv4.
        if host != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
    return _Server(("0.0.0.0", port), handler)  # noqa: S104 - what `::` asks for


def _handler(probes: Mapping[str, Probe]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = HEADER_SECONDS

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept") or "")
                self._answer(HTTPStatus.OK, content_type, encode(REGISTRY))
            elif probe := probes.get(path):
                health = probe()
                status = HTTPStatus.OK if health.ok else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, "application/json", json.dumps(health.body).encode())
            else:
                known = ", ".join(("/metrics", *probes))
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", f"there are {known}\n".encode())

        def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Probes come every second; they are not news."""

    return Handler
