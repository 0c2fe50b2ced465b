"""Commands that arrive during a renewal or during another command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import PollWorkflowExecutionUpdateResponse
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError, WorkflowUpdateHandle, WorkflowUpdateStage
from temporalio.service import RPCError, RPCStatusCode

from tests.support.billing_fixture import USER
from tests.support.subscription_fixture import CancelAt, SubscriptionFixture
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows.client import RESULT_TIMEOUT
from workflows.ports.subscription import CancelSubscription, FundsArrived
from workflows.rules.dunning import FundsKind
from workflows.rules.errors import RuleViolation

DAY = timedelta(days=1)


async def test_a_pause_during_a_card_payment_is_rejected_and_possible_afterwards(
    subscriptions: SubscriptionFixture,
) -> None:
    subscription = await subscriptions.start_charged_renewal()
    with pytest.raises(RuleViolation) as refused:
        await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    assert refused.value.code == "CONFLICT"
    assert await subscriptions.status(subscription) == "active"
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_until_idle(subscription)
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.wait_for_status(subscription, "paused")
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    await subscriptions.advance(subscription, 40 * DAY)
    assert await subscriptions.status(subscription) == "paused"


@asynccontextmanager
async def _row_locked(subscriptions: SubscriptionFixture, subscription: str) -> AsyncIterator[Callable[[], Any]]:
    """Lock the row, so that the next change of the state waits; what is given waits until one does."""

    async def is_being_written() -> bool:
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(await subscriptions.rows(waiting))

    async with subscriptions.owner() as blocking:
        await blocking.execute(text("SELECT FROM subscriptions WHERE id = :id FOR UPDATE"), {"id": subscription})
        yield lambda: wait_until(is_being_written)


async def _accepted(subscriptions: SubscriptionFixture, subscription: str, name: str) -> WorkflowUpdateHandle[Any]:
    command = subscriptions.lifecycle_command(name)
    return await subscriptions.handle(subscription).start_update(
        name, command, id=command.update_id, wait_for_stage=WorkflowUpdateStage.ACCEPTED
    )


async def test_commands_while_the_first_period_is_being_written_are_executed_after_it(
    subscriptions: SubscriptionFixture,
) -> None:
    """The customer reads from the row that the subscription is active before the workflow receives that."""
    await subscriptions.top_up(600)
    subscription = await subscriptions.create_subscription("starter")
    async with _row_locked(subscriptions, subscription) as wait_for_change:
        subscriptions.external.provisioning_done.set()
        await wait_for_change()
        clock = asyncio.create_task(subscriptions.advance(subscription, DAY))
        pause = await _accepted(subscriptions, subscription, "pause")
    await pause.result()
    await clock
    await subscriptions.wait_for_status(subscription, "paused")


async def test_a_resumption_while_the_pause_is_being_written_ends_it(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(1_500)
    subscription = await subscriptions.create_active_subscription("starter")
    async with _row_locked(subscriptions, subscription) as wait_for_change:
        pause = await _accepted(subscriptions, subscription, "pause")
        await wait_for_change()
        resume = await _accepted(subscriptions, subscription, "resume")
    await pause.result()
    await resume.result()
    await subscriptions.wait_for_status(subscription, "active")


async def test_a_cancellation_at_the_periods_end_while_its_payment_is_being_written_is_executed_after_it(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(600)
    subscription = await subscriptions.create_active_subscription("starter")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + timedelta(seconds=1))
    assert await subscriptions.status(subscription) == "past_due"
    await subscriptions.top_up(5_000)
    command = CancelSubscription(update_id="cancel", actor=USER, at=CancelAt.PERIOD_END)
    async with _row_locked(subscriptions, subscription) as wait_for_change:
        retry = await _accepted(subscriptions, subscription, "retry_payment")
        await wait_for_change()
        cancellation = await subscriptions.handle(subscription).start_update(
            "cancel", command, id=command.update_id, wait_for_stage=WorkflowUpdateStage.ACCEPTED
        )
    await retry.result()
    await cancellation.result()
    row = await subscriptions.subscription(subscription)
    assert (row["status"], row["cancel_at_period_end"]) == ("active", True)


@pytest.mark.parametrize("command", ["pause", "change_plan"])
async def test_a_command_that_waits_for_the_locks_across_the_end_of_the_period_skips_no_invoice(
    subscriptions: SubscriptionFixture, command: str
) -> None:
    await subscriptions.top_up(50_000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    end = (await subscriptions.subscription(subscription))["current_period_end"]

    async def execute() -> None:
        if command == "pause":
            await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
        else:
            await subscriptions.change_plan(subscription, "pro", order=TemporalFixture.unique_id("change"))

    async def is_over() -> bool:
        return bool(await subscriptions.now(subscription) >= end)

    handle = subscriptions.handle(subscription)
    await subscriptions.advance_to(subscription, end - timedelta(seconds=3))
    async with _row_locked(subscriptions, subscription) as wait_for_change:
        resume = await _accepted(subscriptions, subscription, "resume")
        await wait_for_change()
        accepted = await _accepted_updates(handle)
        executing = asyncio.create_task(execute())
        await wait_until(lambda: _has_accepted(handle, accepted + 1), description="the command is accepted")
        await wait_until(is_over)
    await resume.result()
    with pytest.raises(RuleViolation) as refused:
        await executing
    assert (refused.value.code, refused.value.is_retryable) == ("CONFLICT", True)
    await subscriptions.wait_until_idle(subscription)
    row = await subscriptions.subscription(subscription)
    assert (row["status"], row["current_period_start"]) == ("active", end)
    assert [invoice["status"] for invoice in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    await execute()


async def _has_accepted(handle: WorkflowHandle[Any, Any], updates: int) -> bool:
    return await _accepted_updates(handle) >= updates


async def _accepted_updates(handle: WorkflowHandle[Any, Any]) -> int:
    kinds = [event.event_type for event in (await handle.fetch_history()).events]
    return kinds.count(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED)


async def test_during_an_unknown_payment_retries_are_rejected_and_a_cancellation_is_accepted(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscriptions.external.decline_code = "generic_decline"
    subscription = await subscriptions.create_active_subscription("starter")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + timedelta(seconds=1))
    await subscriptions.wait_for_status(subscription, "past_due")
    subscriptions.external.gateway_responses.clear()
    handle = subscriptions.handle(subscription)
    retry = subscriptions.lifecycle_command("retry")
    first = await handle.start_update(
        "retry_payment", retry, id=retry.update_id, wait_for_stage=WorkflowUpdateStage.ACCEPTED
    )
    await subscriptions.wait_for_charges(2)

    async def ordered(n: int) -> str:
        order = subscriptions.lifecycle_command(f"retry-{n}")
        try:
            await handle.execute_update("retry_payment", order, id=order.update_id)
        except WorkflowUpdateFailedError as error:
            return str(getattr(error.cause, "type", None))
        return "answered"

    async with asyncio.timeout(20):
        assert await asyncio.gather(*(ordered(n) for n in range(10))) == ["CONFLICT"] * 10
        # The payment is slow by now, so the validator rejects the update and the history does not grow.
        before = await _accepted_updates(handle)
        assert await ordered(10) == "CONFLICT"
        assert await _accepted_updates(handle) == before
        view = await subscriptions.cancel(subscription)
    assert view is not None
    assert view.state == "cancelled"
    # The update that started the payment returns although the payment has no outcome.
    async with asyncio.timeout(60):
        await first.result()
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_until_idle(subscription)
    assert await subscriptions.balance("held") == 0


async def test_a_pause_during_a_declined_renewal_is_rejected(subscriptions: SubscriptionFixture) -> None:
    subscription = await subscriptions.start_charged_renewal()
    handle = subscriptions.handle(subscription)
    order = subscriptions.lifecycle_command("pause")
    pausing = asyncio.create_task(handle.execute_update("pause", order, id=order.update_id))
    subscriptions.external.decline_code = "generic_decline"
    await subscriptions.workflows.signal_funds_arrived(
        subscription, FundsArrived(source="nothing", kind=FundsKind.CREDIT)
    )
    subscriptions.external.gateway_responses.set()
    with pytest.raises(WorkflowUpdateFailedError):
        await pausing
    await subscriptions.wait_for_status(subscription, "past_due")
    assert await subscriptions.balance("held") == 0


async def test_a_cancellation_during_a_declined_charge_returns_the_wallets_part(
    subscriptions: SubscriptionFixture,
) -> None:
    subscription = await subscriptions.start_charged_renewal()
    await subscriptions.cancel(subscription)
    subscriptions.external.decline_code = "generic_decline"
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_until_idle(subscription)
    assert (
        await subscriptions.balance(),
        await subscriptions.balance("held"),
        await subscriptions.balance("receivable"),
    ) == (100, 0, 0)
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "void"]


async def test_a_top_up_during_a_charge_collects_when_the_card_is_declined(subscriptions: SubscriptionFixture) -> None:
    subscription = await subscriptions.start_charged_renewal()
    await subscriptions.top_up(500, subscription)
    subscriptions.external.decline_code = "generic_decline"
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_for_status(subscription, "active")
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (100, 0)


async def test_a_pause_withdraws_the_cancellation_at_period_end(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    assert (await subscriptions.subscription(subscription))["cancel_at_period_end"] is False
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await subscriptions.wait_for_status(subscription, "active")
    await subscriptions.advance(subscription, 32 * DAY)
    assert await subscriptions.status(subscription) == "active"
    assert len(await subscriptions.invoices(subscription)) == 3


async def test_each_pause_and_each_resumption_is_notified(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    for _ in range(2):
        await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
        await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
        await subscriptions.wait_for_status(subscription, "active")
    notification_kinds = await subscriptions.notification_kinds()
    assert (notification_kinds.count("subscription_paused"), notification_kinds.count("subscription_resumed")) == (2, 2)
    timeline = await subscriptions.timeline(subscription)
    assert (timeline.count("subscription.paused"), timeline.count("subscription.resumed")) == (2, 2)


async def test_a_cancellation_during_the_charge_of_a_resumption(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(600)
    await subscriptions.add_card()
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    subscriptions.external.gateway_responses.clear()
    order = subscriptions.lifecycle_command("resume")
    resuming = asyncio.create_task(
        subscriptions.handle(subscription).execute_update("resume", order, id=order.update_id)
    )
    await subscriptions.wait_for_charges(1)
    await subscriptions.cancel(subscription)
    subscriptions.external.gateway_responses.set()
    with pytest.raises(WorkflowUpdateFailedError):
        await resuming
    assert await subscriptions.status(subscription) == "cancelled"
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "void"]
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (500, 0)


async def test_of_two_plan_changes_at_once_one_is_refused(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(50_000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.operations_allowed.clear()
    results = await asyncio.gather(
        subscriptions.change_plan(subscription, "pro", order="one"),
        subscriptions.change_plan(subscription, "pro-yearly", order="two"),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, RuleViolation)]
    assert [(violation.code, violation.is_retryable) for violation in refused] == [("CONFLICT", True)]
    subscriptions.external.operations_allowed.set()
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.operations() == ["resize"]


@pytest.mark.parametrize(("at", "status"), [(CancelAt.NOW, "cancelled"), (CancelAt.PERIOD_END, "active")])
async def test_a_cancellation_that_was_answered_before_the_first_period_began_is_executed(
    subscriptions: SubscriptionFixture, at: CancelAt, status: str
) -> None:
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_subscription("starter")
    await wait_until(lambda: "provision" in dict(subscriptions.external.calls))
    async with subscriptions.owner.begin() as session:
        # The first period cannot begin: its activity waits for the row, as it may wait for a slot of a busy worker.
        await session.execute(text("SELECT 1 FROM subscriptions WHERE id = :id FOR UPDATE"), {"id": subscription})
        subscriptions.external.provisioning_done.set()
        await wait_until(lambda: _is_scheduled(subscriptions, subscription, "billing.start_first_period"))
        assert await subscriptions.cancel(subscription, at) is None
        update = subscriptions.handle(subscription).get_update_handle(f"cancel/{subscription}")
        assert (await update.result())["state"] == "provisioning"
    await subscriptions.wait_for_status(subscription, status)

    async def is_cancelled_or_will_be() -> bool:
        row = await subscriptions.subscription(subscription)
        return bool(row["cancel_at_period_end"]) is (at is CancelAt.PERIOD_END) and row["status"] == status

    await wait_until(is_cancelled_or_will_be, timeout=20)


async def test_a_command_is_answered_in_time_when_the_server_ends_the_poll_for_its_result(
    subscriptions: SubscriptionFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = subscriptions.temporal.client.workflow_service
    poll = service.poll_workflow_execution_update
    polls = 0

    async def poll_briefly(request: Any, **options: Any) -> Any:
        nonlocal polls
        polls += 1
        try:
            return await poll(request, **{**options, "timeout": timedelta(seconds=0.5)})
        except RPCError as error:
            if error.status not in (RPCStatusCode.CANCELLED, RPCStatusCode.DEADLINE_EXCEEDED):
                raise
            return PollWorkflowExecutionUpdateResponse()

    monkeypatch.setattr(service, "poll_workflow_execution_update", poll_briefly)
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_active_subscription("starter")
    async with subscriptions.owner.begin() as session:
        await session.execute(text("SELECT 1 FROM subscriptions WHERE id = :id FOR UPDATE"), {"id": subscription})
        async with asyncio.timeout(3 * RESULT_TIMEOUT.total_seconds()):
            assert await subscriptions.cancel(subscription) is None
    # Each poll lasts half a second; the SDK would go on for ever.
    assert polls <= 2 * RESULT_TIMEOUT.total_seconds() + 1
    await subscriptions.wait_for_status(subscription, "cancelled")


async def _is_scheduled(subscriptions: SubscriptionFixture, subscription: str, activity: str) -> bool:
    history = await subscriptions.handle(subscription).fetch_history()
    return activity in {event.activity_task_scheduled_event_attributes.activity_type.name for event in history.events}
