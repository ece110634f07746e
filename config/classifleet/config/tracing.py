"""How a caller's trace travels with images, without OpenTelemetry being needed for it.

Beside a chunk's payload the ledger keeps the W3C `traceparent` of the span in which the chunk was submitted and, after
a space, its `tracestate`. Not in the payload: an unknown field there is a newer schema, which older workers put aside,
and the same request submitted in another span would be another request. Not in the broker's message: that only wakes a
worker, which may then begin another chunk.
"""

from __future__ import annotations

import sys
from typing import Final

MAX_STATE_CHARS: Final = 512  # what the standard asks everybody to pass on


def current_trace() -> str:
    """The caller's current span as it travels; empty if there is none that is sampled.

    Whoever has a current span has imported OpenTelemetry: so it is looked for, and never imported.
    """
    current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current_span is None:
        return ""
    context = current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return ""
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    state = context.trace_state.to_header()
    return f"{parent} {state}" if state and len(state) <= MAX_STATE_CHARS else parent
