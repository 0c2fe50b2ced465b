"""Operations that meet each other or an open payment, and workflows that an operator cancels."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle

from tests.support.subscription_fixture import SubscriptionFixture
from tests.support.wait import wait_until
from workflows.ports.subscription import CustomerOperation, StartOperation
from workflows.rules.errors import RuleViolation

DAY = timedelta(days=1)


async def test_of_two_operations_at_once_one_is_refused(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.operations_allowed.clear()
    orders = [
        StartOperation(update_id=f"o{n}", actor="usr", operation_id=f"op_{n}", kind=CustomerOperation.RESTART)
        for n in (1, 2)
    ]
    results = await asyncio.gather(
        *(subscriptions.workflows.start_operation(subscription, order) for order in orders), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, RuleViolation)]
    assert [(violation.code, violation.is_retryable) for violation in refused] == [("CONFLICT", True)]
    subscriptions.external.operations_allowed.set()
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.operations() == ["restart"]


async def test_an_operation_that_arrives_as_another_ends_is_accepted(subscriptions: SubscriptionFixture) -> None:
    """The end of the first operation is stored, and readable, before the subscription receives it."""
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.operations_allowed.clear()
    first, second = (
        StartOperation(update_id=f"o{n}", actor="usr", operation_id=f"op_{n}", kind=CustomerOperation.RESTART)
        for n in (1, 2)
    )
    await subscriptions.workflows.start_operation(subscription, first)
    await wait_until(lambda: subscriptions.external.operations() == ["restart"])
    coming = asyncio.create_task(subscriptions.workflows.start_operation(subscription, second))
    accepted = subscriptions.handle(subscription)
    await wait_until(lambda: _updates(accepted, 2))
    subscriptions.external.operations_allowed.set()
    assert (await coming).result is not None
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.operations() == ["restart", "restart"]


async def _updates(handle: WorkflowHandle[Any, Any], count: int) -> bool:
    """Return whether the workflow has accepted `count` updates after the first."""
    kinds = [event.event_type async for event in handle.fetch_history_events()]
    return kinds.count(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED) >= count + 1


async def test_an_instance_is_operated_while_a_cards_outcome_is_open(subscriptions: SubscriptionFixture) -> None:
    subscription = await subscriptions.start_charged_renewal()
    order = StartOperation(update_id="o1", actor="usr", operation_id="op_1", kind=CustomerOperation.RESTART)
    await subscriptions.workflows.start_operation(subscription, order)
    await wait_until(lambda: subscriptions.external.operations() == ["restart"])
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_until_idle(subscription)


async def test_a_cancelled_instance_stops_while_a_cards_outcome_is_open(subscriptions: SubscriptionFixture) -> None:
    subscription = await subscriptions.start_charged_renewal()
    await subscriptions.cancel(subscription)
    await wait_until(lambda: subscriptions.external.operations() == ["suspend"])
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_until_idle(subscription)
    assert await subscriptions.status(subscription) == "cancelled"


async def test_a_manually_terminated_operation_is_started_again(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.operations_allowed.clear()
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await wait_until(lambda: "suspend" in subscriptions.external.operations())
    async for operation in subscriptions.temporal.client.list_workflows(
        f"BerthSubscription = '{subscription}' AND BerthWorkflowKind = 'operation'"
    ):
        await subscriptions.temporal.client.get_workflow_handle(operation.id).terminate()
    subscriptions.external.operations_allowed.set()
    await subscriptions.wait_until_idle(subscription)
    await subscriptions.advance(subscription, timedelta(minutes=5))
    assert subscriptions.external.operations() == ["suspend", "suspend"]
    assert await subscriptions.status(subscription) == "paused"


async def test_an_operators_cancellation_during_provisioning_is_compensated(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(800)
    subscription = await subscriptions.create_subscription("starter")
    await wait_until(lambda: "provision" in dict(subscriptions.external.calls))
    await subscriptions.handle(subscription).cancel()
    await subscriptions.handle(subscription).result()
    assert await subscriptions.status(subscription) == "cancelled"
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (800, 0)
    assert [verb for verb, _ in subscriptions.external.calls].count("compensate_provision") == 1


async def test_an_operators_cancellation_during_a_charge_leaves_no_hold(
    subscriptions: SubscriptionFixture,
) -> None:
    subscription = await subscriptions.start_charged_renewal()
    await subscriptions.handle(subscription).cancel()
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_for_status(subscription, "cancelled")
    await subscriptions.wait_until_idle(subscription)
    assert (await subscriptions.balance("held"), await subscriptions.balance("receivable")) == (0, 0)
    assert subscriptions.external.operations() == ["suspend"]
    await subscriptions.advance(subscription, 31 * DAY)
    assert await subscriptions.status(subscription) == "terminated"


async def test_an_operators_cancellation_of_an_idle_workflow_cancels_the_subscription(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(800)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.handle(subscription).cancel()
    await subscriptions.wait_for_status(subscription, "cancelled")
    changes = await subscriptions.rows("SELECT actor FROM subscription_changes WHERE after = 'cancelled'")
    assert [row["actor"] for row in changes] == ["operator"]
