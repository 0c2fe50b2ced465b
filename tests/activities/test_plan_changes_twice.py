"""Every activity of a plan change, run twice with one command: Temporal does that whenever an answer was lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from tests.support.billing_commands import (
    TEN_DAYS_AFTER_ORDER,
    change_status_command,
    plan_change_command,
    rollback_command,
    top_up,
)
from tests.support.billing_fixture import (
    USER,
    BillingFixture,
    OpenedSubscription,
    insert_payment_method,
)
from tests.support.billing_fixture import insert_card_payment as paid_by_card
from workflows.ports.billing import (
    CompletePlanChange,
    PlanChangeOutcome,
    PlanChangeResult,
    RecordPaymentFailure,
)
from workflows.ports.subscription import ChangeStatus
from workflows.rules.proration import PlanChangeMode
from workflows.rules.subscription import SubscriptionStatus


async def test_a_scheduled_change(billing: BillingFixture) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription("pro")
    changed = await billing.assert_idempotent(
        billing.billing_activities.change_plan, plan_change_command(ordered, "starter")
    )
    assert changed.result is PlanChangeResult.SCHEDULED


async def test_a_withdrawal_of_a_scheduled_change(billing: BillingFixture) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription("pro")
    await billing.billing_activities.change_plan(plan_change_command(ordered, "starter"))
    withdrawal = replace(plan_change_command(ordered, "pro"), plan_change_id="order_2")
    changed = await billing.assert_idempotent(billing.billing_activities.change_plan, withdrawal)
    assert (changed.result, changed.state.pending_plan_id) == (PlanChangeResult.WITHDRAWN, None)
    mails = await billing.query(
        "SELECT template_context->>'reason' AS reason FROM notifications WHERE kind = 'plan_changed' ORDER BY id"
    )
    assert sorted(row["reason"] or "" for row in mails) == ["", "withdrawn"]


async def test_a_change_that_the_wallet_pays_and_that_is_rolled_back(billing: BillingFixture) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription()
    changed = await billing.assert_idempotent(
        billing.billing_activities.change_plan, plan_change_command(ordered, "pro")
    )
    assert (changed.result, changed.is_new_anchor) == (PlanChangeResult.APPLIED, False)
    assert await billing.balance() < 4500
    await billing.assert_idempotent(billing.billing_activities.rollback_plan_change, rollback_command(ordered))
    assert await billing.balance() == 4500


async def test_a_change_that_gives_credit_and_that_is_rolled_back(billing: BillingFixture) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription("pro")
    changed = await billing.assert_idempotent(
        billing.billing_activities.change_plan, plan_change_command(ordered, "starter", PlanChangeMode.IMMEDIATE)
    )
    assert (changed.result, changed.invoice_id) == (PlanChangeResult.APPLIED, None)
    assert await billing.balance("promotional") > 900
    await billing.assert_idempotent(billing.billing_activities.rollback_plan_change, rollback_command(ordered))
    assert await billing.balance("promotional") == 0
    # What was undone counts for nothing: the next downgrade is worth the same again.
    repeated = replace(plan_change_command(ordered, "starter", PlanChangeMode.IMMEDIATE), plan_change_id="order_2")
    await billing.assert_idempotent(billing.billing_activities.change_plan, repeated)
    assert await billing.balance("promotional") > 900


async def test_a_change_in_a_trial_costs_nothing(billing: BillingFixture) -> None:
    ordered = await billing.create_active_subscription("trial")
    changed = await billing.assert_idempotent(
        billing.billing_activities.change_plan, plan_change_command(ordered, "pro", PlanChangeMode.IMMEDIATE)
    )
    assert (changed.result, changed.is_new_anchor) == (PlanChangeResult.APPLIED, False)


async def test_a_change_to_a_shorter_interval_at_once(billing: BillingFixture) -> None:
    await top_up(billing, 20_000)
    ordered = await billing.create_active_subscription("pro-yearly")
    changed = await billing.assert_idempotent(
        billing.billing_activities.change_plan, plan_change_command(ordered, "starter", PlanChangeMode.IMMEDIATE)
    )
    assert (changed.result, changed.is_new_anchor, changed.state.period_start) == (
        PlanChangeResult.APPLIED,
        True,
        TEN_DAYS_AFTER_ORDER,
    )


@pytest.mark.parametrize("late", [timedelta(), timedelta(seconds=2)], ids=["at the end", "after it"])
async def test_a_change_to_a_longer_interval_before_the_period_that_has_ended_is_renewed(
    billing: BillingFixture, late: timedelta
) -> None:
    """It waited for a lock meanwhile: nothing is unused, and no line states the unused time."""
    await top_up(billing, 50_000)
    ordered = await billing.create_active_subscription("pro")
    at = ordered.period.end + late
    command = replace(plan_change_command(ordered, "pro-yearly"), now=at)
    changed = await billing.assert_idempotent(billing.billing_activities.change_plan, command)
    assert (changed.result, changed.state.period_start) == (PlanChangeResult.APPLIED, at)
    lines = await billing.query(
        "SELECT l.amount_minor FROM invoice_lines l JOIN invoices i ON i.id = l.invoice_id"
        " WHERE i.plan_change_id IS NOT NULL"
    )
    assert [line["amount_minor"] for line in lines] == [20_000]


async def _changed_by_card(
    billing: BillingFixture, plan: str
) -> tuple[OpenedSubscription, PlanChangeOutcome, CompletePlanChange]:
    await top_up(billing, 600)
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription()
    changed = await billing.assert_idempotent(
        billing.billing_activities.change_plan, plan_change_command(ordered, plan)
    )
    assert changed.card_charge is not None
    assert changed.invoice_id is not None
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
    return ordered, changed, complete


async def test_a_change_that_a_card_pays(billing: BillingFixture) -> None:
    _, changed, complete = await _changed_by_card(billing, "pro")
    assert not changed.is_new_anchor
    outcome = await billing.assert_idempotent(billing.billing_activities.complete_plan_change, complete)
    assert outcome.paid
    assert (await billing.balance(), await billing.balance("held")) == (0, 0)


@pytest.mark.scenario("B11")
async def test_a_change_that_the_card_declined_is_never_given_by_asking_again(billing: BillingFixture) -> None:
    ordered, changed, _ = await _changed_by_card(billing, "pro")
    declined = RecordPaymentFailure(
        subscription_id=ordered.id,
        invoice_id=changed.invoice_id or "",
        payment_id="pay_2",
        decline_code="generic_decline",
        next_retry_at=None,
        now=TEN_DAYS_AFTER_ORDER,
    )
    outcome = await billing.assert_idempotent(billing.billing_activities.record_payment_failure, declined)
    assert not outcome.paid
    with pytest.raises(ApplicationError) as refused:
        await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    assert refused.value.type == "PAYMENT_DECLINED"


async def test_a_change_to_a_longer_interval_that_a_card_pays(billing: BillingFixture) -> None:
    ordered, changed, complete = await _changed_by_card(billing, "pro-yearly")
    assert changed.is_new_anchor
    outcome = await billing.assert_idempotent(billing.billing_activities.complete_plan_change, complete)
    assert outcome.paid
    row = (await billing.query("SELECT * FROM subscriptions WHERE id = :id", id=ordered.id))[0]
    assert (row["current_period_start"], row["current_period_end"]) == (
        outcome.state.period_start,
        outcome.state.period_end,
    )
    assert row["current_period_start"] == row["billing_anchor"] == TEN_DAYS_AFTER_ORDER


@pytest.mark.scenario("B27")
async def test_a_change_that_a_card_pays_after_the_cancellation(billing: BillingFixture) -> None:
    ordered, _, complete = await _changed_by_card(billing, "pro")
    await billing.assert_idempotent(
        billing.subscription_activities.change_status, change_status_command(ordered, SubscriptionStatus.CANCELLED)
    )
    outcome = await billing.assert_idempotent(billing.billing_activities.complete_plan_change, complete)
    assert (outcome.paid, outcome.state.status) == (False, SubscriptionStatus.CANCELLED)
    assert [row["status"] for row in await billing.invoices(ordered.id)] == ["paid", "void"]
    assert await billing.balance("held") == 0


async def test_a_change_that_is_rolled_back_after_the_cancellation_announces_no_charge(billing: BillingFixture) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription()
    await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    cancel = ChangeStatus(
        subscription_id=ordered.id,
        status=SubscriptionStatus.CANCELLED,
        reason="test",
        actor="usr_test",
        data_deletion_at=ordered.period.end,
        void_invoice=True,
        now=ordered.period.start + timedelta(days=11),
    )
    await billing.subscription_activities.change_status(cancel)
    await billing.billing_activities.rollback_plan_change(rollback_command(ordered))
    (mail,) = await billing.query(
        "SELECT template_context FROM notifications WHERE template_context ->> 'reason' = 'undone'"
    )
    assert mail["template_context"].get("next_charge_at") is None
