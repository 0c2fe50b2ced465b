"""The subscription workflow with real billing and a real database on the time-skipping server."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta

import pytest

from tests.support.subscription_fixture import CancelAt, SubscriptionFixture

DAY = timedelta(days=1)


async def test_a_paid_order_becomes_active_and_is_billed_every_period(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    anchor: datetime = (await subscriptions.subscription(subscription))["billing_anchor"]
    await subscriptions.advance(subscription, 95 * DAY)
    invoices = await subscriptions.invoices(subscription)
    assert [row["status"] for row in invoices] == ["paid"] * 4
    years = [row["finalized_at"].year for row in invoices]
    expected = [f"BERTH-{year}-{years[: n + 1].count(year):06d}" for n, year in enumerate(years)]
    assert [row["number"] for row in invoices] == expected
    assert invoices[0]["period_start"] == anchor
    assert all(earlier["period_end"] == later["period_start"] for earlier, later in itertools.pairwise(invoices))
    assert await subscriptions.balance() == 5000 - 4 * 500
    assert await subscriptions.balance("held") == 0
    assert (await subscriptions.notification_kinds()).count("subscription_renewed") == 3
    assert (await subscriptions.notification_kinds()).count("subscription_expiring") >= 9


@pytest.mark.scenario("B47")
async def test_an_order_without_funding_leaves_no_rows(subscriptions: SubscriptionFixture) -> None:
    from workflows.rules.errors import RuleViolation

    with pytest.raises(RuleViolation, match="Insufficient funds for the first period") as refused:
        await subscriptions.create_subscription("starter")
    assert refused.value.code == "INSUFFICIENT_FUNDS"
    assert await subscriptions.rows("SELECT * FROM subscriptions") == []
    assert await subscriptions.rows("SELECT * FROM notifications") == []


async def test_cancel_now_stops_the_instance_keeps_the_data_and_ends_after_retention(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.cancel(subscription)
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.operations() == ["suspend"]
    await subscriptions.advance(subscription, 31 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "terminated"
    assert subscriptions.external.operations() == ["suspend", "delete"]
    assert len(await subscriptions.invoices(subscription)) == 1


async def test_a_paused_subscription_that_is_cancelled_at_the_end_of_its_period_keeps_what_is_paid(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    row = await subscriptions.subscription(subscription)
    assert (row["status"], row["cancel_at_period_end"], row["data_deletion_at"]) == ("paused", True, None)
    await subscriptions.advance_to(subscription, row["current_period_end"] - DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "paused"
    await subscriptions.advance_to(subscription, row["current_period_end"] + timedelta(minutes=5))
    row = await subscriptions.subscription(subscription)
    assert (row["status"], row["cancel_at_period_end"]) == ("cancelled", False)


@pytest.mark.scenario("B49")
@pytest.mark.parametrize("pays", ["wallet", "card"])
async def test_the_resumption_of_a_paused_subscription_withdraws_its_cancellation(
    subscriptions: SubscriptionFixture, pays: str
) -> None:
    await subscriptions.top_up(5000 if pays == "wallet" else 500)
    subscription = await subscriptions.create_active_subscription("starter")
    if pays == "card":
        await subscriptions.add_card()
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    row = await subscriptions.subscription(subscription)
    assert (row["status"], row["cancel_at_period_end"]) == ("active", False)
    await subscriptions.advance(subscription, 32 * DAY)
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid", "paid"]
    timeline = await subscriptions.timeline(subscription)
    assert timeline.count("subscription.cancellation_withdrawn") == 1


async def test_a_pause_beyond_the_paid_period_is_cancelled_at_once(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.advance(subscription, 40 * DAY)
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    assert (await subscriptions.subscription(subscription))["status"] == "cancelled"


async def test_cancel_at_period_end_lets_the_paid_period_run_out(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    assert (await subscriptions.subscription(subscription))["cancel_at_period_end"] is True
    await subscriptions.advance(subscription, 32 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "cancelled"
    assert len(await subscriptions.invoices(subscription)) == 1
