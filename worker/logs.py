"""The worker's log: the API's JSON lines, with the libraries that tell too much made quiet, and nothing personal."""

from __future__ import annotations

import logging
import re

from temporalio.runtime import LogForwardingConfig, LoggingConfig, TelemetryFilter

import api.logs
from api.logs import MASK

QUIET = ("stripe", "httpx", "httpcore", "urllib3", "kubernetes", "asyncio", "aiosmtplib", "sqlalchemy", "reportlab")
"""Their warnings are wanted; what they say at INFO are addresses, bodies and every request."""

SDK_ON_FAILED_ACTIVITIES = "Completing activity as failed"

PERSONAL = re.compile(
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*"  # addresses
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # signed tokens
    r"|\b(?:sk|rk|pk)_(?:live|test)_\w+|\bwhsec_\w+"  # a gateway's keys
    r"|(?<=token=)[\w%.~-]+"
    r"|(?<=://)[^/\s:@\"\\]+:[^/\s@\"\\]+(?=@)"  # user and password inside an address
)


class Scrubbing(logging.Formatter):
    """Whatever was said, in whichever library's words: what looks personal or secret does not leave the process."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return PERSONAL.sub(MASK, self._inner.format(record))


def told_elsewhere(record: logging.LogRecord) -> bool:
    """The SDK tells each failed attempt with its error's whole text; ``worker.sight`` tells it without."""
    return not str(record.msg).startswith(SDK_ON_FAILED_ACTIVITIES)


def configure(*, level: str = "INFO", form: str = "json") -> None:
    """Set the process's log up."""
    api.logs.configure(level=level, form=form)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        if handler.formatter is not None:
            handler.setFormatter(Scrubbing(handler.formatter))
        handler.addFilter(told_elsewhere)


def of_the_core() -> LoggingConfig:
    """The SDK's native part says its warnings through the same log instead of raw lines on stderr."""
    return LoggingConfig(
        filter=TelemetryFilter(core_level="WARN", other_level="ERROR"),
        forwarding=LogForwardingConfig(logger=logging.getLogger("temporalio.core")),
    )
