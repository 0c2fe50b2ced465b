"""Plan changes whose workflow was lost before the instance was resized."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.subscription_fixture import PlanChangeMode, SubscriptionFixture
from tests.support.wait import wait_until
from tests.workflows.test_lost_workflows import _lose, _restart_lost

ROW = "plan_id", "price_id", "price_minor", "pending_plan_id", "current_period_start", "current_period_end"
"""What a rollback restores of the subscription, beside its anchor."""


async def _lose_while_resizing(subscriptions: SubscriptionFixture, subscription: str, plan: str) -> None:
    """Change the plan, lose the workflow during the resize, and start it again."""
    subscriptions.external.operations_allowed.clear()
    await subscriptions.change_plan(subscription, plan, PlanChangeMode.IMMEDIATE, order="immediate")
    await wait_until(lambda: "resize" in subscriptions.external.operations())
    await subscriptions.execute("UPDATE instances SET replicas = 9")  # not the resources of the plan
    await _lose(subscriptions, subscription)
    resizes = subscriptions.external.operations().count("resize")
    subscriptions.external.operations_allowed.set()
    assert await _restart_lost(subscriptions) == 1
    await wait_until(lambda: subscriptions.external.operations().count("resize") > resizes)
    await subscriptions.wait_until_idle(subscription)


async def _restored(subscriptions: SubscriptionFixture, subscription: str) -> dict[str, Any]:
    row = await subscriptions.subscription(subscription)
    return {name: row[name] for name in (*ROW, "billing_anchor")}


@pytest.mark.parametrize(("scheduled", "plan"), [(None, "pro-yearly"), ("starter", "pro-yearly")])
async def test_a_resize_that_fails_restores_plan_money_and_scheduled_change(
    subscriptions: SubscriptionFixture, scheduled: str | None, plan: str
) -> None:
    await subscriptions.top_up(50_000)
    subscription = await subscriptions.create_active_subscription("pro")
    if scheduled is not None:
        await subscriptions.change_plan(subscription, scheduled, PlanChangeMode.PERIOD_END, order="scheduled")
    before, balance = await _restored(subscriptions, subscription), await subscriptions.balance()
    subscriptions.external.failing_operations = {"resize"}
    await _lose_while_resizing(subscriptions, subscription, plan)
    assert (await _restored(subscriptions, subscription), await subscriptions.balance()) == (before, balance)
    end = before["current_period_end"]
    subscriptions.external.failing_operations = set()
    await subscriptions.advance_to(subscription, end)
    renewed = await subscriptions.subscription(subscription)
    assert renewed["plan_id"] == (f"pln_{scheduled}" if scheduled is not None else before["plan_id"])


async def test_a_resize_that_fails_restores_the_plan_of_the_same_period(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5_000)
    subscription = await subscriptions.create_active_subscription("starter")
    before = await _restored(subscriptions, subscription)
    subscriptions.external.failing_operations = {"resize"}
    await _lose_while_resizing(subscriptions, subscription, "pro")
    assert (await _restored(subscriptions, subscription), await subscriptions.balance()) == (before, 4_500)


async def test_a_resize_that_succeeds_leaves_the_plan_change(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5_000)
    subscription = await subscriptions.create_active_subscription("starter")
    await _lose_while_resizing(subscriptions, subscription, "pro")
    assert (await subscriptions.subscription(subscription))["plan_id"] == "pln_pro"
    assert await subscriptions.balance() < 4_500
