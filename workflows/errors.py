"""Conversions between ``RuleViolation``, which rules raise, and ``ApplicationError``, which Temporal transports."""

from __future__ import annotations

from collections.abc import Mapping

from temporalio.exceptions import ActivityError, ApplicationError

from workflows.rules.errors import RETRYABLE, ErrorCode, RuleViolation

ORDINARY_ACTIVITY_REQUIRED = "OrdinaryActivityRequired"
"""Type of the error of a local activity that changed nothing, because the ordinary one has to do its work."""


def non_retryable_error(
    code: ErrorCode, message: str, details: Mapping[str, str | int] | None = None
) -> ApplicationError:
    """Return the error that ends an order with ``code`` and is never retried."""
    return ApplicationError(message, dict(details or {}), type=code, non_retryable=True)


def in_progress_error(message: str) -> ApplicationError:
    """Return the refusal of a command that may succeed once what is in progress has ended."""
    return non_retryable_error(ErrorCode.CONFLICT, message, RETRYABLE)


def to_application_error(error: RuleViolation) -> ApplicationError:
    return non_retryable_error(error.code, error.message, error.details)


def from_activity_error(error: ActivityError | ApplicationError) -> ApplicationError:
    """Return the refusal of a failed activity; a local one's failure comes bare, another's inside an ``ActivityError``.

    Raises:
        FailureError: ``error`` itself when it is no refusal.
    """
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError) and cause.type in ErrorCode.__members__:
        return ApplicationError(cause.message, *cause.details, type=cause.type, non_retryable=True)
    raise error


def to_rule_violation(error: BaseException) -> BaseException:
    """Return the ``RuleViolation`` inside a failed update or workflow, or ``error`` itself when it is another."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApplicationError) and cause.type is not None and cause.type in ErrorCode.__members__:
            details = cause.details[0] if cause.details and isinstance(cause.details[0], dict) else {}
            return RuleViolation(ErrorCode(cause.type), cause.message, details)
        cause = cause.__cause__
    return error
