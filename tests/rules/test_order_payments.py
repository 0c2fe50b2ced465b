"""Which payments an order still needs, and which of them a run may cancel at the gateway."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules.invoice import InvoiceStatus
from workflows.rules.order_payments import PaymentPurposeFacts, is_capture_expected, is_needed_by_order, may_void
from workflows.rules.payment import PaymentStatus
from workflows.rules.subscription import SubscriptionStatus

# Purpose, status of the subscription, status of its first invoice -> is a capture expected, is the order unfinished.
CASES = [
    ("order", "pending", None, False, True),
    ("order", "provisioning", None, False, True),
    ("order", "active", "open", True, True),
    # The first invoice is paid, or there will be none: nothing waits for the authorization.
    ("order", "active", "paid", False, False),
    ("order", "active", "void", False, False),
    ("order", "active", None, False, False),
    ("order", "trialing", None, False, False),
    # It was recorded that the payment did not succeed.
    ("order", "past_due", "open", False, False),
    ("order", "suspended", "open", False, False),
    ("order", "paused", "open", False, False),
    ("order", "cancelled", None, False, False),
    ("order", "expired", None, False, False),
    ("order", "failed", None, False, False),
    ("order", "terminated", "uncollectible", False, False),
    # A renewal, or a top-up.
    ("invoice", "active", "open", False, False),
    ("invoice", "active", "paid", False, False),
    ("invoice", "past_due", "paid", False, False),
    ("top_up", None, None, False, False),
]


def _facts(purpose: str, subscription: str | None, invoice: str | None) -> PaymentPurposeFacts:
    return PaymentPurposeFacts(
        is_for_order=purpose == "order",
        subscription_status=SubscriptionStatus(subscription) if subscription else None,
        first_invoice_status=InvoiceStatus(invoice) if invoice else None,
    )


FACTS = st.builds(
    PaymentPurposeFacts,
    is_for_order=st.booleans(),
    subscription_status=st.none() | st.sampled_from(SubscriptionStatus),
    first_invoice_status=st.none() | st.sampled_from(InvoiceStatus),
)


@pytest.mark.parametrize(("purpose", "subscription", "invoice", "is_expected", "is_needed"), CASES)
def test_an_order_needs_its_payment_until_its_first_invoice_is_paid(
    purpose: str, subscription: str | None, invoice: str | None, is_expected: bool, is_needed: bool
) -> None:
    facts = _facts(purpose, subscription, invoice)
    assert is_capture_expected(facts) is is_expected
    assert is_needed_by_order(facts) is is_needed


@given(FACTS)
def test_an_order_that_expects_a_capture_needs_the_payment(facts: PaymentPurposeFacts) -> None:
    assert is_needed_by_order(facts) or not is_capture_expected(facts)


@pytest.mark.parametrize(
    ("status", "subscription", "invoice", "is_awaited", "is_allowed"),
    [
        ("authorized", "provisioning", None, False, False),
        ("authorized", "active", "open", False, False),
        ("authorized", "active", "paid", False, True),
        ("authorized", "cancelled", None, False, True),
        # The order itself decided so.
        ("authorized", "provisioning", None, True, True),
        ("authorized", "active", "open", True, True),
        # No money is reserved on the card.
        ("pending", "provisioning", None, False, True),
        ("unknown", "active", "open", False, True),
    ],
)
def test_an_unawaited_run_voids_no_authorization_that_an_order_needs(
    status: str, subscription: str, invoice: str | None, is_awaited: bool, is_allowed: bool
) -> None:
    facts = _facts("order", subscription, invoice)
    assert may_void(PaymentStatus(status), facts, is_awaited=is_awaited) is is_allowed


@given(FACTS, st.sampled_from(PaymentStatus))
def test_an_awaited_run_may_void_whatever_is_authorized(facts: PaymentPurposeFacts, status: PaymentStatus) -> None:
    assert may_void(status, facts, is_awaited=True)
