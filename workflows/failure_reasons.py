"""The failure reason and the message of a failed activity."""

from __future__ import annotations

from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError

from workflows.rules.errors import ErrorCode
from workflows.rules.instance import FailureReason

STABLE_REASONS = frozenset({*FailureReason, *ErrorCode})


def failure_reason(error: BaseException | None) -> tuple[str, str]:
    """Return the reason (a ``FailureReason`` or ``ErrorCode``) and the message behind ``error``.

    Customers read both. The text of an error that no activity designed is not for them: it may hold statements,
    parameters and addresses of servers. Such an error is ``Unavailable``.
    """
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError) and cause.type is not None and cause.type in STABLE_REASONS:
        return cause.type, cause.message
    if isinstance(cause, TimeoutError):
        return FailureReason.DEADLINE_EXCEEDED, "A step did not end within its time limit."
    return FailureReason.UNAVAILABLE, "A part of the platform is temporarily unavailable."
