"""Mails name the amount, the price, the payment method, the reason and an address for questions."""

from __future__ import annotations

from typing import Any

import pytest

from activities.mail_rendering import MailRenderer, Recipient
from activities.notification_keys import REQUIRED_KEYS
from tests.support.notification_fixture import PUBLIC_URL
from workflows.rules.notifications import NotificationKind

SUPPORT = "help@berth.example"
RECIPIENT = Recipient(name="Ada", organization_name="Example Ltd", timezone="UTC")
USD_45 = {"amount_minor": 4500, "currency": "USD"}
REQUIRED_VALUES: dict[str, Any] = {"amount": USD_45, "days": 3}


def rendered_text(kind: NotificationKind, *, support_email: str | None = SUPPORT, **context: Any) -> str:
    """Return the text of a mail with its required values, on one line and without non-breaking spaces."""
    required = {key: REQUIRED_VALUES.get(key, f"some {key}") for key in REQUIRED_KEYS[kind]}
    renderer = MailRenderer(public_url=PUBLIC_URL, support_email=support_email)
    return " ".join(renderer.render(kind, required | context, RECIPIENT).text.replace("\u00a0", " ").split())


@pytest.mark.parametrize("kind", list(NotificationKind))
def test_every_mail_names_the_support_address(kind: NotificationKind) -> None:
    assert f"Questions? Write to {SUPPORT}." in rendered_text(kind)
    assert "Questions?" not in rendered_text(kind, support_email=None)


@pytest.mark.parametrize(
    "context", [{"effective_at": "2027-02-28T10:00:00Z"}, {"reason": "undone"}, {"reason": "withdrawn"}, {}]
)
def test_a_plan_change_names_the_price_and_the_next_charge(context: dict[str, Any]) -> None:
    text = rendered_text(
        NotificationKind.PLAN_CHANGED,
        plan_name="Business",
        price=USD_45,
        next_charge_at="2027-02-28T10:00:00Z",
        **context,
    )
    assert "Price per period: US$45.00" in text
    assert "Next charge: 28 February 2027" in text


@pytest.mark.parametrize(
    "kind",
    [
        NotificationKind.SERVICE_READY,
        NotificationKind.SUBSCRIPTION_RENEWED,
        NotificationKind.SUBSCRIPTION_RECOVERED,
        NotificationKind.SUBSCRIPTION_RESUMED,
        NotificationKind.PLAN_CHANGED,
    ],
)
def test_a_receipt_names_the_payment_method_and_the_carried_debt_that_was_paid(kind: NotificationKind) -> None:
    assert "Paid with: Visa ending in 4242" in rendered_text(kind, amount=USD_45, paid_by="Visa ending in 4242")
    debt = {"amount_minor": 20, "currency": "USD"}
    assert "Left from earlier invoices: US$0.20" in rendered_text(kind, amount=USD_45, debt_paid=debt)
    assert "earlier invoices" not in rendered_text(kind, amount=USD_45)


def test_a_reminder_names_the_carried_debt() -> None:
    debt = {"amount_minor": 20, "currency": "USD"}
    text = rendered_text(NotificationKind.SUBSCRIPTION_EXPIRING, amount=USD_45, carried_debt=debt, days=7)
    assert "US$0.20 that earlier invoices left is collected with it." in text
    assert "Left from earlier invoices: US$0.20" in text


def test_a_refund_names_its_reason() -> None:
    text = rendered_text(NotificationKind.REFUND_SUCCEEDED, to="wallet", reason="The service was unavailable")
    assert "Reason: The service was unavailable" in text


def test_a_rejected_refund_names_the_amount_that_is_in_the_wallet() -> None:
    text = rendered_text(NotificationKind.REFUND_FAILED, amount=USD_45, payment_id="pay_1", reason="goodwill")
    assert "US$45.00 was added to your wallet" in text
    assert "Your bank rejected the refund" in text
    assert "Payment: pay_1" in text


@pytest.mark.parametrize("kind", [NotificationKind.PAYMENT_FAILED, NotificationKind.SUBSCRIPTION_SUSPENDED])
def test_an_unpaid_invoice_names_how_to_pay(kind: NotificationKind) -> None:
    assert f"Top up: POST {PUBLIC_URL}/api/v1/billing/topups" in rendered_text(kind)


def test_a_generic_decline_is_not_shown_as_a_code() -> None:
    text = rendered_text(NotificationKind.PAYMENT_FAILED, decline_code="generic_decline")
    assert "Your card was declined." in text
    assert "generic" not in text


@pytest.mark.parametrize("decline_code", [None, "insufficient_funds"])
@pytest.mark.parametrize("next_retry_at", [None, "2027-03-01T10:00:00Z"])
def test_a_failed_payment_names_each_date_once_and_what_to_do(
    decline_code: str | None, next_retry_at: str | None
) -> None:
    text = rendered_text(
        NotificationKind.PAYMENT_FAILED,
        amount=USD_45,
        status="past_due",
        decline_code=decline_code,
        next_retry_at=next_retry_at,
        suspends_at="2027-03-07T10:00:00Z",
    )
    assert text.count("7 March 2027") == 1
    assert text.count("1 March 2027") == (1 if next_retry_at else 0)
    assert text.count("US$45.00") == 1
    assert "To pay now, top up or add" in text


