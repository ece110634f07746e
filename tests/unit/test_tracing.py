"""Traces: what is carried, when there are any, and what a collector that is away does to a worker."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, use_span

from classifleet.config.tracing import MAX_STATE_CHARS, current_trace
from classifleet.ledger import Begin, Lease
from classifleet.worker import trace_export, tracing
from classifleet.worker.tracing import Tracing

TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
PARENT = f"00-{TRACE:032x}-{SPAN:016x}-01"
QUEUE = "classify.default.bulk"


def carried(*, sampled: bool = True, **state: str) -> str:
    context = SpanContext(
        TRACE, SPAN, is_remote=True, trace_flags=TraceFlags(int(sampled)), trace_state=TraceState(list(state.items()))
    )
    with use_span(NonRecordingSpan(context)):
        return current_trace()


def test_what_is_carried() -> None:
    assert current_trace() == ""
    assert carried() == PARENT
    assert carried(sampled=False) == ""
    assert carried(rojo="1", congo="t61") == f"{PARENT} rojo=1,congo=t61"
    assert carried(rojo="x" * 200, a="x" * 200, b="x" * 200) == PARENT
    assert MAX_STATE_CHARS < 600


def test_a_host_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert current_trace() == ""
    assert "opentelemetry.trace" not in sys.modules


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318/v1/metrics"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_when_a_worker_traces(variables: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.wanted() is wanted


def test_without_the_extra_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "classifleet.worker.trace_export", None)
    with structlog.testing.capture_logs() as lines:
        assert tracing.start("w1") is None
    [line] = lines
    assert "classifleet[otel]" in line["event"]


def spans_of(lease: Lease, *, roots: bool) -> list[ReadableSpan]:
    exported = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    trace = Tracing(provider, roots=roots).chunk(lease, QUEUE, 1)
    if trace is not None:
        assert structlog.contextvars.get_contextvars() == {"trace_id": trace.trace_id}
        trace.end()
    assert structlog.contextvars.get_contextvars() == {}
    return list(exported.get_finished_spans())


@pytest.mark.parametrize("garbage", ["", "nonsense", "00-0-0-01", f"ff-{PARENT[3:]}", "\ufffd" * 99, PARENT[:-2]])
def test_a_worker_begins_traces_only_if_a_sampler_was_chosen(garbage: str) -> None:
    lease = Lease(Begin.RUN, "j", "0", waited_ms=40, trace=garbage)
    assert spans_of(lease, roots=False) == []
    assert [span.name for span in spans_of(lease, roots=True)] == ["queue", f"process {QUEUE}"]


@pytest.mark.parametrize("roots", [True, False])
def test_the_submitters_span_is_the_parent(roots: bool) -> None:
    lease = Lease(Begin.RUN, "j", "0", waited_ms=40, trace=f"{PARENT} rojo=1")
    queue, chunk = spans_of(lease, roots=roots)
    for span in (queue, chunk):
        assert span.parent is not None
        assert (span.parent.trace_id, span.parent.span_id) == (TRACE, SPAN)
    assert chunk.context is not None
    assert chunk.context.trace_state.to_header() == "rojo=1"
    assert (queue.end_time or 0) - (queue.start_time or 0) == pytest.approx(40e6, rel=0.1)


class Moody(SpanExporter):
    def __init__(self) -> None:
        self.result = SpanExportResult.SUCCESS
        self.ends = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self.result

    def shutdown(self) -> None:
        self.ends.wait(30)


def test_a_collector_that_is_away_is_two_lines() -> None:
    moody = Moody()
    exporter = trace_export.SaysOnce(moody)
    ups = [True, False, False, False, True, True]
    with structlog.testing.capture_logs() as lines:
        for up in ups:
            moody.result = SpanExportResult.SUCCESS if up else SpanExportResult.FAILURE
            assert exporter.export([]) is moody.result
    assert [line["log_level"] for line in lines] == ["warning", "warning"]


def test_a_collector_that_is_away_keeps_no_worker_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_export, "CLOSE_SECONDS", 0.1)
    moody: Any = Moody()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(moody))
    before = time.monotonic()
    trace_export.close(provider)
    moody.ends.set()
    assert time.monotonic() - before < 10


def test_the_service_is_named_as_the_operator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace_export.resource("w1").attributes["service.name"] == "classifleet-worker"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "moderation")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-7,team=trust")
    said = trace_export.resource("w1").attributes
    assert (said["service.name"], said["service.instance.id"], said["team"]) == ("moderation", "pod-7", "trust")
