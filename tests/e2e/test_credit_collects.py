"""Credit and cards from any source collect what an account owes at once, whatever the order's collection."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from tests.e2e.steps import (
    V1,
    Sandbox,
    assert_success,
    assert_wallet_matches_transactions,
    card,
    get_subscription,
    held,
    instant,
    invoices,
    kinds,
    list_all,
    new_key,
    order_until_ready,
    send_command,
    spendable,
    top_up,
)
from tests.support.running_stack import ApiUser, Json
from tests.support.wait import wait_until_sync

OWED = [("past_due", 2), ("suspended", 8)]
"""A status and the days after an unpaid renewal on which a subscription has it."""


def order_until_past_due(customer: ApiUser, status: str, days: int, **more: str) -> Json:
    """A subscription whose second period is not paid."""
    subscription = order_until_ready(customer, **more)
    customer.advance(
        subscription["id"], until=(instant(subscription["current_period"]["end"]) + timedelta(days=days)).isoformat()
    )
    assert get_subscription(customer, subscription["id"])["status"] == status
    return subscription


def assert_collected(customer: ApiUser, subscription: Json) -> None:
    customer.wait_for_status(subscription["id"], "active")
    assert [row["status"] for row in invoices(customer, subscription["id"])] == ["paid", "paid"]
    assert held(customer) == 0
    assert_wallet_matches_transactions(customer)


@pytest.mark.parametrize(("status", "days"), OWED)
def test_an_adjustment_collects(customer: ApiUser, administrator: ApiUser, status: str, days: int) -> None:
    top_up(customer, 1500)
    subscription = order_until_past_due(customer, status, days)
    organization = customer.get(f"{V1}/users/me")["organization"]["id"]
    body = {"organization_id": organization, "amount_minor": 1500, "currency": "USD", "reason": "goodwill"}
    assert_success(administrator.request("POST", f"{V1}/admin/billing/adjustments", body, key=new_key()), 201)
    assert_collected(customer, subscription)
    assert spendable(customer) == 0


@pytest.mark.parametrize(("status", "days"), OWED)
def test_a_refund_to_the_wallet_collects(customer: ApiUser, administrator: ApiUser, status: str, days: int) -> None:
    card(customer)
    by_card = order_until_ready(customer, collection="card")
    top_up(customer, 1500)
    subscription = order_until_past_due(customer, status, days, collection="wallet")
    (payment,) = list_all(customer, f"{V1}/billing/payments", subscription_id=by_card["id"])
    body = {"payment_id": payment["id"], "to": "wallet", "reason": "goodwill"}
    assert_success(administrator.request("POST", f"{V1}/admin/billing/refunds", body, key=new_key()), 201)
    assert_collected(customer, subscription)
    assert spendable(customer) == 0


@pytest.mark.parametrize(("status", "days"), OWED)
def test_the_credit_of_a_plan_change_collects(customer: ApiUser, status: str, days: int) -> None:
    top_up(customer, 4500 + 1500)
    large = order_until_ready(customer, "n8n-pro")
    subscription = order_until_past_due(customer, status, days)
    body = {"plan_id": customer.plan("n8n-starter"), "mode": "immediate"}
    send_command(customer, large["id"], "change-plan", body)
    assert_collected(customer, subscription)


@pytest.mark.parametrize(("status", "days"), OWED)
def test_another_card_collects(customer: ApiUser, status: str, days: int) -> None:
    card(customer, "pm_card_chargeCustomerFail")
    top_up(customer, 1500)
    subscription = order_until_past_due(customer, status, days)
    good = card(customer, default=False)
    assert_collected(customer, subscription)
    chosen = assert_success(customer.request("POST", f"{V1}/billing/payment-methods/{good['id']}/default"))
    assert (chosen["id"], chosen["default"]) == (good["id"], True)
    assert [row["default"] for row in list_all(customer, f"{V1}/billing/payment-methods")] == [True, False]


def test_a_backup_card_pays_the_renewal_that_the_default_declines(customer: ApiUser) -> None:
    card(customer)
    card(customer, "pm_card_chargeCustomerFail")
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    end = instant(subscription["current_period"]["end"]) + timedelta(minutes=5)
    customer.advance(subscription["id"], until=end.isoformat())
    assert get_subscription(customer, subscription["id"])["status"] == "active"
    assert invoices(customer, subscription["id"])[-1]["status"] == "paid"
    payments = list_all(customer, f"{V1}/billing/payments", subscription_id=subscription["id"])
    assert sorted(payment["status"] for payment in payments) == ["failed", "succeeded"]


@pytest.mark.parametrize(("status", "days"), OWED)
def test_a_top_up_collects_although_the_collection_method_is_card(customer: ApiUser, status: str, days: int) -> None:
    good = card(customer)
    subscription = order_until_ready(customer, collection="card")
    card(customer, "pm_card_chargeCustomerFail")
    assert_success(customer.request("DELETE", f"{V1}/billing/payment-methods/{good['id']}"))
    customer.advance(
        subscription["id"], until=(instant(subscription["current_period"]["end"]) + timedelta(days=days)).isoformat()
    )
    assert get_subscription(customer, subscription["id"])["status"] == status
    customer.top_up(4500)
    assert_collected(customer, subscription)
    assert spendable(customer) == 3000


def test_a_top_up_while_the_renewals_card_is_charged_is_seen(customer: ApiUser, sandbox: Sandbox) -> None:
    card(customer, "pm_card_chargeCustomerFail")
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    # The charge is under way until its answer comes: the webhook would end it sooner.
    sandbox.gateway("hold_webhook", seconds=6)
    sandbox.gateway("stall", count=1, seconds=5)
    with ThreadPoolExecutor(1) as pool:
        end = instant(subscription["current_period"]["end"]) + timedelta(minutes=5)
        renewing = pool.submit(customer.advance, subscription["id"], until=end.isoformat())
        wait_until_sync(
            lambda: list_all(customer, f"{V1}/billing/payments", subscription_id=subscription["id"]),
            description="the card is charged",
        )
        customer.top_up(1500)
        assert invoices(customer, subscription["id"])[-1]["status"] == "open"
        renewing.result()
    assert_collected(customer, subscription)
    assert "payment.failed" in kinds(customer, subscription["id"])
    assert spendable(customer) == 0
