"""Logging: readable on a terminal, JSON elsewhere; an outage is two lines, however long it takes.

Whatever is said, by us or by a library, goes through one handler, and what it must not say is taken out there
(`scrubbing.py`). Libraries are heard from level warning on, however talkative we are.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

import structlog
from celery.exceptions import CPendingDeprecationWarning

from classifleet.config import Record, Settings
from classifleet.ledger import Lease
from classifleet.worker.outages import Outages
from classifleet.worker.scrubbing import scrub_event

log = structlog.get_logger(__name__)
# Lines of Celery and kombu that come once for each try, or for each message that was at work.
_CONNECTION_LINES: Final = ("consumer: Cannot connect", "consumer: Connection to broker lost")
_LOGGERS: Final = ("celery.worker.consumer.consumer", "celery.worker.request", "celery.app.trace")
_MESSAGE_LINES: Final = ("Couldn't ack", "Couldn't reject")


def configure(settings: Settings) -> None:
    """Send structlog's and the standard library's records to standard error in one format."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    # A plain traceback: the pretty one prints local variables, and those hold image bytes and URLs.
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        # A line that nobody will see costs next to nothing: it is dropped first.
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                scrub_event,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = getattr(logging, settings.log_level.upper())
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("classifleet").setLevel(level)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda died: _uncaught(died.exc_type, died.exc_value, died.exc_traceback)


def log_chunk(lease: Lease, queue: str, records: Sequence[Record], outcome: str, seconds: float) -> None:
    """One line for a chunk that is done, and on level debug one for each image."""
    ids = {"job": lease.job, "chunk": lease.chunk}
    log.info(
        "chunk",
        **ids,
        queue=queue,
        images=len(records),
        failed=sum("error" in record for record in records),
        attempt=lease.attempt,
        outcome=outcome,
        seconds=round(seconds, 3),
    )
    if not logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
        return
    for record in records:
        code = record["error"]["code"] if "error" in record else None
        timings = record["timings_ms"]
        log.debug("image", **ids, id=record["id"], status=record["status"], code=code, timings_ms=timings)


def quiet(outages: Outages) -> None:
    """Let `outages` say that the broker is away, instead of Celery at each try; see `_Quiet`."""
    # It says at each lost connection that what is at work goes on; that is meant.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_Quiet(outages))


class _Quiet(logging.Filter):
    """Drops what is said once elsewhere: the broker is away; a message was given back on purpose, with a traceback."""

    def __init__(self, outages: Outages) -> None:
        super().__init__()
        self._outages = outages

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith(_CONNECTION_LINES):
            self._outages.failed("broker", message.splitlines()[0])
            return False
        if message.startswith(_MESSAGE_LINES):
            return False
        return " reject requeue=True: " not in message


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is None or not issubclass(kind, Exception):  # Ctrl-C
        return
    structlog.get_logger(__name__).critical("not caught", exc_info=(kind, error, trace))
