"""Subscriptions whose workflow was lost: reconciliation starts it again, and it goes on from what the rows say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import WorkflowExecutionStatus

from activities.reconciliation import PostgresReconciliationActivities
from tests.support.payment_fixture import run_activity
from tests.support.reconciliation import reconcile
from tests.support.subscription_fixture import CancelAt, PlanChangeMode, SubscriptionFixture
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from tests.support.workers import build_worker
from workflows import names
from workflows.lost_workflows import find_lost
from workflows.ports.reconciliation import (
    ReconciliationOutcome,
    RestartLostWorkflows,
    RestartOutcome,
)
from workflows.ports.subscription import CustomerOperation, StartOperation
from workflows.reconciliation import Reconciliation

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


async def _restart_lost(subscriptions: SubscriptionFixture, *, max_restarts: int = 10, limit: int = 200) -> int:
    """Check all pages and return how many workflows were started again."""
    reconciliation = PostgresReconciliationActivities(subscriptions.sessions, subscriptions.temporal.client)
    restarted, after = 0, ""
    while True:
        command = RestartLostWorkflows(after=after, max_restarts=max_restarts, now=datetime.now(UTC), limit=limit)
        page: RestartOutcome = await run_activity(reconciliation.restart_subscriptions, command)
        restarted += page.restarted
        if page.last_id is None:
            return restarted
        after = page.last_id


async def _lose(subscriptions: SubscriptionFixture, *lost: str) -> None:
    """Terminate the workflows, as an operator does, and wait until the server's list shows it."""
    for subscription in lost:
        await subscriptions.handle(subscription).terminate()
    ids = [names.subscription_workflow_id(subscription) for subscription in lost]

    async def listed() -> bool:
        return await find_lost(subscriptions.workflows, ids) == ids

    await wait_until(listed)


async def _lose_and_restart(subscriptions: SubscriptionFixture, subscription: str) -> None:
    await _lose(subscriptions, subscription)
    assert await _restart_lost(subscriptions) == 1
    await subscriptions.wait_until_idle(subscription)


async def _status(subscriptions: SubscriptionFixture, subscription: str) -> str:
    return str((await subscriptions.subscription(subscription))["status"])


async def _update_instance(subscriptions: SubscriptionFixture, subscription: str, columns: str) -> None:
    """Set what the fake operations do not write."""
    await subscriptions.execute(f"UPDATE instances SET {columns} WHERE subscription_id = :id", id=subscription)


def _count(subscriptions: SubscriptionFixture, verb: str) -> int:
    return [called for called, _ in subscriptions.external.calls].count(verb)


async def test_an_active_subscription_is_renewed_once(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(1500)
    subscription = await subscriptions.create_active_subscription("starter")
    before = await subscriptions.subscription(subscription)
    await _lose_and_restart(subscriptions, subscription)
    assert await subscriptions.subscription(subscription) == before
    await subscriptions.advance_to(subscription, before["current_period_end"] + MINUTE)
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    assert await subscriptions.balance() == 500
    assert (_count(subscriptions, "provision"), subscriptions.external.operations()) == (1, [])


async def test_a_renewal_that_is_lost_before_a_payment_is_recorded_is_collected_at_the_restart(
    subscriptions: SubscriptionFixture,
) -> None:
    """The schedule collects no open invoice of an active subscription: the restarted run has to."""
    await subscriptions.top_up(600)
    card = await subscriptions.add_card()
    subscription = await subscriptions.create_active_subscription("starter")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    subscriptions.external.gateway_responses.clear()
    await subscriptions.advance_to(subscription, end - timedelta(seconds=1))
    await subscriptions.wait_for_charges(1)
    await _lose(subscriptions, subscription)
    payments = f"BerthSubscription = '{subscription}' AND BerthWorkflowKind = 'payment'"
    async for payment in subscriptions.temporal.client.list_workflows(payments):
        await subscriptions.temporal.client.get_workflow_handle(payment.id).terminate()
    # The activity of the terminated payment ends now, and leaves no payment.
    subscriptions.external.decline_code = "generic_decline"
    subscriptions.external.gateway_responses.set()
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "open"]
    subscriptions.external.decline_code = None
    assert await _restart_lost(subscriptions) == 1
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.charged_methods == [card, card]
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    assert await _status(subscriptions, subscription) == "active"
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (0, 0)


