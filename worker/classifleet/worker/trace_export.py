"""Where a worker's spans go: to the collector that the standard OTEL_* variables name, over OTLP/HTTP."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from classifleet.worker.tracing import Tracing

CLOSE_SECONDS: Final = 3.0
SERVICE: Final = "classifleet-worker"
log = structlog.get_logger(__name__)


class SaysOnce(SpanExporter):
    """Says once that the collector takes nothing, and once that it does again; spans meanwhile are lost."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        result = self._exporter.export(spans)
        away = result is not SpanExportResult.SUCCESS
        if away and not self._away:
            log.warning("the collector takes no traces; they are lost until it does")
        elif self._away and not away:
            log.warning("the collector takes traces again")
        self._away = away
        return result

    def shutdown(self) -> None:
        """Send nothing more."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is buffered here."""
        return self._exporter.force_flush(timeout_millis)


def start(owner: str) -> tuple[Tracing, Callable[[], None]]:
    """Spans of the worker of that name, and what ends the sending of them. No provider of the process is set."""
    # It says at each try that a try failed.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    provider = TracerProvider(resource=resource(owner), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(SaysOnce(OTLPSpanExporter())))
    # Without a sampler that the operator chose a worker begins no traces: ten million images would be as many.
    roots = bool(os.environ.get("OTEL_TRACES_SAMPLER"))
    return Tracing(provider, roots=roots), lambda: close(provider)


def resource(owner: str) -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, and for the rest what we know."""
    ours = {
        "service.name": SERVICE,
        "service.version": importlib.metadata.version("classifleet"),
        "service.instance.id": owner,
    }
    return Resource.create(ours | dict(OTELResourceDetector().detect().attributes))


def close(provider: TracerProvider) -> None:
    """Send what is left, but wait no longer than this: a collector that is away keeps no worker alive."""
    thread = threading.Thread(target=provider.shutdown, name="classifleet-traces", daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
