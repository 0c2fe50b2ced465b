"""Continue-as-new of a subscription at a period start: nothing in flight is lost and the schedule goes on."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import WorkflowExecution, WorkflowExecutionStatus

from tests.support.subscription_fixture import SubscriptionFixture
from tests.support.wait import wait_until
from workflows import policies
from workflows.ports.subscription import CustomerOperation, StartOperation
from workflows.rules.proration import PlanChangeMode

DAY = timedelta(days=1)


def _add_events(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let each history appear ``count`` events longer than it is."""
    original = workflow.Info.get_current_history_length
    monkeypatch.setattr(workflow.Info, "get_current_history_length", lambda info: original(info) + count)


async def _list_runs(subscriptions: SubscriptionFixture, subscription: str) -> list[WorkflowExecution]:
    runs = subscriptions.temporal.client.list_workflows(f"WorkflowId = 'subscription/{subscription}'")
    return [run async for run in runs]


async def _count_renewals(subscriptions: SubscriptionFixture, workflow_id: str, run_id: str) -> int:
    history = await subscriptions.temporal.client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
    local_activities = [
        json.loads(event.marker_recorded_event_attributes.details["data"].payloads[0].data)["activity_type"]
        for event in history.events
        if event.marker_recorded_event_attributes.marker_name == "core_local_activity"
    ]
    return local_activities.count("billing.start_period")


async def _wait_for_runs(subscriptions: SubscriptionFixture, subscription: str, count: int) -> None:
    async def reached() -> bool:
        return len(await _list_runs(subscriptions, subscription)) >= count

    await wait_until(reached)


async def test_a_long_history_is_cut_at_a_renewal_and_the_moved_clock_goes_on(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    restart = StartOperation(update_id="o1", actor="usr", operation_id="op_1", kind=CustomerOperation.RESTART)
    await subscriptions.workflows.start_operation(subscription, restart)
    await subscriptions.wait_until_idle(subscription)
    started = await subscriptions.now(subscription)
    await subscriptions.advance(subscription, 200 * DAY)
    await _wait_for_runs(subscriptions, subscription, 2)
    runs = await _list_runs(subscriptions, subscription)
    statuses = [run.status for run in runs]
    assert statuses.count(WorkflowExecutionStatus.RUNNING) == 1
    assert statuses.count(WorkflowExecutionStatus.CONTINUED_AS_NEW) == len(statuses) - 1
    assert max([await _count_renewals(subscriptions, run.id, run.run_id) for run in runs]) <= 6
    invoices = await subscriptions.invoices(subscription)
    assert [row["status"] for row in invoices] == ["paid"] * 7
    assert all(later["period_start"] == earlier["period_end"] for earlier, later in itertools.pairwise(invoices))
    assert timedelta() <= await subscriptions.now(subscription) - started - 200 * DAY < timedelta(minutes=2)
    # The server forgets the update ids of earlier runs: the subscription itself carries those that it has handled.
    await subscriptions.workflows.start_operation(subscription, restart)
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.operations() == ["restart"]
    # Also in a state that refuses the same command today.
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.workflows.start_operation(subscription, restart)
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.operations() == ["restart", "suspend"]


async def test_a_history_of_renewals_is_not_cut_before_the_fourth(subscriptions: SubscriptionFixture) -> None:
    """A cut costs more than the replay of a few renewals: it is due at every sixth.

    Here at the fourth to sixth, because the events of the skipped time make the history longer. The test's clock is not
    used: its updates would add more.
    """
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    handle = subscriptions.handle(subscription)
    for periods in range(2, 13):
        end = (await subscriptions.subscription(subscription))["current_period_end"]

        async def is_renewed(periods: int = periods) -> bool:
            return len(await subscriptions.invoices(subscription)) == periods

        remaining = end - await subscriptions.now(subscription)
        await subscriptions.temporal.fast_forward(handle, remaining + timedelta(minutes=1))
        await wait_until(is_renewed)
    await _wait_for_runs(subscriptions, subscription, 3)
    runs = sorted(await _list_runs(subscriptions, subscription), key=lambda run: run.start_time)
    # The first run has the events of the order as well, the last one is not cut yet.
    renewals = [await _count_renewals(subscriptions, run.id, run.run_id) for run in runs[1:-1]]
    assert set(renewals) <= {4, 5, 6}


async def test_a_short_history_is_not_cut(subscriptions: SubscriptionFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    # Moving the clock adds events too.
    _add_events(monkeypatch, -5_000)
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.advance(subscription, 32 * DAY)
    assert [run.status for run in await _list_runs(subscriptions, subscription)] == [WorkflowExecutionStatus.RUNNING]


async def test_an_update_in_flight_is_answered_before_the_new_run_starts(
    subscriptions: SubscriptionFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _add_events(monkeypatch, 150)
    await subscriptions.top_up(600)
    await subscriptions.add_card()
    subscription = await subscriptions.create_active_subscription("starter")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    subscriptions.external.gateway_responses.clear()
    await subscriptions.advance_to(subscription, end - timedelta(seconds=1))
    await subscriptions.wait_for_charges(1)
    # The update waits for the payment's lock while the renewal that takes the payment ends.
    pause = asyncio.create_task(subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause")))
    await asyncio.wait([pause], timeout=0.3)
    assert not pause.done()
    subscriptions.external.gateway_responses.set()
    response = await pause
    assert response.result is not None
    assert response.result.state == "paused"
    await _wait_for_runs(subscriptions, subscription, 2)
    await subscriptions.wait_for_status(subscription, "paused")
    assert subscriptions.external.operations() == ["suspend"]
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]


async def test_a_failed_operation_waits_for_its_repetition_in_the_new_run_as_well(
    subscriptions: SubscriptionFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The history is not long before the operation of the new period has started. A replay has to find the same length.
    def length(_: workflow.Info) -> int:
        state = workflow.instance().context.state
        return 1000 if state is not None and state.operation_count else 0

    monkeypatch.setattr(workflow.Info, "get_current_history_length", length)
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.failing_operations = {"resize"}
    await subscriptions.change_plan(subscription, "pro", PlanChangeMode.PERIOD_END)
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + timedelta(seconds=1))
    await _wait_for_runs(subscriptions, subscription, 2)
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.operations() == ["resize"]
    # The second failure in a row is followed by twice the wait after the first.
    await subscriptions.advance(subscription, policies.operation_backoff(1))
    await wait_until(lambda: subscriptions.external.operations() == ["resize"] * 2)
    await subscriptions.wait_until_idle(subscription)
    subscriptions.external.failing_operations = set()
    await subscriptions.advance(subscription, policies.operation_backoff(2) - timedelta(seconds=30))
    assert subscriptions.external.operations() == ["resize"] * 2
    await subscriptions.advance(subscription, timedelta(minutes=1))
    await wait_until(lambda: subscriptions.external.operations() == ["resize"] * 3)
