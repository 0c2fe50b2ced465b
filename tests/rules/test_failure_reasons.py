"""What a customer reads of a failed activity: designed reasons and messages, never the text of an unexpected error."""

from __future__ import annotations

import pytest
from temporalio.exceptions import ApplicationError, TimeoutError, TimeoutType

from workflows.failure_reasons import failure_reason
from workflows.rules.errors import ErrorCode
from workflows.rules.instance import FailureReason

SQL = "(psycopg.errors.LockNotAvailable) canceling statement [SQL: SELECT instances.id] [parameters: {'id': 'ins_1'}]"


@pytest.mark.parametrize("reason", [FailureReason.QUOTA_EXCEEDED, FailureReason.IMAGE_PULL, ErrorCode.ILLEGAL_MOVE])
def test_a_designed_failure_keeps_its_reason_and_message(reason: str) -> None:
    assert failure_reason(ApplicationError("exceeded quota", type=reason)) == (reason, "exceeded quota")


@pytest.mark.parametrize(
    "error",
    [
        ApplicationError(SQL, type="OperationalError"),
        ApplicationError(SQL),
        ConnectionRefusedError("10.0.0.1:5432"),
        None,
    ],
)
def test_an_unexpected_error_is_unavailable_and_its_text_stays_inside(error: BaseException | None) -> None:
    reason, message = failure_reason(error)
    assert reason == FailureReason.UNAVAILABLE
    assert message == "A part of the platform is temporarily unavailable."


def test_a_time_limit_that_ran_out_is_named() -> None:
    error = TimeoutError("activity StartToClose timeout", type=TimeoutType.START_TO_CLOSE, last_heartbeat_details=[])
    assert failure_reason(error) == (FailureReason.DEADLINE_EXCEEDED, "A step did not end within its time limit.")
