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


@pytest.mark.parametrize("kind", [NotificationKind.PAYMENT_FAILED, NotificationKind.SUBSCRIPTION_SUSPENDED])
def test_an_unpaid_invoice_names_how_to_pay(kind: NotificationKind) -> None:
    assert f"Top up: POST {PUBLIC_URL}/api/v1/billing/topups" in rendered_text(kind)


def test_a_generic_decline_is_not_shown_as_a_code() -> None:
    text = rendered_text(NotificationKind.PAYMENT_FAILED, decline_code="generic_decline")
    assert "Your card was declined." in text
    assert "generic" not in text
