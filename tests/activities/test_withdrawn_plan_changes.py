"""A plan change that takes effect at once withdraws a scheduled one, and its rollback restores that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.support.billing_commands import (
    TEN_DAYS_AFTER_ORDER,
    cancel_at_period_end_command,
    grant_promotional_credit,
    plan_change_command,
    rollback_command,
    top_up,
)
from tests.support.billing_fixture import BillingFixture, OpenedSubscription
from workflows.ports.subscription import PlanTerms, StatusOutcome
from workflows.rules.proration import PlanChangeMode


async def _change_at_once_after_scheduling(billing: BillingFixture) -> tuple[OpenedSubscription, PlanTerms]:
    """Return a subscription that was changed at once after a change was scheduled, and the terms of that one."""
    await top_up(billing, 50_000)
    ordered = await billing.create_active_subscription("pro")
    schedule = plan_change_command(ordered, "starter", PlanChangeMode.PERIOD_END)
    scheduled = await billing.billing_activities.change_plan(replace(schedule, plan_change_id="order_0"))
    await billing.billing_activities.change_plan(plan_change_command(ordered, "pro-yearly", PlanChangeMode.IMMEDIATE))
    return ordered, scheduled.terms


async def _roll_back(billing: BillingFixture, ordered: OpenedSubscription, pending: PlanTerms) -> StatusOutcome:
    command = rollback_command(ordered)
    restoring = replace(command, fallback=replace(command.fallback, pending_terms=pending))
    return await billing.assert_idempotent(billing.billing_activities.rollback_plan_change, restoring)


async def _rollback_mail(billing: BillingFixture) -> dict[str, Any]:
    (mail,) = await billing.query(
        "SELECT template_context AS context FROM notifications WHERE template_context ->> 'reason' = 'undone'"
    )
    context: dict[str, Any] = mail["context"]
    return context


async def test_an_immediate_change_reports_the_scheduled_one_that_it_withdraws(billing: BillingFixture) -> None:
    await _change_at_once_after_scheduling(billing)
    events = await billing.query(
        "SELECT message FROM timeline_events WHERE kind = 'subscription.plan_change_withdrawn'"
    )
    assert [event["message"] for event in events] == [
        "Scheduled plan change withdrawn: the plan changes to pro-yearly now."
    ]


async def test_a_rollback_restores_the_scheduled_change(billing: BillingFixture) -> None:
    ordered, pending = await _change_at_once_after_scheduling(billing)
    outcome = await _roll_back(billing, ordered, pending)
    assert (outcome.state.plan_id, outcome.state.pending_plan_id) == ("pln_pro", "pln_starter")
    events = await billing.query(
        "SELECT message FROM timeline_events WHERE kind = 'subscription.plan_change_scheduled' ORDER BY id"
    )
    assert len({event["message"] for event in events}) == 1
    assert len(events) == 2
    mail = await _rollback_mail(billing)
    assert (mail["pending_plan_name"], mail["price"]["amount_minor"]) == ("starter", 500)


async def test_a_rollback_restores_no_scheduled_change_of_a_subscription_that_ends(billing: BillingFixture) -> None:
    ordered, pending = await _change_at_once_after_scheduling(billing)
    await billing.subscription_activities.set_cancel_at_period_end(
        cancel_at_period_end_command(ordered, TEN_DAYS_AFTER_ORDER)
    )
    outcome = await _roll_back(billing, ordered, pending)
    assert (outcome.state.cancel_at_period_end, outcome.state.pending_plan_id) == (True, None)


async def test_a_rollback_reports_the_source_that_the_charge_returned_to(billing: BillingFixture) -> None:
    """The mail announced promotional credit as wallet money."""
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await grant_promotional_credit(billing, 5_000)
    before = await billing.balance("promotional")
    await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    paid = before - await billing.balance("promotional")
    await billing.billing_activities.rollback_plan_change(rollback_command(ordered))
    assert (await billing.balance(), await billing.balance("promotional")) == (0, before)
    mail = await _rollback_mail(billing)
    assert mail["credit"] is None
    assert mail["promotional_credit"] == {"amount_minor": paid, "currency": "USD"}


async def test_unused_time_is_announced_as_promotional_credit(billing: BillingFixture) -> None:
    await top_up(billing, 2_000)
    ordered = await billing.create_active_subscription("pro")
    await billing.billing_activities.change_plan(plan_change_command(ordered, "starter", PlanChangeMode.IMMEDIATE))
    granted = await billing.balance("promotional")
    assert (granted > 0, await billing.balance()) == (True, 0)
    (mail,) = await billing.query("SELECT template_context AS c FROM notifications WHERE kind = 'plan_changed'")
    assert (mail["c"].get("credit"), mail["c"].get("promotional_credit")) == (
        None,
        {"amount_minor": granted, "currency": "USD"},
    )
