"""The worker's log: ``api.logs``, with the records of the Temporal SDK."""

from __future__ import annotations

import logging

from temporalio.runtime import LogForwardingConfig, LoggingConfig, TelemetryFilter

import api.logs

SDK_ACTIVITY_FAILURE_PREFIX = "Completing activity as failed"


def is_not_sdk_duplicate(log_record: logging.LogRecord) -> bool:
    """Return whether a log record is not the SDK's entry for a failed attempt.

    The SDK logs the message of the error, which may contain personal data; ``worker.interceptors`` logs its type.
    """
    message = log_record.msg
    return not (isinstance(message, str) and message.startswith(SDK_ACTIVITY_FAILURE_PREFIX))


def configure_logging(*, level: str = "INFO", log_format: str = "json") -> None:
    """Set up the log of the process, without the SDK's duplicates."""
    api.logs.configure_logging(level=level, log_format=log_format, accepts=is_not_sdk_duplicate)


def sdk_logging_config() -> LoggingConfig:
    """Return the configuration that writes warnings of the SDK's core to this log instead of raw lines on stderr."""
    return LoggingConfig(
        filter=TelemetryFilter(core_level="WARN", other_level="ERROR"),
        forwarding=LogForwardingConfig(logger=logging.getLogger("temporalio.core")),
    )
