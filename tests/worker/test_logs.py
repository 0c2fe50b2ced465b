"""Log records of the worker name the account, and errors by their type and place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from temporalio.exceptions import ApplicationError

from worker import interceptors
from workflows.errors import ORDINARY_ACTIVITY_REQUIRED, non_retryable_error
from workflows.ports.payments import ChargePayment, PaymentInput, Purpose
from workflows.rules.errors import ErrorCode
from workflows.rules.money import Money


def test_the_account_is_found_in_a_command_or_one_level_below() -> None:
    pay = PaymentInput(
        payment_id="pay_1",
        organization_id="org_1",
        amount=Money(amount_minor=1, currency="USD"),
        gateway="stripe",
        purpose=Purpose.TOP_UP,
    )

    @dataclass
    class Nameless:
        instance_id: str

    charge = ChargePayment(input=pay, now=datetime(2027, 1, 31, tzinfo=UTC))
    assert [interceptors.organization_id_of([argument]) for argument in (pay, charge, Nameless("ins_1"), "text")] == [
        "org_1",
        "org_1",
        None,
        None,
    ]
    assert interceptors.organization_id_of([]) is None


def test_an_error_is_logged_by_its_type_and_place() -> None:
    error = non_retryable_error(ErrorCode.INSUFFICIENT_FUNDS, "Ada has nothing left")
    assert interceptors.classify_outcome(error) == interceptors.REJECTED
    assert interceptors.error_name(error) == "INSUFFICIENT_FUNDS"
    with pytest.raises(ValueError, match="Ada") as caught:
        int("Ada")
    assert interceptors.classify_outcome(caught.value) == interceptors.FAILED
    assert interceptors.error_name(caught.value) == "ValueError"
    (frame,) = interceptors.product_frames(caught.value)
    assert frame.startswith("tests/worker/test_logs.py:")
    assert interceptors.classify_outcome(KeyboardInterrupt()) == interceptors.CANCELLED


def test_a_local_activity_that_leaves_its_work_to_the_ordinary_one_has_not_failed() -> None:
    """Each renewal by card begins with one: as a failure it would be logged and counted."""
    error = ApplicationError("A card has to be charged.", type=ORDINARY_ACTIVITY_REQUIRED, non_retryable=True)
    assert interceptors.classify_outcome(error) == interceptors.REJECTED
