"""Orders that meet the main loop, each other, or an operator's cancellation of the process."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError

from tests.support.life import CancelAt, World
from tests.support.wait import eventually
from workflows.ports.subscription import CustomerOperation, FundsArrived, OperateOrder
from workflows.rules.errors import RuleBroken

DAY = timedelta(days=1)


async def _charging_renewal(life: World) -> str:
    """A subscription whose renewal waits for its card; 100 of the wallet are held beside it."""
    await life.top_up(600)
    await life.add_card()
    subscription = await life.active("starter")
    end = (await life.subscription(subscription))["current_period_end"]
    life.outside.answer.clear()
    await life.advance_to(subscription, end - timedelta(seconds=1))
    await life.charging(1)
    assert await life.balance("held") == 100
    return subscription


async def _state(life: World, subscription: str) -> str:
    return str((await life.subscription(subscription))["status"])


async def test_a_pause_waits_for_the_card_and_is_not_ended_by_it(life: World) -> None:
    subscription = await _charging_renewal(life)
    pausing = asyncio.create_task(life.orchestrator.pause(subscription, life.simple("pause")))
    await pausing
    assert await _state(life, subscription) == "active"
    life.outside.answer.set()
    await life.until(subscription, "paused")
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "paid"]
    await life.advance(subscription, 40 * DAY)
    assert await _state(life, subscription) == "paused"


async def test_a_pause_that_meets_a_declined_renewal_is_refused(life: World) -> None:
    subscription = await _charging_renewal(life)
    handle = life.handle(subscription)
    order = life.simple("pause")
    pausing = asyncio.create_task(handle.execute_update("pause", order, id=order.order_id))
    life.outside.decline = "generic_decline"
    await life.orchestrator.funds_arrived(subscription, FundsArrived(source="nothing"))
    life.outside.answer.set()
    with pytest.raises(WorkflowUpdateFailedError):
        await pausing
    await life.until(subscription, "past_due")
    assert await life.balance("held") == 0


async def test_a_cancellation_that_meets_a_declining_card_gives_the_wallets_part_back(life: World) -> None:
    subscription = await _charging_renewal(life)
    await life.cancel(subscription)
    life.outside.decline = "generic_decline"
    life.outside.answer.set()
    await life.settled(subscription)
    assert (await life.balance(), await life.balance("held"), await life.balance("receivable")) == (100, 0, 0)
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "void"]


async def test_a_top_up_while_the_card_is_asked_collects_when_it_declines(life: World) -> None:
    subscription = await _charging_renewal(life)
    await life.top_up(500, subscription)
    life.outside.decline = "generic_decline"
    life.outside.answer.set()
    await life.until(subscription, "active")
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "paid"]
    assert (await life.balance(), await life.balance("held")) == (100, 0)


async def test_a_pause_takes_back_what_was_to_happen_at_the_periods_end(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("starter")
    await life.cancel(subscription, CancelAt.PERIOD_END)
    await life.orchestrator.pause(subscription, life.simple("pause"))
    assert (await life.subscription(subscription))["cancel_at_period_end"] is False
    await life.orchestrator.resume(subscription, life.simple("resume"))
    await life.until(subscription, "active")
    await life.advance(subscription, 32 * DAY)
    assert await _state(life, subscription) == "active"
    assert len(await life.invoices(subscription)) == 3


async def test_pausing_and_resuming_again_is_told_again(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("starter")
    for _ in range(2):
        await life.orchestrator.pause(subscription, life.simple("pause"))
        await life.orchestrator.resume(subscription, life.simple("resume"))
        await life.until(subscription, "active")
    notices = await life.notices()
    assert (notices.count("subscription_paused"), notices.count("subscription_resumed")) == (2, 2)
    timeline = await life.timeline(subscription)
    assert (timeline.count("subscription.paused"), timeline.count("subscription.resumed")) == (2, 2)


async def test_a_resumption_that_is_cancelled_while_the_card_is_asked(life: World) -> None:
    await life.top_up(600)
    await life.add_card()
    subscription = await life.active("starter")
    await life.orchestrator.pause(subscription, life.simple("pause"))
    life.outside.answer.clear()
    order = life.simple("resume")
    resuming = asyncio.create_task(life.handle(subscription).execute_update("resume", order, id=order.order_id))
    await life.charging(1)
    await life.cancel(subscription)
    life.outside.answer.set()
    with pytest.raises(WorkflowUpdateFailedError):
        await resuming
    assert await _state(life, subscription) == "cancelled"
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "void"]
    assert (await life.balance(), await life.balance("held")) == (500, 0)


async def test_of_two_plan_changes_at_once_one_is_refused(life: World) -> None:
    await life.top_up(50_000)
    subscription = await life.active("starter")
    life.outside.operating.clear()
    results = await asyncio.gather(
        life.change_plan(subscription, "pro", order="one"),
        life.change_plan(subscription, "pro-yearly", order="two"),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, RuleBroken)]
    assert [refusal.code for refusal in refused] == ["CONFLICT"]
    life.outside.operating.set()
    await life.settled(subscription)
    assert life.outside.operations() == ["resize"]


async def test_of_two_operations_at_once_one_is_refused(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("starter")
    life.outside.operating.clear()
    orders = [
        OperateOrder(order_id=f"o{n}", actor="usr", operation_id=f"op_{n}", kind=CustomerOperation.RESTART)
        for n in (1, 2)
    ]
    results = await asyncio.gather(
        *(life.orchestrator.operate(subscription, order) for order in orders), return_exceptions=True
    )
    assert [result.code for result in results if isinstance(result, RuleBroken)] == ["CONFLICT"]
    life.outside.operating.set()
    await life.settled(subscription)
    assert life.outside.operations() == ["restart"]


async def test_an_operation_that_comes_just_as_another_ends_is_taken(life: World) -> None:
    """That the first has ended is recorded, and can be read, before the subscription hears of it."""
    await life.top_up(5000)
    subscription = await life.active("starter")
    life.outside.operating.clear()
    first, second = (
        OperateOrder(order_id=f"o{n}", actor="usr", operation_id=f"op_{n}", kind=CustomerOperation.RESTART)
        for n in (1, 2)
    )
    await life.orchestrator.operate(subscription, first)
    await eventually(lambda: life.outside.operations() == ["restart"])
    coming = asyncio.create_task(life.orchestrator.operate(subscription, second))
    accepted = life.handle(subscription)
    await eventually(lambda: _updates(accepted, 2))
    life.outside.operating.set()
    assert (await coming).outcome is not None
    await life.settled(subscription)
    assert life.outside.operations() == ["restart", "restart"]


async def _updates(handle: WorkflowHandle[Any, Any], wanted: int) -> bool:
    """Whether the workflow has accepted so many orders since it opened."""
    kinds = [event.event_type async for event in handle.fetch_history_events()]
    return kinds.count(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED) >= wanted + 1


async def test_an_instance_is_operated_while_a_cards_outcome_is_open(life: World) -> None:
    subscription = await _charging_renewal(life)
    order = OperateOrder(order_id="o1", actor="usr", operation_id="op_1", kind=CustomerOperation.RESTART)
    await life.orchestrator.operate(subscription, order)
    await eventually(lambda: life.outside.operations() == ["restart"])
    life.outside.answer.set()
    await life.settled(subscription)


async def test_a_cancelled_instance_stops_while_a_cards_outcome_is_open(life: World) -> None:
    subscription = await _charging_renewal(life)
    await life.cancel(subscription)
    await eventually(lambda: life.outside.operations() == ["suspend"])
    life.outside.answer.set()
    await life.settled(subscription)
    assert await _state(life, subscription) == "cancelled"


async def test_an_operation_that_somebody_ends_by_hand_is_tried_again(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("starter")
    life.outside.operating.clear()
    await life.orchestrator.pause(subscription, life.simple("pause"))
    await eventually(lambda: "suspend" in life.outside.operations())
    async for found in life.temporal.client.list_workflows(
        f"BerthSubscription = '{subscription}' AND BerthKind = 'operation'"
    ):
        await life.temporal.client.get_workflow_handle(found.id).terminate()
    life.outside.operating.set()
    await life.settled(subscription)
    await life.advance(subscription, timedelta(minutes=5))
    assert life.outside.operations() == ["suspend", "suspend"]
    assert await _state(life, subscription) == "paused"


async def test_a_payment_that_somebody_ends_by_hand_did_not_pay(life: World) -> None:
    subscription = await _charging_renewal(life)
    async for found in life.temporal.client.list_workflows(
        f"BerthSubscription = '{subscription}' AND BerthKind = 'payment'"
    ):
        await life.temporal.client.get_workflow_handle(found.id).terminate()
    await life.until(subscription, "past_due")
    assert (await life.balance(), await life.balance("held")) == (100, 0)


# An operator cancels the process itself


async def test_cancelling_the_process_while_it_is_set_up_undoes_everything(life: World) -> None:
    await life.top_up(800)
    subscription = await life.subscribe("starter")
    await eventually(lambda: "provision" in dict(life.outside.asked))
    await life.handle(subscription).cancel()
    await eventually(lambda: _reaches(life, subscription, "cancelled"))
    await life.handle(subscription).result()
    assert (await life.balance(), await life.balance("held")) == (800, 0)
    assert [verb for verb, _ in life.outside.asked].count("undo_provision") == 1


async def test_cancelling_the_process_while_a_card_is_asked_leaves_nothing_open(life: World) -> None:
    subscription = await _charging_renewal(life)
    await life.handle(subscription).cancel()
    life.outside.answer.set()
    await life.until(subscription, "cancelled")
    await life.settled(subscription)
    assert (await life.balance("held"), await life.balance("receivable")) == (0, 0)
    assert life.outside.operations() == ["suspend"]
    await life.advance(subscription, 31 * DAY)
    assert await _state(life, subscription) == "terminated"


async def test_cancelling_the_process_while_it_sleeps_is_a_cancellation(life: World) -> None:
    await life.top_up(800)
    subscription = await life.active("starter")
    await life.handle(subscription).cancel()
    await life.until(subscription, "cancelled")
    changes = await life.rows("SELECT actor FROM subscription_changes WHERE after = 'cancelled'")
    assert [row["actor"] for row in changes] == ["operator"]


async def _reaches(life: World, subscription: str, status: str) -> bool:
    return await _state(life, subscription) == status
