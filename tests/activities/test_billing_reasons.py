"""Why an invoice was written is stored with it, and decides which mail reports its payment."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from tests.support.billing_commands import (
    change_status_command,
    plan_change_command,
    start_first_period_with_card,
    top_up,
)
from tests.support.billing_fixture import (
    BillingFixture,
    OpenedSubscription,
    insert_card_payment,
    insert_payment_method,
)
from workflows.ports.billing import ApplyCardPayment, BillingOutcome
from workflows.rules.proration import PlanChangeMode
from workflows.rules.renewal import PeriodKind
from workflows.rules.subscription import SubscriptionStatus


async def billing_reasons(billing: BillingFixture, subscription_id: str) -> list[str]:
    return [invoice["billing_reason"] for invoice in await billing.invoices(subscription_id)]


async def notification_kinds(billing: BillingFixture) -> list[str]:
    rows = await billing.query("SELECT kind FROM notifications WHERE scheduled_for IS NULL ORDER BY occurred_at, id")
    return [row["kind"] for row in rows]


async def pay_by_card(billing: BillingFixture, ordered: OpenedSubscription, outcome: BillingOutcome) -> BillingOutcome:
    assert outcome.card_charge is not None
    payment_id = f"pay_{outcome.invoice_id}"
    await insert_card_payment(billing.sessions, payment_id, ordered.id, outcome.card_charge.amount)
    return await billing.billing_activities.apply_card_payment(
        ApplyCardPayment(
            subscription_id=ordered.id,
            invoice_id=outcome.invoice_id or "",
            payment_id=payment_id,
            now=ordered.period.end,
        )
    )


async def test_the_first_renewal_after_an_interval_change_sends_its_receipt_when_a_card_pays_it(
    billing: BillingFixture,
) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    scheduled = await billing.billing_activities.change_plan(
        plan_change_command(ordered, "pro-yearly", PlanChangeMode.PERIOD_END)
    )
    await insert_payment_method(billing.sessions)
    renewal = replace(billing.start_period_command(ordered), terms=scheduled.terms)
    outcome = await billing.billing_activities.start_period(renewal)
    assert (await pay_by_card(billing, ordered, outcome)).paid
    assert await billing_reasons(billing, ordered.id) == ["order", "renewal"]
    assert (await notification_kinds(billing)).count("subscription_renewed") == 1
    rows = await billing.query("SELECT kind FROM timeline_events WHERE subscription_id = :id", id=ordered.id)
    assert [row["kind"] for row in rows].count("subscription.renewed") == 1


async def test_an_order_that_a_card_pays_is_reported_by_its_readiness_alone(billing: BillingFixture) -> None:
    await insert_payment_method(billing.sessions)
    ordered, outcome = await start_first_period_with_card(billing)
    assert (await pay_by_card(billing, ordered, outcome)).paid
    assert await billing_reasons(billing, ordered.id) == ["order"]
    kinds = await notification_kinds(billing)
    assert (kinds.count("service_ready"), kinds.count("subscription_renewed")) == (1, 0)


async def test_trial_end_and_resumption_are_reasons(billing: BillingFixture) -> None:
    await top_up(billing, 1_000)
    ordered = await billing.create_active_subscription("trial")
    trial_end = billing.start_period_command(ordered, kind=PeriodKind.TRIAL_END)
    assert (await billing.billing_activities.start_period(trial_end)).paid
    paused = change_status_command(ordered, SubscriptionStatus.PAUSED)
    await billing.subscription_activities.change_status(paused)
    resumption = billing.start_period_command(
        ordered, kind=PeriodKind.RESUMPTION, start=ordered.period.end + timedelta(days=3)
    )
    assert (await billing.billing_activities.start_period(resumption)).paid
    assert await billing_reasons(billing, ordered.id) == ["trial_end", "resumption"]


async def test_a_plan_change_within_the_period_and_one_to_another_interval_differ(billing: BillingFixture) -> None:
    await top_up(billing, 50_000)
    ordered = await billing.create_active_subscription()
    upgrade = plan_change_command(ordered, "pro", PlanChangeMode.IMMEDIATE)
    assert not (await billing.billing_activities.change_plan(upgrade)).is_new_anchor
    switch = replace(
        plan_change_command(ordered, "pro-yearly"), plan_change_id="order_2", now=upgrade.now + timedelta(days=1)
    )
    assert (await billing.assert_idempotent(billing.billing_activities.change_plan, switch)).is_new_anchor
    assert await billing_reasons(billing, ordered.id) == ["order", "plan_change", "interval_change"]
