"""Which authorizations an order still needs."""

from __future__ import annotations

import pytest

from workflows.rules.invoice import InvoiceStatus
from workflows.rules.order_payments import PaymentPurposeFacts, is_capture_expected, pays_unfinished_order
from workflows.rules.subscription import PRE_READY_STATUSES, SubscriptionStatus


def _facts(
    subscription: SubscriptionStatus | None, invoice: InvoiceStatus | None, *, is_for_order: bool = True
) -> PaymentPurposeFacts:
    return PaymentPurposeFacts(
        is_for_order=is_for_order, subscription_status=subscription, first_invoice_status=invoice
    )


@pytest.mark.parametrize("subscription", [None, *SubscriptionStatus])
@pytest.mark.parametrize("invoice", [None, *InvoiceStatus])
@pytest.mark.parametrize("is_for_order", [True, False])
def test_a_capture_is_expected_while_the_first_invoice_of_an_active_subscription_is_open(
    subscription: SubscriptionStatus | None, invoice: InvoiceStatus | None, is_for_order: bool
) -> None:
    facts = _facts(subscription, invoice, is_for_order=is_for_order)
    expected = (is_for_order, subscription, invoice) == (True, SubscriptionStatus.ACTIVE, InvoiceStatus.OPEN)
    assert is_capture_expected(facts) is expected
    assert pays_unfinished_order(facts) is (expected or subscription in PRE_READY_STATUSES)
