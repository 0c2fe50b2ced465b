"""Plan changes on the real workflow: prorated at once, or with the next period; undone when they cannot be."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.subscription_fixture import SubscriptionFixture
from tests.support.wait import wait_until
from workflows.ports.subscription import CancelAt
from workflows.rules.errors import RuleViolation
from workflows.rules.proration import PlanChangeMode

DAY = timedelta(days=1)


async def _used(subscriptions: SubscriptionFixture, subscription: str, days: int) -> int:
    """Let whole days of the period pass; returns the period's days."""
    row = await subscriptions.subscription(subscription)
    await subscriptions.advance_to(subscription, row["current_period_start"] + days * DAY)
    return int((row["current_period_end"] - row["current_period_start"]) / DAY)


@pytest.mark.scenario("B7")
async def test_an_upgrade_charges_the_rest_of_the_period_now_and_resizes(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    days = await _used(subscriptions, subscription, 1)
    await subscriptions.change_plan(subscription, "pro")
    await subscriptions.wait_until_idle(subscription)
    invoice = (await subscriptions.invoices(subscription))[1]
    expected = round(2000 * (days - 1) / days) - round(500 * (days - 1) / days)
    assert abs(invoice["total_minor"] - expected) <= 1
    assert (invoice["status"], invoice["billing_reason"]) == ("paid", "plan_change")
    assert (await subscriptions.subscription(subscription))["plan_id"] == subscriptions.plan("pro")
    assert subscriptions.external.operations() == ["resize"]
    await subscriptions.advance(subscription, 31 * DAY)
    assert (await subscriptions.invoices(subscription))[2]["total_minor"] == 2000


@pytest.mark.scenario("B8")
async def test_a_downgrade_waits_for_the_period_end_and_costs_nothing(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("pro")
    await _used(subscriptions, subscription, 1)
    await subscriptions.change_plan(subscription, "starter")
    assert (await subscriptions.subscription(subscription))["pending_plan_id"] == subscriptions.plan("starter")
    assert len(await subscriptions.invoices(subscription)) == 1
    await subscriptions.advance(subscription, 31 * DAY)
    assert [row["total_minor"] for row in await subscriptions.invoices(subscription)] == [2000, 500]
    row = await subscriptions.subscription(subscription)
    assert (row["plan_id"], row["pending_plan_id"]) == (subscriptions.plan("starter"), None)
    assert subscriptions.external.operations() == ["resize"]


@pytest.mark.scenario("B14")
async def test_an_immediate_downgrade_gives_credit_that_is_spent_never_paid_out(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.change_plan(subscription, "pro", order="up")
    await subscriptions.wait_until_idle(subscription)
    wallet = await subscriptions.balance()
    await subscriptions.change_plan(subscription, "starter", PlanChangeMode.IMMEDIATE, order="down")
    await subscriptions.wait_until_idle(subscription)
    assert await subscriptions.balance() == wallet
    credit = await subscriptions.balance("promotional")
    assert 1490 <= credit <= 1500
    await subscriptions.advance(subscription, 32 * DAY)
    assert await subscriptions.balance("promotional") == credit - 500
    assert await subscriptions.balance() == wallet


@pytest.mark.scenario("B11")
async def test_an_upgrade_that_is_not_paid_leaves_the_old_plan_untouched(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(600)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.add_card()
    subscriptions.external.decline_code = "generic_decline"
    with pytest.raises(RuleViolation) as refused:
        await subscriptions.change_plan(subscription, "pro")
    assert refused.value.code == "PAYMENT_DECLINED"
    await subscriptions.wait_until_idle(subscription)
    row = await subscriptions.subscription(subscription)
    assert (row["plan_id"], row["status"]) == (subscriptions.plan("starter"), "active")
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (100, 0)
    assert [(row["status"], row["number"] is None) for row in await subscriptions.invoices(subscription)][1:] == [
        ("void", True)
    ]
    assert subscriptions.external.operations() == []
    subscriptions.external.decline_code = None
    await subscriptions.change_plan(subscription, "pro", order="again")
    await subscriptions.wait_until_idle(subscription)
    assert (await subscriptions.subscription(subscription))["plan_id"] == subscriptions.plan("pro")
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (0, 0)


@pytest.mark.scenario("B12")
async def test_a_later_change_replaces_a_pending_one(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(50_000)
    subscription = await subscriptions.create_active_subscription("pro")
    await subscriptions.change_plan(subscription, "starter", order="first")
    await subscriptions.change_plan(subscription, "pro-yearly", order="second")
    await subscriptions.wait_until_idle(subscription)
    row = await subscriptions.subscription(subscription)
    assert (row["plan_id"], row["pending_plan_id"]) == (subscriptions.plan("pro-yearly"), None)
    assert (row["current_period_end"] - row["current_period_start"]).days in (365, 366)
    await subscriptions.advance(subscription, 40 * DAY)
    reasons = [invoice["billing_reason"] for invoice in await subscriptions.invoices(subscription)]
    assert reasons == ["order", "interval_change"]


async def test_choosing_the_current_plan_withdraws_a_scheduled_change(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("pro")
    row = await subscriptions.subscription(subscription)
    await subscriptions.insert_price("pro", 3_000, row["current_period_start"] + DAY)
    await _used(subscriptions, subscription, 2)
    with pytest.raises(RuleViolation) as refused:
        await subscriptions.change_plan(subscription, "pro", order="none_scheduled")
    assert refused.value.code == "CONFLICT"
    await subscriptions.change_plan(subscription, "starter", order="down")
    assert (await subscriptions.subscription(subscription))["pending_plan_id"] == subscriptions.plan("starter")
    await subscriptions.change_plan(subscription, "pro", order="stay")
    assert (await subscriptions.subscription(subscription))["pending_plan_id"] is None
    assert "subscription.plan_change_withdrawn" in await subscriptions.timeline(subscription)
    await subscriptions.advance(subscription, 31 * DAY)
    row = await subscriptions.subscription(subscription)
    assert (row["plan_id"], row["price_minor"]) == (subscriptions.plan("pro"), 2_000)
    assert [invoice["total_minor"] for invoice in await subscriptions.invoices(subscription)] == [2_000, 2_000]
    assert subscriptions.external.operations() == []


async def test_a_failed_resize_brings_the_old_plan_and_the_money_back(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    before = await subscriptions.subscription(subscription)
    wallet = await subscriptions.balance()
    subscriptions.external.failing_operations = {"resize"}
    await subscriptions.change_plan(subscription, "pro")
    await subscriptions.wait_for_status(subscription, "active")
    after = await subscriptions.subscription(subscription)
    assert after["plan_id"] == subscriptions.plan("starter")
    assert after["current_period_end"] == before["current_period_end"]
    assert await subscriptions.balance() == wallet


@pytest.mark.parametrize("target", ["pro", "pro-yearly"])
async def test_a_subscription_whose_upgrade_withdrew_its_cancellation_renews(
    subscriptions: SubscriptionFixture, target: str
) -> None:
    await subscriptions.top_up(100_000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    await subscriptions.change_plan(subscription, target)
    await subscriptions.advance(subscription, (400 if "yearly" in target else 32) * DAY)
    row = await subscriptions.subscription(subscription)
    assert (row["status"], row["cancel_at_period_end"]) == ("active", False)
    assert len(await subscriptions.invoices(subscription)) == 3


async def test_a_cancellation_that_a_rolled_back_upgrade_withdrew_is_executed(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    wallet = await subscriptions.balance()
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    subscriptions.external.failing_operations = {"resize"}
    await subscriptions.change_plan(subscription, "pro")

    async def is_rolled_back() -> bool:
        row = await subscriptions.subscription(subscription)
        return bool(row["plan_id"] == subscriptions.plan("starter") and row["cancel_at_period_end"])

    await wait_until(is_rolled_back)
    await subscriptions.advance(subscription, 32 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "cancelled"
    assert await subscriptions.balance() == wallet


async def test_a_change_back_to_the_plan_whose_resources_the_instance_has_leaves_no_rollback(
    subscriptions: SubscriptionFixture,
) -> None:
    """The instance was never resized to the scheduled plan: the change back resizes nothing, so it is complete."""
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.failing_operations = {"resize"}
    await subscriptions.change_plan(subscription, "pro", PlanChangeMode.PERIOD_END)
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + timedelta(seconds=1))
    assert (await subscriptions.subscription(subscription))["plan_id"] == subscriptions.plan("pro")
    await subscriptions.change_plan(subscription, "starter", PlanChangeMode.IMMEDIATE, order="c2")
    assert (await subscriptions.subscription(subscription))["plan_id"] == subscriptions.plan("starter")
    await subscriptions.change_plan(subscription, "pro", PlanChangeMode.PERIOD_END, order="c3")
    assert (await subscriptions.subscription(subscription))["pending_plan_id"] == subscriptions.plan("pro")


@pytest.mark.scenario("B15")
async def test_a_change_that_is_scheduled_again_keeps_its_price(subscriptions: SubscriptionFixture) -> None:
    """The renewal charged the price of that day, of which neither mail nor reminder said anything."""
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("pro")
    await subscriptions.change_plan(subscription, "starter", PlanChangeMode.PERIOD_END, "first")
    await subscriptions.insert_price("starter", 900, await subscriptions.now(subscription) + timedelta(seconds=1))
    await subscriptions.advance(subscription, timedelta(days=1))
    await subscriptions.change_plan(subscription, "starter", PlanChangeMode.PERIOD_END, "second")
    await subscriptions.advance(subscription, timedelta(days=32))
    assert [row["total_minor"] for row in await subscriptions.invoices(subscription)] == [2000, 500]


async def test_a_scheduled_change_that_a_rolled_back_upgrade_withdrew_takes_effect(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(100_000)
    subscription = await subscriptions.create_active_subscription("pro")
    await subscriptions.change_plan(subscription, "starter", PlanChangeMode.PERIOD_END, "first")
    subscriptions.external.failing_operations = {"resize"}
    await subscriptions.change_plan(subscription, "pro-yearly", PlanChangeMode.IMMEDIATE, "second")

    async def is_rolled_back() -> bool:
        row = await subscriptions.subscription(subscription)
        return bool(
            row["plan_id"] == subscriptions.plan("pro") and row["pending_plan_id"] == subscriptions.plan("starter")
        )

    await wait_until(is_rolled_back)
    subscriptions.external.failing_operations = set()
    await subscriptions.advance(subscription, 32 * DAY)
    assert (await subscriptions.subscription(subscription))["plan_id"] == subscriptions.plan("starter")
    assert [row["total_minor"] for row in await subscriptions.invoices(subscription) if row["status"] == "paid"] == [
        2000,
        500,
    ]