def test_an_order_names_what_the_first_period_costs_with_its_coupon() -> None:
    first = {"amount_minor": 4050, "currency": "USD"}
    text = rendered_text(
        NotificationKind.SUBSCRIPTION_CREATED, amount=first, price=USD_45, coupon_code="WELCOME10", trial_days=0
    )
    assert "US$40.50 is charged when the service is ready" in text
    assert "Price per period: US$45.00" in text
    assert "Coupon: WELCOME10" in text
    assert "First period: US$40.50" in text
    plain = rendered_text(NotificationKind.SUBSCRIPTION_CREATED, amount=USD_45, price=USD_45, trial_days=0)
    assert "US$45.00 is charged when the service is ready" in plain
    assert "First period" not in plain


def test_an_order_of_a_trial_is_not_said_to_be_charged_when_it_is_ready() -> None:
    text = rendered_text(NotificationKind.SUBSCRIPTION_CREATED, amount=USD_45, price=USD_45, trial_days=14)
    assert "Your free trial of 14 days starts when the service is ready." in text
    assert "costs US$45.00" in text
    assert "is charged" not in text


def test_the_mail_of_a_cancelled_order_differs_from_that_of_a_cancelled_subscription() -> None:
    assert "You were not charged." in rendered_text(NotificationKind.SUBSCRIPTION_CANCELLED)
    text = rendered_text(NotificationKind.SUBSCRIPTION_CANCELLED, data_deletion_at="2027-03-07T10:00:00Z")
    assert "You are not charged again." in text
    assert text.count("7 March 2027") == 1


@pytest.mark.parametrize(
    "kind",
    [
        NotificationKind.SUBSCRIPTION_CANCELLED,
        NotificationKind.SUBSCRIPTION_FAILED,
        NotificationKind.SUBSCRIPTION_EXPIRED,
    ],
)
def test_the_mail_of_an_order_that_ends_says_what_its_card_was_charged(kind: NotificationKind) -> None:
    assert "You were not charged." in rendered_text(kind)
    text = rendered_text(kind, credited=USD_45)
    assert "Your card was charged US$45.00, which is in your wallet now." in text
    assert "You were not charged" not in text


def test_the_last_failed_payment_says_that_the_service_is_suspended_now() -> None:
    text = rendered_text(
        NotificationKind.PAYMENT_FAILED, status="past_due", decline_code="generic_decline", suspends_now=True
    )
    assert "This was the last attempt, so your service is suspended now." in text
    assert "To restart the service, top up or add a card." in text
    assert "charged again" not in text


def test_a_scheduled_cancellation_names_how_to_resume() -> None:
    text = rendered_text(NotificationKind.SUBSCRIPTION_CANCELLED, cancel_at_period_end=True)
    assert "Resume: POST" in text
    assert "withdrawn" not in text


def test_a_scheduled_cancellation_of_a_paused_subscription_says_that_a_resumption_withdraws_it_and_charges() -> None:
    texts = [
        rendered_text(
            NotificationKind.SUBSCRIPTION_CANCELLED,
            cancel_at_period_end=True,
            period_end="2027-02-28T10:00:00Z",
            status=status,
        )
        for status in ("active", "paused")
    ]
    assert [
        ("It runs until 28 February 2027; no further charges. You can resume it until then." in t) for t in texts
    ] == [
        True,
        False,
    ]
    assert (
        "It stays paused and ends on 28 February 2027. If you resume it before then, the cancellation is withdrawn, and"
        " a new billing period starts and is charged." in texts[1]
    )
    assert "Resume: POST" in texts[1]


@pytest.mark.parametrize("withdrawn", [True, False])
def test_a_resumption_names_the_cancellation_that_it_withdraws(withdrawn: bool) -> None:
    text = rendered_text(NotificationKind.SUBSCRIPTION_RESUMED, cancellation_withdrawn=withdrawn)
    assert ("The scheduled cancellation is withdrawn." in text) is withdrawn


def test_a_scheduled_cancellation_names_the_plan_change_that_it_withdraws() -> None:
    text = rendered_text(
        NotificationKind.SUBSCRIPTION_CANCELLED, cancel_at_period_end=True, withdrawn_plan_name="Starter"
    )
    assert "The scheduled change to the plan Starter is withdrawn." in text


@pytest.mark.parametrize("withdrawn", [True, False])
def test_a_plan_change_and_a_pause_name_the_cancellation_that_ends(withdrawn: bool) -> None:
    texts = (
        rendered_text(NotificationKind.PLAN_CHANGED, cancellation_withdrawn=withdrawn),
        rendered_text(
            NotificationKind.PLAN_CHANGED, effective_at="2027-02-28T10:00:00Z", cancellation_withdrawn=withdrawn
        ),
        rendered_text(NotificationKind.SUBSCRIPTION_PAUSED, cancellation_withdrawn=withdrawn),
    )
    assert [("The scheduled cancellation is withdrawn" in text) for text in texts] == [withdrawn] * 3


@pytest.mark.parametrize("cancels", [True, False])
def test_a_plan_change_that_is_rolled_back_names_the_cancellation_that_stands(cancels: bool) -> None:
    text = rendered_text(
        NotificationKind.PLAN_CHANGED,
        reason="undone",
        cancel_at_period_end=cancels,
        period_end="2027-02-28T10:00:00Z",
    )
    assert ("The cancellation stays scheduled: your service ends on 28 February 2027." in text) is cancels


@pytest.mark.parametrize("kind", [NotificationKind.SUBSCRIPTION_EXPIRING, NotificationKind.TOP_UP_RECEIPT])
def test_the_brand_of_a_card_is_capitalized(kind: NotificationKind) -> None:
    assert "Visa ending in 4242" in rendered_text(kind, brand="visa", last4="4242")
