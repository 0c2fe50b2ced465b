"""Plan changes on the real workflow: prorated at once, or with the next period; undone when they cannot be."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.life import World
from workflows.rules.errors import RuleBroken
from workflows.rules.proration import Mode

DAY = timedelta(days=1)


async def _used(life: World, subscription: str, days: int) -> int:
    """Let whole days of the period pass; returns the period's days."""
    row = await life.subscription(subscription)
    await life.advance_to(subscription, row["current_period_start"] + days * DAY)
    return int((row["current_period_end"] - row["current_period_start"]) / DAY)


@pytest.mark.scenario("B7")
async def test_an_upgrade_charges_the_rest_of_the_period_now_and_resizes(life: World) -> None:
    await life.top_up(10_000)
    subscription = await life.active("starter")
    days = await _used(life, subscription, 1)
    await life.change_plan(subscription, "pro")
    await life.settled(subscription)
    invoice = (await life.invoices(subscription))[1]
    expected = round(2000 * (days - 1) / days) - round(500 * (days - 1) / days)
    assert abs(invoice["total_minor"] - expected) <= 1
    assert (invoice["status"], invoice["kind"]) == ("paid", "change")
    assert (await life.subscription(subscription))["plan_id"] == life.plan("pro")
    assert life.outside.operations() == ["resize"]
    await life.advance(subscription, 31 * DAY)
    assert (await life.invoices(subscription))[2]["total_minor"] == 2000


@pytest.mark.scenario("B8")
async def test_a_downgrade_waits_for_the_period_end_and_costs_nothing(life: World) -> None:
    await life.top_up(10_000)
    subscription = await life.active("pro")
    await _used(life, subscription, 1)
    await life.change_plan(subscription, "starter")
    assert (await life.subscription(subscription))["pending_plan_id"] == life.plan("starter")
    assert len(await life.invoices(subscription)) == 1
    await life.advance(subscription, 31 * DAY)
    assert [row["total_minor"] for row in await life.invoices(subscription)] == [2000, 500]
    row = await life.subscription(subscription)
    assert (row["plan_id"], row["pending_plan_id"]) == (life.plan("starter"), None)
    assert life.outside.operations() == ["resize"]


@pytest.mark.scenario("B14")
async def test_an_immediate_downgrade_gives_credit_that_is_spent_never_paid_out(life: World) -> None:
    await life.top_up(10_000)
    subscription = await life.active("starter")
    await life.change_plan(subscription, "pro", order="up")
    await life.settled(subscription)
    wallet = await life.balance()
    await life.change_plan(subscription, "starter", Mode.IMMEDIATE, order="down")
    await life.settled(subscription)
    assert await life.balance() == wallet
    credit = await life.balance("promotional")
    assert 1490 <= credit <= 1500
    await life.advance(subscription, 32 * DAY)
    assert await life.balance("promotional") == credit - 500
    assert await life.balance() == wallet


@pytest.mark.scenario("B11")
async def test_an_upgrade_that_is_not_paid_leaves_the_old_plan_untouched(life: World) -> None:
    await life.top_up(600)
    subscription = await life.active("starter")
    await life.add_card()
    life.outside.decline = "generic_decline"
    with pytest.raises(RuleBroken) as refused:
        await life.change_plan(subscription, "pro")
    assert refused.value.code == "PAYMENT_DECLINED"
    await life.settled(subscription)
    row = await life.subscription(subscription)
    assert (row["plan_id"], row["status"]) == (life.plan("starter"), "active")
    assert (await life.balance(), await life.balance("held")) == (100, 0)
    assert [(row["status"], row["number"] is None) for row in await life.invoices(subscription)][1:] == [("void", True)]
    assert life.outside.operations() == []
    life.outside.decline = None
    await life.change_plan(subscription, "pro", order="again")
    await life.settled(subscription)
    assert (await life.subscription(subscription))["plan_id"] == life.plan("pro")
    assert (await life.balance(), await life.balance("held")) == (0, 0)


@pytest.mark.scenario("B12")
async def test_a_later_change_replaces_a_pending_one(life: World) -> None:
    await life.top_up(50_000)
    subscription = await life.active("pro")
    await life.change_plan(subscription, "starter", order="first")
    await life.change_plan(subscription, "pro-yearly", order="second")
    await life.settled(subscription)
    row = await life.subscription(subscription)
    assert (row["plan_id"], row["pending_plan_id"]) == (life.plan("pro-yearly"), None)
    assert (row["current_period_end"] - row["current_period_start"]).days in (365, 366)
    await life.advance(subscription, 40 * DAY)
    assert [invoice["kind"] for invoice in await life.invoices(subscription)] == ["period", "period"]


async def test_a_failed_resize_brings_the_old_plan_and_the_money_back(life: World) -> None:
    await life.top_up(10_000)
    subscription = await life.active("starter")
    before = await life.subscription(subscription)
    wallet = await life.balance()
    life.outside.operation_fails = {"resize"}
    await life.change_plan(subscription, "pro")
    await life.until(subscription, "active")
    after = await life.subscription(subscription)
    assert after["plan_id"] == life.plan("starter")
    assert after["current_period_end"] == before["current_period_end"]
    assert await life.balance() == wallet
