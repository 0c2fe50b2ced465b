"""The log of every process: one JSON object per line, with secrets and personal data masked, from every library."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

SECRET_FIELD_WORDS = ("password", "secret", "token", "authorization", "cookie", "api_key", "credential")
MASK = "[hidden]"

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

SENSITIVE_PATTERN = re.compile(
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*"  # email addresses
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # signed tokens
    r"|\b(?:sk|rk|pk)_(?:live|test)_\w+|\bwhsec_\w+"  # a gateway's keys
    r"|(?<=token=)[\w%.~-]+"
    r"|(?<=://)[^/\s:@\"\\]+:[^/\s@\"\\]+(?=@)"  # user and password in a URL
)


class RedactingFormatter(logging.Formatter):
    """Masks what matches ``SENSITIVE_PATTERN`` in the text of another formatter."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, log_record: logging.LogRecord) -> str:
        return SENSITIVE_PATTERN.sub(MASK, self._inner.format(log_record))


def mask_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in event:
        if any(word in name.lower() for word in SECRET_FIELD_WORDS):
            event[name] = MASK
    return event


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
        mask_secrets,
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
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(RedactingFormatter(formatter))
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
