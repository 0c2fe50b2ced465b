"""An amount below the card gateway's minimum: nothing is refused for it, and the card is never asked for it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.e2e.steps import (
    V1,
    assert_success,
    assert_wallet_matches_transactions,
    card,
    get_subscription,
    held,
    instant,
    invoices,
    kinds,
    money,
    order_until_ready,
    send_command,
    spendable,
    top_up,
)
from tests.support.running_stack import ApiUser, Json, RunningStack
from tests.support.wait import wait_until_sync

MINIMUM = 50
"""Stripe's smallest charge in US cents."""


def charged(stack: RunningStack, before: int) -> list[int]:
    """What cards paid since there were ``before`` charges."""
    rows = [row for row in stack.charges()[before:] if row["captured"] and row["status"] == "succeeded"]
    amounts = [int(row["amount"]) for row in rows]
    assert all(amount >= MINIMUM for amount in amounts)
    return amounts


def period_end_after(subscription: Json, **offset: float) -> str:
    return (instant(subscription["current_period"]["end"]) + timedelta(**offset)).isoformat()


def test_an_order_with_a_remainder_below_the_minimum_is_funded(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 1480)
    card(customer)
    before = len(stack.charges())
    subscription = order_until_ready(customer)
    # The card is captured a moment after the subscription became active.
    wait_until_sync(
        lambda: invoices(customer, subscription["id"])[0]["status"] == "paid", description="the first invoice is paid"
    )
    assert [row["total"] for row in invoices(customer, subscription["id"])] == [money(1500)]
    assert charged(stack, before) == [MINIMUM]
    assert (spendable(customer), held(customer)) == (1480 - (1500 - MINIMUM), 0)
    assert_wallet_matches_transactions(customer)


def test_a_renewal_with_a_remainder_below_the_minimum_is_paid(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    top_up(customer, 1480)
    card(customer)
    before = len(stack.charges())
    customer.advance(subscription["id"], until=period_end_after(subscription, hours=1))
    assert get_subscription(customer, subscription["id"])["status"] == "active"
    assert [row["status"] for row in invoices(customer, subscription["id"])] == ["paid", "paid"]
    assert not {"payment.failed", "subscription.past_due"} & set(kinds(customer, subscription["id"]))
    assert charged(stack, before) == [MINIMUM]
    assert (spendable(customer), held(customer)) == (1480 - (1500 - MINIMUM), 0)
    assert_wallet_matches_transactions(customer)


def test_a_plan_change_with_a_remainder_below_the_minimum_is_applied(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    top_up(customer, 50)
    card(customer)
    customer.advance(subscription["id"], until=period_end_after(subscription, hours=-16))
    body = {"plan_id": customer.plan("n8n-pro"), "mode": "immediate"}
    preview = assert_success(
        customer.request("POST", f"{V1}/subscriptions/{subscription['id']}/change-plan/preview", body)
    )
    due = preview["due_now"]["amount_minor"]
    assert MINIMUM < due < 2 * MINIMUM
    before = len(stack.charges())
    changed = send_command(customer, subscription["id"], "change-plan", body)
    assert (changed["plan"]["code"], changed["status"]) == ("n8n-pro", "active")
    assert invoices(customer, subscription["id"])[-1]["status"] == "paid"
    assert charged(stack, before) == [MINIMUM]
    assert spendable(customer) == 50 - (invoices(customer, subscription["id"])[-1]["total"]["amount_minor"] - MINIMUM)
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("B13")
def test_a_difference_below_the_minimum_is_carried_to_the_next_charge(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    card(customer)
    customer.advance(subscription["id"], until=period_end_after(subscription, hours=-6))
    before = len(stack.charges())
    body = {"plan_id": customer.plan("n8n-pro"), "mode": "immediate"}
    changed = send_command(customer, subscription["id"], "change-plan", body)
    assert (changed["plan"]["code"], changed["status"]) == ("n8n-pro", "active")
    difference = invoices(customer, subscription["id"])[-1]
    carried = difference["total"]["amount_minor"]
    assert 0 < carried < MINIMUM
    assert difference["status"] == "paid"
    assert charged(stack, before) == []
    customer.advance(subscription["id"], until=period_end_after(subscription, hours=1))
    assert get_subscription(customer, subscription["id"])["status"] == "active"
    assert "payment.failed" not in kinds(customer, subscription["id"])
    assert charged(stack, before) == [4500 + carried]
    assert (spendable(customer), held(customer)) == (0, 0)
    customer.advance(subscription["id"], days=31)
    assert charged(stack, before) == [4500 + carried, 4500]
    assert_wallet_matches_transactions(customer)
