"""The log of every process: one JSON object per line, with secrets and personal data masked, from every library."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from api.redaction import mask_value

WARNING_ONLY_LOGGERS = (
    "aiosmtplib",
    "asyncio",
    "httpcore",
    "httpx",
    "kubernetes",
    "reportlab",
    "sqlalchemy",
    "stripe",
    "urllib3",
)
"""At INFO these libraries log addresses, bodies and every request; an address may contain a link's token."""


class LogHandler(logging.StreamHandler[Any]):
    """Writes to standard output. A record that cannot be formatted is reported without its content."""

    def handleError(self, log_record: logging.LogRecord) -> None:
        """Write where the record came from. The library's own report quotes its arguments."""
        error = sys.exception()
        fault = {
            "event": "log.record_failed",
            "logger": log_record.name,
            "level": "error",
            "error": type(error).__name__,
            "place": f"{log_record.filename}:{log_record.lineno}",
        }
        try:
            self.stream.write(json.dumps(fault) + self.terminator)
        except (OSError, ValueError):
            # The stream is closed or full: there is no other place to report to.
            return


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask an event. The last step before it is rendered: exceptions and library records are text by then."""
    masked: MutableMapping[str, Any] = mask_value(event)
    return masked


def configure_logging(
    *,
    level: str = "INFO",
    log_format: str = "json",
    accepts: Callable[[logging.LogRecord], bool] | None = None,
) -> None:
    """Set up structlog and route the standard library's loggers through it, to standard output.

    Args:
        level: The lowest level that is written.
        log_format: ``json``, or ``text`` for people.
        accepts: Returns whether a record is written; None writes all.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
    )
    handler = LogHandler(sys.stdout)
    handler.setFormatter(formatter)
    if accepts is not None:
        handler.addFilter(accepts)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "fastapi"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = name != "uvicorn.access"
    for name in WARNING_ONLY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
