"""A plan change that takes effect at once withdraws a scheduled cancellation, and its rollback restores that."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.billing_commands import (
    TEN_DAYS_AFTER_ORDER,
    cancel_at_period_end_command,
    change_status_command,
    plan_change_command,
    rollback_command,
    top_up,
)
from tests.support.billing_fixture import USER, BillingFixture, OpenedSubscription, insert_payment_method
from tests.support.billing_fixture import insert_card_payment as paid_by_card
from workflows.ports.billing import CompletePlanChange, PlanChangeResult
from workflows.ports.subscription import CommittedState
from workflows.rules.proration import PlanChangeMode
from workflows.rules.subscription import SubscriptionStatus

WITHDRAWN = "Scheduled cancellation withdrawn: the plan has changed."


async def _create_cancelling(billing: BillingFixture, plan: str) -> OpenedSubscription:
    ordered = await billing.create_active_subscription(plan)
    await billing.subscription_activities.set_cancel_at_period_end(
        cancel_at_period_end_command(ordered, TEN_DAYS_AFTER_ORDER)
    )
    return ordered


async def _flag_changes(billing: BillingFixture) -> list[tuple[str, str]]:
    rows = await billing.query(
        "SELECT before, after FROM subscription_changes WHERE field = 'cancel_at_period_end' ORDER BY id"
    )
    return [(row["before"], row["after"]) for row in rows]


async def _last_mail(billing: BillingFixture) -> dict[str, Any]:
    """Return the context of the newest mail about the plan change."""
    rows = await billing.query(
        "SELECT template_context AS context FROM notifications WHERE kind = 'plan_changed'"
        " ORDER BY occurred_at DESC LIMIT 1"
    )
    context: dict[str, Any] = rows[0]["context"]
    return context


async def _assert_withdrawn(billing: BillingFixture, state: CommittedState) -> None:
    assert state.cancel_at_period_end is False
    assert state.period_end is not None
    [row] = await billing.query("SELECT cancel_at_period_end FROM subscriptions")
    assert row["cancel_at_period_end"] is False
    messages = await billing.query(
        "SELECT message FROM timeline_events WHERE kind = 'subscription.cancellation_withdrawn'"
    )
    assert [row["message"] for row in messages] == [WITHDRAWN]
    assert await _flag_changes(billing) == [("False", "True"), ("True", "False")]
    mail = await _last_mail(billing)
    assert (mail["cancellation_withdrawn"], mail["next_charge_at"]) == (True, state.period_end.isoformat())


@pytest.mark.parametrize(
    ("plan", "target"),
    [("starter", "pro"), ("starter", "pro-yearly"), ("pro", "starter"), ("trial", "pro")],
    ids=["paid by the wallet", "to another interval", "gives credit", "in the trial"],
)
async def test_an_immediate_change_withdraws_the_cancellation(billing: BillingFixture, plan: str, target: str) -> None:
    await top_up(billing, 50_000)
    ordered = await _create_cancelling(billing, plan)
    command = plan_change_command(ordered, target, PlanChangeMode.IMMEDIATE)
    changed = await billing.assert_idempotent(billing.billing_activities.change_plan, command)
    assert changed.result is PlanChangeResult.APPLIED
    await _assert_withdrawn(billing, changed.state)


async def test_a_change_that_a_card_pays_withdraws_the_cancellation_once_it_is_paid(billing: BillingFixture) -> None:
    await top_up(billing, 600)
    await insert_payment_method(billing.sessions)
    ordered = await _create_cancelling(billing, "starter")
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    assert changed.card_charge is not None
    assert changed.invoice_id is not None
    assert changed.state.cancel_at_period_end is True
    await paid_by_card(billing.sessions, "pay_1", ordered.id, changed.card_charge.amount)
    complete = CompletePlanChange(
        subscription_id=ordered.id,
        invoice_id=changed.invoice_id,
        payment_id="pay_1",
        plan_change_id="order_1",
        actor=USER,
        terms=changed.terms,
        restarts=changed.is_new_anchor,
        now=TEN_DAYS_AFTER_ORDER + timedelta(seconds=5),
    )
    outcome = await billing.assert_idempotent(billing.billing_activities.complete_plan_change, complete)
    assert outcome.paid
    await _assert_withdrawn(billing, outcome.state)


@pytest.mark.parametrize("target", ["pro", "pro-yearly"])
async def test_a_rollback_restores_the_cancellation(billing: BillingFixture, target: str) -> None:
    await top_up(billing, 50_000)
    ordered = await _create_cancelling(billing, "starter")
    await billing.billing_activities.change_plan(plan_change_command(ordered, target))
    outcome = await billing.assert_idempotent(
        billing.billing_activities.rollback_plan_change, rollback_command(ordered)
    )
    assert (outcome.state.cancel_at_period_end, outcome.state.period_end) == (True, ordered.period.end)
    assert await _flag_changes(billing) == [("False", "True"), ("True", "False"), ("False", "True")]
    end = ordered.period.end
    messages = await billing.query(
        "SELECT message FROM timeline_events WHERE kind = 'subscription.cancellation_scheduled' ORDER BY id"
    )
    assert [row["message"] for row in messages] == [f"Cancellation scheduled for {end.day} {end:%B} {end.year}."] * 2
    mail = await _last_mail(billing)
    assert (mail["reason"], mail["cancel_at_period_end"], mail["period_end"], mail["next_charge_at"]) == (
        "undone",
        True,
        end.isoformat(),
        None,
    )


async def test_a_rollback_restores_no_cancellation_where_there_was_none(billing: BillingFixture) -> None:
    await top_up(billing, 50_000)
    ordered = await billing.create_active_subscription()
    await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    outcome = await billing.billing_activities.rollback_plan_change(rollback_command(ordered))
    assert outcome.state.cancel_at_period_end is False
    assert (await _last_mail(billing))["next_charge_at"] == ordered.period.end.isoformat()


async def test_a_rollback_keeps_a_cancellation_withdrawn_that_the_customer_withdrew_after_the_change(
    billing: BillingFixture,
) -> None:
    await top_up(billing, 50_000)
    ordered = await _create_cancelling(billing, "starter")
    await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    for cancels in (True, False):
        command = cancel_at_period_end_command(ordered, TEN_DAYS_AFTER_ORDER, cancels=cancels)
        await billing.subscription_activities.set_cancel_at_period_end(command)
    outcome = await billing.billing_activities.rollback_plan_change(rollback_command(ordered))
    assert outcome.state.cancel_at_period_end is False


async def test_a_rollback_in_a_pause_restores_no_cancellation(billing: BillingFixture) -> None:
    """A pause withdraws a cancellation."""
    await top_up(billing, 50_000)
    ordered = await _create_cancelling(billing, "starter")
    await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    pause = replace(change_status_command(ordered, SubscriptionStatus.PAUSED), now=TEN_DAYS_AFTER_ORDER)
    await billing.subscription_activities.change_status(pause)
    outcome = await billing.billing_activities.rollback_plan_change(rollback_command(ordered))
    assert (outcome.state.status, outcome.state.cancel_at_period_end) == (SubscriptionStatus.PAUSED, False)
