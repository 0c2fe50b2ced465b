"""Which card is charged after a decline."""

from __future__ import annotations

import pytest

from workflows.rules.dunning import may_charge_backup
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
