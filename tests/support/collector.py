"""A collector of traces on loopback: what is sent to it over OTLP/HTTP, span by span."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it arrived; ids are hex, times are nanoseconds."""

    name: str
    trace: str
    id: str
    parent: str
    links: tuple[str, ...]
    start: int
    end: int
    error: str
    attributes: Mapping[str, str | int]


@dataclass(slots=True)
class Collector:
    """What has arrived so far."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    resource: dict[str, str | int] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)

    def named(self, name: str, trace: str | None = None) -> list[Span]:
        """The spans of this name, perhaps of one trace."""
        return [span for span in list(self.spans) if span.name == name and trace in (None, span.trace)]

    def take(self, body: bytes) -> None:
        """One request."""
        self.bodies.append(body)
        for batch in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource |= {each.key: _value(each.value) for each in batch.resource.attributes}
            self.spans += [_span(span) for scope in batch.scope_spans for span in scope.spans]


def _value(value: AnyValue) -> str | int:
    return value.string_value or value.int_value


def _span(span: WireSpan) -> Span:
    return Span(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=tuple(link.span_id.hex() for link in span.links),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        error=span.status.message,
        attributes={each.key: _value(each.value) for each in span.attributes},
    )


@contextmanager
def start_collector() -> Iterator[Collector]:
    """A collector while the block runs."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield collector
        server.shutdown()
        thread.join()
