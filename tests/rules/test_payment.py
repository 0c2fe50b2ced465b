"""Payment statuses for any order and number of events, amounts in each gateway's units, and webhook parsing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules import webhook_events as events
from workflows.rules.errors import RuleViolation
from workflows.rules.gateway_amounts import from_gateway_amount, to_gateway_amount
from workflows.rules.money import Money
from workflows.rules.payment import (
    IN_FLIGHT_STATUSES,
    PAID_STATUSES,
    UNPAID_FINAL_STATUSES,
    GatewayPayment,
    PaymentStatus,
    apply_gateway_status,
    mismatch_reason,
    next_poll_at,
    status_after_refunds,
    transition,
)

S = PaymentStatus


def after(*facts: PaymentStatus, start: PaymentStatus = S.PENDING) -> PaymentStatus:
    status = start
    for fact in facts:
        status = apply_gateway_status(status, fact)
    return status


@pytest.mark.parametrize(
    ("current", "refunded", "status"),
    [
        (S.SUCCEEDED, 100, S.PARTIALLY_REFUNDED),
        (S.PARTIALLY_REFUNDED, 500, S.REFUNDED),
        # The bank rejected the only refund, or one of them.
        (S.REFUNDED, 0, S.SUCCEEDED),
        (S.REFUNDED, 100, S.PARTIALLY_REFUNDED),
        (S.DISPUTED, 0, S.DISPUTED),
    ],
)
def test_a_payment_is_as_refunded_as_its_refunds(current: PaymentStatus, refunded: int, status: PaymentStatus) -> None:
    assert status_after_refunds(current, captured_minor=500, refunded_minor=refunded) is status


@pytest.mark.scenario("B21")
def test_failed_after_succeeded_stays_paid_and_the_reverse_is_paid() -> None:
    assert after(S.SUCCEEDED, S.FAILED) is S.SUCCEEDED
    assert after(S.FAILED, S.SUCCEEDED) is S.SUCCEEDED


@pytest.mark.scenario("B21")
@pytest.mark.parametrize("order", list(permutations((S.PENDING, S.AUTHORIZED, S.FAILED, S.CANCELLED, S.SUCCEEDED))))
def test_a_payment_that_succeeded_is_paid_in_any_order_of_events(order: tuple[PaymentStatus, ...]) -> None:
    assert after(*order) is S.SUCCEEDED


@pytest.mark.scenario("B19")
@given(st.lists(st.sampled_from((S.PENDING, S.UNKNOWN, S.AUTHORIZED, S.SUCCEEDED, S.FAILED, S.CANCELLED)), max_size=8))
def test_a_repeated_event_changes_nothing(facts: list[PaymentStatus]) -> None:
    once = after(*facts)
    assert all(apply_gateway_status(once, fact) is once for fact in facts[-1:])
    assert (once in PAID_STATUSES) == (S.SUCCEEDED in facts)


def test_every_status_is_in_flight_closed_or_received() -> None:
    assert set(PaymentStatus) == IN_FLIGHT_STATUSES | UNPAID_FINAL_STATUSES | PAID_STATUSES
    assert not IN_FLIGHT_STATUSES & UNPAID_FINAL_STATUSES
    assert not PAID_STATUSES & (IN_FLIGHT_STATUSES | UNPAID_FINAL_STATUSES)
    with pytest.raises(RuleViolation):
        transition(S.SUCCEEDED, S.FAILED)


@pytest.mark.scenario("B22")
def test_an_unknown_payment_is_polled_at_growing_intervals() -> None:
    silent = datetime(2027, 1, 1, tzinfo=UTC)
    waits = [next_poll_at(silent, polls) - silent for polls in range(6)]
    hour = timedelta(hours=1)
    assert waits == [hour / 60, hour / 12, hour / 4, hour, 25 * hour, 49 * hour]


@pytest.mark.scenario("B28")
@pytest.mark.parametrize(
    ("amount", "currency", "reference", "fits"),
    [
        (1500, "USD", "pi_1", True),
        (1501, "USD", "pi_1", False),
        (1500, "EUR", "pi_1", False),
        (1500, "USD", "pi_2", False),
    ],
)
def test_an_event_that_contradicts_the_payment_is_a_mismatch(
    amount: int, currency: str, reference: str, fits: bool
) -> None:
    gateway_payment = GatewayPayment(
        reference=reference, status=S.SUCCEEDED, amount=Money(amount_minor=amount, currency=currency)
    )
    amount_due = Money(amount_minor=1500, currency="USD")
    assert (mismatch_reason(gateway_payment, amount=amount_due, reference="pi_1") is None) is fits
    assert (
        mismatch_reason(gateway_payment, amount=amount_due, reference=None) is None
        or amount != 1500
        or currency != "USD"
    )


@pytest.mark.scenario("B38", "B40")
@pytest.mark.parametrize(
    ("gateway", "amount", "currency", "count"),
    [
        ("midtrans", 150_000_00, "IDR", 150_000),
        ("stripe", 150_000_00, "IDR", 15_000_000),
        ("stripe", 1500, "JPY", 1500),
        ("razorpay", 1500, "JPY", 1500),
        ("stripe", 1500, "USD", 1500),
        ("stripe", 1500, "KWD", 1500),
        ("stripe", 1500, "UGX", 150_000),
    ],
)
def test_each_gateway_receives_amounts_in_its_units(gateway: str, amount: int, currency: str, count: int) -> None:
    money = Money(amount_minor=amount, currency=currency)
    assert to_gateway_amount(gateway, money) == count
    assert from_gateway_amount(gateway, count, currency.lower()) == money


def test_an_amount_that_the_gateway_cannot_express_is_rejected() -> None:
    with pytest.raises(ValueError, match="whole IDR"):
        to_gateway_amount("midtrans", Money(amount_minor=150_000_50, currency="IDR"))
    with pytest.raises(ValueError, match="no whole amount"):
        from_gateway_amount("stripe", 150, "ugx")


def intent(**changes: Any) -> dict[str, Any]:
    body = {
        "id": "pi_1",
        "amount": 1500,
        "amount_received": 1500,
        "currency": "jpy",
        "metadata": {"berth_payment": "pay_1", "berth_organization": "org_1"},
        "last_payment_error": None,
    }
    return {**body, **changes}


def event(kind: str, **changes: Any) -> dict[str, Any]:
    return {"id": "evt_1", "type": kind, "data": {"object": intent(**changes)}}


@pytest.mark.scenario("B40")
def test_a_stripe_event_is_reduced_to_its_facts() -> None:
    assert events.parse_stripe_event(event("payment_intent.succeeded")) == events.PaymentEvent(
        gateway="stripe",
        event_id="evt_1",
        event_type="payment_intent.succeeded",
        gateway_reference="pi_1",
        status=S.SUCCEEDED,
        amount=Money(amount_minor=1500, currency="JPY"),
        payment_id="pay_1",
        organization_id="org_1",
    )


def test_a_stripe_decline_has_its_code() -> None:
    error = {"code": "card_declined", "decline_code": "lost_card"}
    fact = events.parse_stripe_event(event("payment_intent.payment_failed", last_payment_error=error))
    assert isinstance(fact, events.PaymentEvent)
    assert (fact.status, fact.decline_code) == (S.FAILED, "lost_card")


def test_an_event_about_something_else_is_irrelevant() -> None:
    parsed = events.parse_stripe_event({"id": "evt_2", "type": "customer.created", "data": {"object": {}}})
    assert parsed == events.IgnoredEvent(gateway="stripe", event_id="evt_2", event_type="customer.created")


@pytest.mark.scenario("B28")
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": "evt", "type": "payment_intent.succeeded"},
        {"id": "evt", "type": "payment_intent.succeeded", "data": {"object": []}},
        event("payment_intent.succeeded", amount_received="1500"),
        event("payment_intent.succeeded", amount_received=15.0),
        event("payment_intent.succeeded", amount_received=True),
        event("payment_intent.succeeded", currency="dollars"),
        event("payment_intent.succeeded", metadata=["x"]),
    ],
)
def test_a_body_that_differs_from_the_gateways_documentation_is_rejected(body: dict[str, Any]) -> None:
    with pytest.raises(events.MalformedWebhook):
        events.parse_stripe_event(body)


def notification(**changes: str) -> dict[str, str]:
    body = {
        "order_id": "pay_1",
        "transaction_id": "tx-1",
        "transaction_status": "settlement",
        "status_code": "200",
        "gross_amount": "150000.00",
        "currency": "IDR",
    }
    return {**body, **changes}


@pytest.mark.scenario("B38")
def test_a_midtrans_notification_counts_whole_rupiah() -> None:
    fact = events.parse_midtrans_notification(notification())
    assert isinstance(fact, events.PaymentEvent)
    assert (fact.status, fact.amount) == (S.SUCCEEDED, Money(amount_minor=150_000_00, currency="IDR"))
    assert (fact.payment_id, fact.event_id) == ("pay_1", "tx-1:settlement:200")
    with pytest.raises(events.MalformedWebhook):
        events.parse_midtrans_notification(notification(gross_amount="150000.50"))


@pytest.mark.parametrize(("fraud", "status"), [("accept", S.SUCCEEDED), ("challenge", S.PENDING)])
def test_a_midtrans_capture_counts_only_when_its_fraud_check_accepts(fraud: str, status: PaymentStatus) -> None:
    fact = events.parse_midtrans_notification(notification(transaction_status="capture", fraud_status=fraud))
    assert isinstance(fact, events.PaymentEvent)
    assert fact.status is status


def test_a_razorpay_webhook_carries_our_notes() -> None:
    entity = {"id": "pay_r", "amount": 1500, "currency": "INR", "notes": {"berth_payment": "pay_1"}}
    body = {"event": "payment.captured", "payload": {"payment": {"entity": entity}}}
    fact = events.parse_razorpay_event(body, "evt_r")
    assert isinstance(fact, events.PaymentEvent)
    assert (fact.payment_id, fact.amount) == ("pay_1", Money(amount_minor=1500, currency="INR"))
    with pytest.raises(events.MalformedWebhook):
        events.parse_razorpay_event(body, "")
