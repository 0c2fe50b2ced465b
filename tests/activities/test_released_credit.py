"""Credit that was held beside a card that declined: the older debtor is signaled if there was any."""

from __future__ import annotations

from tests.support.billing_commands import (
    DAY,
    collect,
    create_past_due_subscriptions,
    payment_failure_command,
    plan_change_command,
    remove_cards,
    top_up,
)
from tests.support.billing_fixture import (
    ORDERED_AT,
    BillingFixture,
    insert_payment_method,
)
from workflows.ports.billing import RecordPaymentFailure
from workflows.rules.subscription import SubscriptionStatus


async def test_credit_that_a_failed_renewal_charge_releases_signals_the_older_debtor(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    renewed = await billing.create_active_subscription()
    (older,) = await create_past_due_subscriptions(billing, "starter")
    await top_up(billing, 400)
    await insert_payment_method(billing.sessions)
    start = billing.start_period_command(renewed, start=renewed.period.end + 10 * DAY)
    outcome = await billing.billing_activities.start_period(start)
    assert outcome.card_charge is not None
    assert await billing.balance("held") == 400
    await remove_cards(billing)
    await top_up(billing, 100)
    assert not (await collect(billing, older)).paid
    failure = payment_failure_command(renewed, outcome)
    for _ in range(2):
        failed = await billing.billing_activities.record_payment_failure(failure)
        assert (failed.state.status, failed.past_due_subscription_ids) == (SubscriptionStatus.PAST_DUE, [older.id])
    assert (await collect(billing, older)).paid


async def test_a_declined_plan_change_that_held_nothing_signals_no_subscription(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await create_past_due_subscriptions(billing, "starter")
    await insert_payment_method(billing.sessions)
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    assert await billing.balance("held") == 0
    failure = RecordPaymentFailure(
        subscription_id=ordered.id,
        invoice_id=changed.invoice_id or "",
        payment_id="pay_1",
        decline_code="stolen_card",
        next_retry_at=None,
        now=ORDERED_AT + 10 * DAY,
    )
    for _ in range(2):
        assert (await billing.billing_activities.record_payment_failure(failure)).past_due_subscription_ids == []
