"""A subscription's life: the real workflow, real billing and a real database on the time-skipping server."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta

import pytest

from tests.support.life import CancelAt, World

DAY = timedelta(days=1)


async def test_a_paid_order_becomes_active_and_is_billed_every_period(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("starter")
    anchor: datetime = (await life.subscription(subscription))["anchor"]
    await life.advance(subscription, 95 * DAY)
    invoices = await life.invoices(subscription)
    assert [row["status"] for row in invoices] == ["paid"] * 4
    years = [row["issued_at"].year for row in invoices]
    expected = [f"BERTH-{year}-{years[: n + 1].count(year):06d}" for n, year in enumerate(years)]
    assert [row["number"] for row in invoices] == expected
    assert invoices[0]["period_start"] == anchor
    assert all(one["period_end"] == next_["period_start"] for one, next_ in itertools.pairwise(invoices))
    assert await life.balance() == 5000 - 4 * 500
    assert await life.balance("held") == 0
    assert (await life.notices()).count("subscription_renewed") == 3
    assert (await life.notices()).count("subscription_expiring") >= 9


@pytest.mark.scenario("B47")
async def test_an_order_that_nothing_secures_leaves_nothing_behind(life: World) -> None:
    from workflows.rules.errors import RuleBroken

    with pytest.raises(RuleBroken, match="Neither the wallet") as refused:
        await life.subscribe("starter")
    assert refused.value.code == "INSUFFICIENT_FUNDS"
    assert await life.rows("SELECT * FROM subscriptions") == []
    assert await life.rows("SELECT * FROM notifications") == []


async def test_cancel_now_stops_the_instance_keeps_the_data_and_ends_after_retention(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("starter")
    await life.cancel(subscription)
    await life.settled(subscription)
    assert life.outside.operations() == ["suspend"]
    await life.advance(subscription, 31 * DAY)
    assert (await life.subscription(subscription))["status"] == "terminated"
    assert life.outside.operations() == ["suspend", "delete"]
    assert len(await life.invoices(subscription)) == 1


async def test_cancel_at_period_end_lets_the_paid_period_run_out(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("starter")
    await life.cancel(subscription, CancelAt.PERIOD_END)
    assert (await life.subscription(subscription))["cancel_at_period_end"] is True
    await life.advance(subscription, 32 * DAY)
    assert (await life.subscription(subscription))["status"] == "cancelled"
    assert len(await life.invoices(subscription)) == 1
