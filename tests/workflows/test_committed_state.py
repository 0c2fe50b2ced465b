"""The workflow keeps what the database holds: after a refused command, and after its own termination."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.subscription_fixture import SubscriptionFixture
from workflows.lost_workflows import restart_subscription
from workflows.rules.errors import RuleViolation
from workflows.rules.proration import PlanChangeMode

DAY = timedelta(days=1)


async def test_a_refused_resumption_leaves_the_scheduled_plan_change_scheduled(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(2000)
    subscription = await subscriptions.create_active_subscription("pro")
    await subscriptions.add_card()
    await subscriptions.change_plan(subscription, "starter", PlanChangeMode.PERIOD_END)
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    mails = (await subscriptions.notification_kinds()).count("plan_changed")
    subscriptions.external.decline_code = "generic_decline"
    with pytest.raises(RuleViolation) as refused:
        await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    assert refused.value.code == "PAYMENT_DECLINED"
    row = await subscriptions.subscription(subscription)
    assert (row["status"], row["plan_id"], row["pending_plan_id"]) == (
        "paused",
        subscriptions.plan("pro"),
        subscriptions.plan("starter"),
    )
    assert "subscription.plan_changed" not in await subscriptions.timeline(subscription)
    assert (await subscriptions.notification_kinds()).count("plan_changed") == mails
    subscriptions.external.decline_code = None
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await subscriptions.wait_for_status(subscription, "active")
    row = await subscriptions.subscription(subscription)
    assert (row["plan_id"], row["pending_plan_id"]) == (subscriptions.plan("starter"), None)
    assert [payment.amount.amount_minor for payment in subscriptions.external.payments] == [500]
    assert (await subscriptions.timeline(subscription)).count("subscription.plan_changed") == 1


async def test_a_restarted_workflow_continues_from_the_row_that_its_terminated_run_wrote(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(600)
    command = subscriptions.create_command("starter")
    subscriptions.external.provisioning_done.set()
    await subscriptions.workflows.create_subscription(command)
    subscription = command.subscription_id
    await subscriptions.wait_for_status(subscription, "active")
    await subscriptions.add_card()
    before = await subscriptions.subscription(subscription)
    await subscriptions.advance_to(subscription, before["current_period_end"] + timedelta(seconds=1))
    renewed = await subscriptions.subscription(subscription)
    await subscriptions.handle(subscription).terminate()
    assert await restart_subscription(subscriptions.workflows, command)
    await subscriptions.wait_until_idle(subscription)
    assert [verb for verb, _ in subscriptions.external.calls].count("provision") == 1
    assert await subscriptions.subscription(subscription) == renewed
    await subscriptions.cancel(subscription)
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.operations() == ["suspend"]
    assert len(subscriptions.external.payments) == 1
