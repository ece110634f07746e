"""Spans of a worker, for images whose submitter was being traced (extra `[otel]`).

    submitter's span ─► queue
                     └► process <queue>      one for a chunk
                          ├► image ─► fetch, decode, batch_wait, forward ~link~► batch
                          ├► sink
                          └► commit
    batch <model>                            one for a forward pass, child of its first traced image, links to all

Spans are made when a stage is over, from the clock readings that the metrics are made of. Nothing here runs for a
chunk without a trace.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from classifleet.config import ImageError, Item
from classifleet.config.payload import chunk_name
from classifleet.ledger import Lease
from classifleet.worker.scrubbing import scrub

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext
    from opentelemetry.util.types import AttributeValue

    from classifleet.worker.queues import Inference

NS: Final = 1_000_000_000
MS_PER_S: Final = 1_000
MAX_ID_CHARS: Final = 256
DETAILED_CHUNKS: Final = 16
"""Of a traced job, the images of its first so many chunks get spans: a trace of ten million can be read by nobody."""
_FIRST_PLAIN: Final = chunk_name(DETAILED_CHUNKS)
log = structlog.get_logger(__name__)


class Tracing:
    """Makes spans with a provider. Safe across threads.

    Args:
        provider: Of the SDK. Its sampler has the last word.
        roots: Whether chunks whose submitter was not traced begin traces of their own.
    """

    def __init__(self, provider: TracerProvider, *, roots: bool = False) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.api: Final = trace
        self.tracer: Final = provider.get_tracer("classifleet.worker")
        self._extract = TraceContextTextMapPropagator().extract
        self._roots = roots

    def chunk(self, lease: Lease, queue: str, images: int) -> ChunkTrace | None:
        """Begin the span of a chunk; None if it is not traced."""
        parent = self._parent(lease.trace)
        if parent is None:
            if not self._roots:
                return None
            from opentelemetry.context import Context

            parent = Context()
        trace = ChunkTrace(self, parent, lease, queue, images)
        if not trace.span.is_recording():
            return None
        trace.bind()
        return trace

    def batch(
        self, model: str, reason: str, images: Sequence[SpanContext], size: int, start: float, end: float
    ) -> SpanContext:
        """The span of a forward pass of `size` images, some of which are traced; times on the monotonic clock."""
        links = [self.api.Link(image) for image in images]
        attributes: dict[str, AttributeValue] = {
            "classifleet.model": model,
            "classifleet.batch.size": size,
            "classifleet.batch.reason": reason,
        }
        parent = self.api.set_span_in_context(self.api.NonRecordingSpan(images[0]))
        return self.span(f"batch {model}", parent, start, end, attributes=attributes, links=links)

    def span(
        self,
        name: str,
        parent: Context,
        start: float,
        end: float,
        *,
        attributes: Mapping[str, AttributeValue] | None = None,
        links: Sequence[object] = (),
        error: str = "",
    ) -> SpanContext:
        """A span of something that is over; times on the monotonic clock, in seconds."""
        span = self.tracer.start_span(
            name,
            parent,
            attributes=attributes,
            links=links,  # type: ignore[arg-type]
            start_time=wall_ns(start),
        )
        if error:
            span.set_status(self.api.StatusCode.ERROR, error)
        span.end(wall_ns(end))
        return span.get_span_context()

    def _parent(self, carried: str) -> Context | None:
        if not carried:
            return None
        traceparent, _, tracestate = carried.partition(" ")
        context = self._extract({"traceparent": traceparent, "tracestate": tracestate})
        return context if self.api.get_current_span(context).get_span_context().is_valid else None


class ChunkTrace:
    """The span of a chunk at work; its log lines carry the trace's id while it is the thread's (`bind`)."""

    def __init__(self, tracing: Tracing, parent: Context, lease: Lease, queue: str, images: int) -> None:
        now = time.monotonic()
        self.span: Final = tracing.tracer.start_span(
            f"process {queue}",
            parent,
            kind=tracing.api.SpanKind.CONSUMER,
            attributes={
                "messaging.operation.type": "process",
                "messaging.destination.name": queue,
                "messaging.batch.message_count": images,
                "classifleet.job": lease.job,
                "classifleet.chunk": lease.chunk,
                "classifleet.attempt": lease.attempt,
            },
            start_time=wall_ns(now),
        )
        self.trace_id: Final = f"{self.span.get_span_context().trace_id:032x}"
        self._tracing = tracing
        self._context = tracing.api.set_span_in_context(self.span)
        self._detailed = not lease.trace or lease.chunk < _FIRST_PLAIN
        self.outcome = ""
        if self.span.is_recording():
            whole = parent if lease.trace else self._context  # beside the chunk, since it was before it
            tracing.span("queue", whole, now - lease.waited_ms / 1000, now)

    def image(self, item: Item) -> ImageTrace | None:
        """Begin the span of one of its images; None if the job has too many of them."""
        if not self._detailed:
            return None
        span = self._tracing.tracer.start_span(
            "image", self._context, attributes={"classifleet.image.id": scrub(item.id)[:MAX_ID_CHARS]}
        )
        return ImageTrace(self._tracing, span, self.trace_id)

    def stage(self, name: str, start: float) -> None:
        """Something that was done for the whole chunk, until now."""
        self._tracing.span(name, self._context, start, time.monotonic())

    def bind(self) -> None:
        """Put the trace's id on the log lines of this thread, and of what it starts on the event loop."""
        structlog.contextvars.bind_contextvars(trace_id=self.trace_id)

    def end(self) -> None:
        """End the span, and the binding."""
        structlog.contextvars.unbind_contextvars("trace_id")
        if self.outcome:
            self.span.set_attribute("classifleet.outcome", self.outcome)
        self.span.end()


