"""Between ``RuleBroken``, which rules raise, and ``ApplicationError``, which travels through Temporal."""

from __future__ import annotations

from collections.abc import Mapping

from temporalio.exceptions import ActivityError, ApplicationError

from workflows.rules.errors import Refusal, RuleBroken


def refuse(code: Refusal, message: str, details: Mapping[str, str] | None = None) -> ApplicationError:
    """Return the error that ends an order with ``code`` and is never retried."""
    return ApplicationError(message, dict(details or {}), type=code, non_retryable=True)


def refusal_of(error: RuleBroken) -> ApplicationError:
    return refuse(error.code, error.message, error.details)


def refused_by(error: ActivityError | ApplicationError) -> ApplicationError:
    """Return the refusal of a failed activity; a local one's failure comes bare, another's inside an ``ActivityError``.

    Raises:
        FailureError: ``error`` itself when it is no refusal.
    """
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError) and cause.type in Refusal.__members__:
        return ApplicationError(cause.message, *cause.details, type=cause.type, non_retryable=True)
    raise error


def refusal_in(error: BaseException) -> BaseException:
    """Return the ``RuleBroken`` inside a failed update or workflow, or ``error`` itself when it is another."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApplicationError) and cause.type is not None and cause.type in Refusal.__members__:
            details = cause.details[0] if cause.details and isinstance(cause.details[0], dict) else {}
            return RuleBroken(Refusal(cause.type), cause.message, details)
        cause = cause.__cause__
    return error