async def test_a_trial_is_charged_at_its_end(subscriptions: SubscriptionFixture) -> None:
    subscription = await subscriptions.create_active_subscription("trial")
    end = (await subscriptions.subscription(subscription))["trial_end"]
    await _lose_and_restart(subscriptions, subscription)
    assert await _status(subscriptions, subscription) == "trialing"
    await subscriptions.top_up(500)
    await subscriptions.advance_to(subscription, end + MINUTE)
    assert await _status(subscriptions, subscription) == "active"
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid"]


@pytest.mark.scenario("B46")
async def test_a_past_due_subscription_makes_the_retries_that_are_left(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscriptions.external.decline_code = "insufficient_funds"
    subscription = await subscriptions.create_active_subscription("starter")
    due = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, due + DAY + MINUTE)
    assert _count(subscriptions, "charge") == 2
    # The fakes record no failed payment, which the real activities do.
    for number, at in enumerate((due, due + DAY)):
        await subscriptions.insert_timeline_event(subscription, "payment.failed", f"payment.failed/pay_{number}", at)
    await _lose_and_restart(subscriptions, subscription)
    assert (await _status(subscriptions, subscription), _count(subscriptions, "charge")) == ("past_due", 2)
    await subscriptions.advance_to(subscription, due + 3 * DAY - MINUTE)
    assert _count(subscriptions, "charge") == 2
    await subscriptions.advance_to(subscription, due + 6 * DAY)
    assert _count(subscriptions, "charge") == 4
    await subscriptions.advance_to(subscription, due + 7 * DAY + MINUTE)
    assert await _status(subscriptions, subscription) == "suspended"


@pytest.mark.scenario("B30", "B46")
async def test_a_suspended_subscription_recovers_when_credit_arrives(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_active_subscription("starter")
    due = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, due + 8 * DAY)
    await _update_instance(subscriptions, subscription, "status = 'suspended'")
    await _lose_and_restart(subscriptions, subscription)
    assert await _status(subscriptions, subscription) == "suspended"
    assert subscriptions.external.operations() == ["suspend"]
    await subscriptions.top_up(500, subscription)
    await subscriptions.wait_for_status(subscription, "active")
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    assert subscriptions.external.operations() == ["suspend", "resume"]


@pytest.mark.scenario("B30", "B46")
@pytest.mark.parametrize(("days", "status"), [(2, "past_due"), (8, "suspended")])
async def test_credit_that_arrived_while_the_workflow_was_lost_pays_the_debt(
    subscriptions: SubscriptionFixture, days: int, status: str
) -> None:
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_active_subscription("starter")
    due = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, due + days * DAY)
    assert await _status(subscriptions, subscription) == status
    await _lose(subscriptions, subscription)
    await subscriptions.top_up(500)  # Its signal finds no workflow.
    assert await _restart_lost(subscriptions) == 1
    await subscriptions.wait_until_idle(subscription)
    assert await _status(subscriptions, subscription) == "active"
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    assert await subscriptions.balance() == 0


@pytest.mark.scenario("B46")
async def test_a_suspended_subscription_is_given_up_in_time(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_active_subscription("starter")
    due = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, due + 8 * DAY)
    await _lose_and_restart(subscriptions, subscription)
    await subscriptions.advance_to(subscription, due + 30 * DAY + MINUTE)
    assert await _status(subscriptions, subscription) == "cancelled"
    await _lose_and_restart(subscriptions, subscription)
    await subscriptions.advance_to(subscription, due + 61 * DAY)
    assert await _status(subscriptions, subscription) == "terminated"
    assert await _restart_lost(subscriptions) == 0


