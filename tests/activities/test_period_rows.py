"""What a period leaves in the rows: its anchor and reminders, what is past due, and nothing after the end."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from tests.support.billing_commands import (
    DAY,
    card_payment_command,
    change_status_command,
    collect_command,
    top_up,
    usd,
)
from tests.support.billing_fixture import BillingFixture, insert_payment_method
from workflows.rules.renewal import PeriodKind, PeriodOutcome
from workflows.rules.subscription import SubscriptionStatus


async def row(billing: BillingFixture, subscription_id: str) -> dict[str, object]:
    (subscription,) = await billing.query("SELECT * FROM subscriptions WHERE id = :id", id=subscription_id)
    return dict(subscription)


async def reminder_days(billing: BillingFixture, period_end: datetime | None) -> list[timedelta]:
    """Return how long before ``period_end`` its reminders are scheduled; those of other periods are left out."""
    assert period_end is not None
    rows = await billing.query(
        "SELECT scheduled_for FROM notifications WHERE kind = 'subscription_expiring' AND status = 'pending'"
        " AND template_context ->> 'due_at' = :due_at ORDER BY scheduled_for",
        due_at=period_end.isoformat(),
    )
    return [period_end - reminder["scheduled_for"] for reminder in rows]


async def test_a_recovered_subscription_is_past_due_since_no_time(billing: BillingFixture) -> None:
    ordered, outcome = await billing.create_past_due_subscription()
    assert (await row(billing, ordered.id))["past_due_since"] is not None
    await top_up(billing, 500)
    assert (await billing.billing_activities.collect_invoice(collect_command(ordered, outcome))).paid
    assert (await row(billing, ordered.id))["past_due_since"] is None


@pytest.mark.parametrize("by_card", [False, True])
@pytest.mark.parametrize("kind", [PeriodKind.TRIAL_END, PeriodKind.RESUMPTION])
async def test_a_period_after_a_trial_or_a_pause_is_anchored_at_its_start_and_schedules_its_reminders(
    billing: BillingFixture, kind: PeriodKind, by_card: bool
) -> None:
    if kind is PeriodKind.TRIAL_END:
        ordered = await billing.create_active_subscription("trial")
        start = ordered.period.end
    else:
        await top_up(billing, 500)
        ordered = await billing.create_active_subscription()
        await billing.subscription_activities.change_status(change_status_command(ordered, SubscriptionStatus.PAUSED))
        start = ordered.period.start + 12 * DAY
    if by_card:
        await insert_payment_method(billing.sessions)
    else:
        await top_up(billing, 500)
    outcome = await billing.billing_activities.start_period(
        billing.start_period_command(ordered, kind=kind, start=start)
    )
    if by_card:
        paid = replace(await card_payment_command(billing, ordered, outcome), now=start)
        outcome = await billing.billing_activities.apply_card_payment(paid)
    assert (outcome.paid, outcome.state.status) == (True, SubscriptionStatus.ACTIVE)
    written = await row(billing, ordered.id)
    assert (written["billing_anchor"], written["current_period_start"]) == (start, start)
    assert written["current_period_end"] == outcome.state.period_end
    assert await reminder_days(billing, outcome.state.period_end) == [7 * DAY, 3 * DAY, 1 * DAY]


@pytest.mark.parametrize("kind", list(PeriodKind))
async def test_no_period_starts_after_the_cancellation(billing: BillingFixture, kind: PeriodKind) -> None:
    await top_up(billing, 1000)
    ordered = await billing.create_active_subscription()
    await billing.subscription_activities.change_status(change_status_command(ordered, SubscriptionStatus.CANCELLED))
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered, kind=kind)
    )
    assert (outcome.result, outcome.state.status) == (PeriodOutcome.REFUSED, SubscriptionStatus.CANCELLED)
    assert len(await billing.invoices(ordered.id)) == 1
    assert await billing.balance() == usd(500).amount_minor
