"""Which card is charged after a decline."""

from __future__ import annotations

import pytest

from workflows.rules.dunning import all_hard_declined, may_charge_backup
from workflows.rules.payment import PaymentStatus


@pytest.mark.parametrize(
    ("status", "decline_code", "expected"),
    [
        (PaymentStatus.FAILED, "insufficient_funds", True),
        (PaymentStatus.FAILED, "account_closed", True),
        (PaymentStatus.FAILED, "not_found", True),
        (PaymentStatus.FAILED, "fraudulent", False),
        (PaymentStatus.FAILED, "stolen_card", False),
        # Another payment of the invoice is in flight: its outcome comes first.
        (PaymentStatus.FAILED, "conflict", False),
        # Ended by hand: its money may still arrive.
        (PaymentStatus.CANCELLED, None, False),
        (PaymentStatus.AUTHORIZED, None, False),
        (PaymentStatus.SUCCEEDED, None, False),
    ],
)
def test_a_backup_is_charged_only_after_a_certain_decline_without_suspicion_of_fraud(
    status: PaymentStatus, decline_code: str | None, expected: bool
) -> None:
    assert may_charge_backup(status, decline_code) is expected


@pytest.mark.parametrize(
    ("decline_code", "hard_declined", "methods", "expected"),
    [
        ("insufficient_funds", [], ["pm_1"], False),
        ("stop_payment_order", ["pm_1"], ["pm_1"], True),
        ("stop_payment_order", ["pm_1"], ["pm_1", "pm_2"], False),
        ("insufficient_funds", ["pm_1"], [], False),
        ("stolen_card", ["pm_1"], ["pm_1", "pm_2"], True),
        ("stolen_card", ["pm_1"], [], True),
        (None, ["pm_1", "pm_2"], ["pm_2", "pm_1"], True),
    ],
)
def test_no_card_is_charged_by_itself_once_each_is_hard_declined_or_fraud_is_suspected(
    decline_code: str | None, hard_declined: list[str], methods: list[str], expected: bool
) -> None:
    assert all_hard_declined(decline_code, hard_declined, methods) is expected
