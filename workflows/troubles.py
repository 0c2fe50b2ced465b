"""What a failed activity said, as a stable reason and a sentence."""

from __future__ import annotations

from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError

from workflows.rules.instance import Trouble


def trouble_of(error: BaseException | None) -> tuple[str, str]:
    """Return the reason (a ``Trouble`` or ``Refusal``) and the message behind ``error``.

    A time limit that ran out is ``DeadlineExceeded``; anything that no activity named is ``Unavailable``.
    """
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError):
        return cause.type or Trouble.UNAVAILABLE, cause.message
    if isinstance(cause, TimeoutError):
        return Trouble.DEADLINE_EXCEEDED, cause.message
    return Trouble.UNAVAILABLE, str(cause)