class ImageTrace:
    """The span of an image at work. One stage runs at a time, but for the stages of several models."""

    __slots__ = ("_context", "_name", "_since", "_span", "_tracing", "context", "trace_id")

    def __init__(self, tracing: Tracing, span: Span, trace_id: str) -> None:
        self._tracing = tracing
        self._span = span
        self._context = tracing.api.set_span_in_context(span)
        self._name = ""
        self._since = 0.0
        self.context: Final = span.get_span_context()
        self.trace_id: Final = trace_id

    def begin(self, stage: str, start: float) -> None:
        """A stage begins: if the image fails, it failed there."""
        self._name, self._since = stage, start

    def done(self, end: float) -> None:
        """The stage that began last is over."""
        self._tracing.span(self._name, self._context, self._since, end)
        self._name = ""

    def inferred(self, model: str, start: float, inference: Inference) -> None:
        """It waited for a model and was in a batch of it."""
        about = {"classifleet.model": model}
        ran = start + inference.wait_ms / MS_PER_S
        self._tracing.span("batch_wait", self._context, start, ran, attributes=about)
        links = () if inference.batch is None else (self._tracing.api.Link(inference.batch),)
        end = ran + inference.forward_ms / MS_PER_S
        self._tracing.span("forward", self._context, ran, end, attributes=about, links=links)

    def failed(self, model: str, start: float, error: ImageError) -> None:
        """A model gave no answer. Others may have."""
        about, code = {"classifleet.model": model}, error.code.value
        self._tracing.span("forward", self._context, start, time.monotonic(), attributes=about, error=code)
        self._mark(code)

    def end(self, error: ImageError | None) -> None:
        """End the span, and that of the stage in which the image failed. Of an error only the code is said."""
        code = error.code.value if error else ""
        if self._name:
            self._tracing.span(self._name, self._context, self._since, time.monotonic(), error=code)
        if code:
            self._mark(code)
        self._span.end()

    def _mark(self, code: str) -> None:
        self._span.set_attribute("error.type", code)
        self._span.set_status(self._tracing.api.StatusCode.ERROR, code)


def wall_ns(monotonic: float) -> int:
    """A reading of the monotonic clock as Unix time in nanoseconds."""
    return time.time_ns() - int((time.monotonic() - monotonic) * NS)


def wanted() -> bool:
    """Whether the standard variables ask for traces: an endpoint is set, and the SDK is not turned off."""
    on = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{which}ENDPOINT") for which in ("", "TRACES_"))
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return on and not off and os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() != "none"


def start(owner: str) -> tuple[Tracing, Callable[[], None]] | None:
    """Tracing as the environment asks for it, and what ends it; None without."""
    if not wanted():
        return None
    try:
        from classifleet.worker.trace_export import start as start_export
    except ImportError as error:
        log.warning("no traces: OTEL_EXPORTER_OTLP_ENDPOINT is set; pip install 'classifleet[otel]'", error=str(error))
        return None
    return start_export(owner)
