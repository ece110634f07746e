"""Logging: readable on a terminal, JSON elsewhere; an outage is two lines, however long it takes."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any, Final

import structlog
from celery.exceptions import CPendingDeprecationWarning

from classifleet.config import Settings
from classifleet.worker.outages import Outages

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
                structlog.processors.format_exc_info if not console else _keep,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    level = getattr(logging, settings.log_level.upper())
    logging.getLogger("classifleet").setLevel(level)
    logging.getLogger("celery").setLevel(max(level, logging.WARNING))


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


def _keep(_: Any, __: str, event: Any) -> Any:
    return event