@pytest.mark.scenario("B49")
async def test_a_paused_subscription_is_resumed_by_the_customer_alone(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(1000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.wait_until_idle(subscription)
    await _lose_and_restart(subscriptions, subscription)
    await subscriptions.advance(subscription, 40 * DAY)
    assert (await _status(subscriptions, subscription), await subscriptions.balance()) == ("paused", 500)
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await subscriptions.wait_for_status(subscription, "active")
    assert await subscriptions.balance() == 0


async def test_a_scheduled_cancellation_is_executed(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(1000)
    subscription = await subscriptions.create_active_subscription("starter")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    await _lose_and_restart(subscriptions, subscription)
    assert await _status(subscriptions, subscription) == "active"
    await subscriptions.advance_to(subscription, end + MINUTE)
    assert (await _status(subscriptions, subscription), await subscriptions.balance()) == ("cancelled", 500)


@pytest.mark.scenario("B15")
async def test_a_scheduled_plan_change_takes_effect_at_the_price_that_was_agreed(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(3000)
    subscription = await subscriptions.create_active_subscription("pro")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.change_plan(subscription, "starter", PlanChangeMode.PERIOD_END)
    await subscriptions.insert_price("starter", 900, await subscriptions.now(subscription))
    await _lose_and_restart(subscriptions, subscription)
    await subscriptions.advance_to(subscription, end + MINUTE)
    row = await subscriptions.subscription(subscription)
    assert (row["plan_id"], row["pending_plan_id"], row["price_minor"]) == (subscriptions.plan("starter"), None, 500)
    assert await subscriptions.balance() == 500


async def test_an_instance_that_the_customer_stopped_stays_stopped(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(1000)
    subscription = await subscriptions.create_active_subscription("starter")
    await _update_instance(subscriptions, subscription, "status = 'stopped'")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await _lose_and_restart(subscriptions, subscription)
    await subscriptions.advance_to(subscription, end + MINUTE)
    assert (await _status(subscriptions, subscription), subscriptions.external.operations()) == ("active", [])


async def test_an_instance_of_which_a_part_may_be_stopped_is_resumed(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(1000)
    subscription = await subscriptions.create_active_subscription("starter")
    await _update_instance(subscriptions, subscription, "status = 'degraded'")
    await _lose_and_restart(subscriptions, subscription)
    await wait_until(lambda: subscriptions.external.operations() == ["resume"])


async def test_a_resize_that_the_lost_run_had_not_made_is_made(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_active_subscription("starter")
    await _update_instance(subscriptions, subscription, "memory_mib = 256")
    await _lose_and_restart(subscriptions, subscription)
    await wait_until(lambda: subscriptions.external.operations() == ["resize"])


@pytest.mark.scenario("B47")
async def test_an_order_that_is_lost_during_provisioning_is_completed(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(600)
    subscription = await subscriptions.create_subscription("starter")
    await wait_until(lambda: _count(subscriptions, "provision") == 1)
    await _lose(subscriptions, subscription)
    assert await _restart_lost(subscriptions) == 1
    await wait_until(lambda: _count(subscriptions, "provision") == 2)
    subscriptions.external.provisioning_done.set()
    await subscriptions.wait_for_status(subscription, "active")
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid"]
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (100, 0)


async def test_an_order_that_a_backup_card_secured_and_that_is_lost_takes_over_its_authorization(
    subscriptions: SubscriptionFixture,
) -> None:
    default = await subscriptions.add_card()
    backup = await subscriptions.add_card(default=False, charge_order=1)
    subscriptions.external.decline_codes = {default: "insufficient_funds"}
    subscription = await subscriptions.create_subscription("starter")
    await wait_until(lambda: _count(subscriptions, "provision") == 1)
    await _lose(subscriptions, subscription)
    assert await _restart_lost(subscriptions) == 1
    await wait_until(lambda: _count(subscriptions, "provision") == 2)
    subscriptions.external.provisioning_done.set()
    await subscriptions.wait_for_status(subscription, "active")
    assert [payment.payment_method_id for payment in subscriptions.external.payments] == [backup]
    authorized = [payment_id for verb, payment_id in subscriptions.external.calls if verb == "authorize"]
    assert len(set(authorized)) == 2


@pytest.mark.scenario("B48")
async def test_an_order_that_is_lost_during_provisioning_can_be_cancelled(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(600)
    subscription = await subscriptions.create_subscription("starter")
    await wait_until(lambda: _count(subscriptions, "provision") == 1)
    await _lose(subscriptions, subscription)
    assert await _restart_lost(subscriptions) == 1
    await wait_until(lambda: _count(subscriptions, "provision") == 2)
    await subscriptions.cancel(subscription)
    assert await _status(subscriptions, subscription) == "cancelled"
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (600, 0)
    assert subscriptions.external.operations() == ["delete"]
    await subscriptions.handle(subscription).result()
    assert await _restart_lost(subscriptions) == 0


async def test_running_workflows_are_left_alone_and_lost_ones_restarted_up_to_the_limit(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(2000)
    running, *lost = [await subscriptions.create_active_subscription("starter") for _ in range(3)]
    run_id = (await subscriptions.handle(running).describe()).run_id
    await _lose(subscriptions, *lost)
    assert await _restart_lost(subscriptions, max_restarts=1) == 1
    assert await _restart_lost(subscriptions, limit=1) == 1
    assert await _restart_lost(subscriptions) == 0
    described = await subscriptions.handle(running).describe()
    assert (described.run_id, described.status) == (run_id, WorkflowExecutionStatus.RUNNING)
    for subscription in lost:
        await subscriptions.wait_until_idle(subscription)
    alerts = await subscriptions.rows(
        "SELECT template_context FROM notifications WHERE kind = 'operator_alert' ORDER BY created_at"
    )
    details = [alert["template_context"]["details"] for alert in alerts]
    assert len(details) == 2
    assert all(subscription in details[0] for subscription in lost)
    assert not any(running in text for text in details)


async def test_the_scheduled_reconciliation_restarts_a_lost_workflow(
    subscriptions: SubscriptionFixture, temporal: TemporalFixture
) -> None:
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_active_subscription("starter")
    await _lose(subscriptions, subscription)
    reconciliation = PostgresReconciliationActivities(subscriptions.sessions)
    queue = temporal.unique_id("reconciliation")
    async with build_worker(temporal, queue, reconciliation, workflows=[Reconciliation]):
        outcome = await reconcile(temporal, queue=queue)
    assert outcome == ReconciliationOutcome(subscriptions_restarted=1)
    await subscriptions.wait_until_idle(subscription)


async def test_an_operation_that_is_ordered_again_while_it_runs_is_taken_over(
    subscriptions: SubscriptionFixture,
) -> None:
    """The new run does not know the update that the lost one answered."""
    await subscriptions.top_up(1500)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.operations_allowed.clear()
    restart = StartOperation(update_id="o1", actor="usr", operation_id="op_1", kind=CustomerOperation.RESTART)
    await subscriptions.workflows.start_operation(subscription, restart)
    await wait_until(lambda: subscriptions.external.operations() == ["restart"])
    await _lose_and_restart(subscriptions, subscription)
    await subscriptions.workflows.start_operation(subscription, restart)
    await wait_until(lambda: subscriptions.external.operations() == ["restart"] * 2)
    subscriptions.external.operations_allowed.set()
    await subscriptions.wait_until_idle(subscription)
    described = await subscriptions.handle(subscription).describe()
    assert described.status is WorkflowExecutionStatus.RUNNING
