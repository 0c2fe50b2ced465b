"""The first period: a trial or a first invoice, once the instance is ready."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from activities import coupons
from activities.attempt_time import attempt_delay
from activities.explanations import build_explanation
from activities.formatting import format_date, timezone_or_utc
from activities.holds import agreed_card_charge, capture_hold, held_credit
from activities.invoice_allocations import allocate, hold_parts
from activities.invoicing import add_invoice, add_invoice_paid_events, line_description, post_invoice_transaction
from activities.notification_context import notification_context, paid_fields
from activities.outcomes import billing_outcome, replay_result
from activities.periods import build_period_invoice, find_keyed_invoice
from activities.subscription_transitions import new_change_set, transition_subscription
from db.queries.change_set import ChangeSet
from db.queries.locked_subscriptions import LockedSubscription, begin_with_locked_subscription
from workflows.ports.billing import BillingOutcome, StartFirstPeriod
from workflows.ports.subscription import PLATFORM_ACTOR
from workflows.rules import ledger
from workflows.rules.allocations import AllocationSource, SourcePart
from workflows.rules.hold_keys import ORDER_HOLD
from workflows.rules.invoice import BillingReason, InvoiceStatus
from workflows.rules.money import zero_money
from workflows.rules.notifications import NotificationKind
from workflows.rules.periods import Interval, add_calendar_days, billing_period
from workflows.rules.subscription import SubscriptionStatus


async def start_first_period(session: AsyncSession, command: StartFirstPeriod) -> BillingOutcome:
    """Start the first period or the trial of an order whose instance is ready, and commit it.

    Nothing says that the instance is ready before this is committed: a late attempt starts the period late.
    """
    subscription = await begin_with_locked_subscription(session, command.subscription_id)
    if subscription.status is not SubscriptionStatus.PROVISIONING:
        existing = await find_keyed_invoice(session, subscription, command.period_start)
        return await replay_result(session, subscription, existing, captured_hold=ORDER_HOLD)
    changes = new_change_set(subscription, command.now, PLATFORM_ACTOR)
    start = command.period_start + attempt_delay()
    message = f"{subscription.service_name} is ready: https://{subscription.hostname}"
    changes.add_timeline_event("instance.ready", message, ref=subscription.instance_id)
    if command.trial_days:
        return await _start_trial(session, changes, subscription, start, command.trial_days)
    return await _invoice_first_period(session, changes, subscription, start, command)


async def _start_trial(
    session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription, start: datetime, trial_days: int
) -> BillingOutcome:
    end = add_calendar_days(start, trial_days, subscription.timezone)
    subscription = transition_subscription(
        changes,
        subscription,
        SubscriptionStatus.TRIALING,
        "the instance is ready",
        billing_anchor=start,
        current_period_start=start,
        current_period_end=end,
        trial_end=end,
    )
    changes.schedule_reminders(end)
    day = format_date(end, timezone_or_utc(subscription.timezone))
    changes.add_timeline_event("subscription.activated", f"Trial started; it ends on {day}.")
    context = notification_context(subscription, trial_end=end, instance_id=subscription.instance_id)
    changes.enqueue_notification(NotificationKind.SERVICE_READY, context)
    outcome = await billing_outcome(session, subscription, None, changes)
    await changes.write_and_commit(session)
    return outcome


async def _invoice_first_period(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    start: datetime,
    command: StartFirstPeriod,
) -> BillingOutcome:
    """Finalize the first invoice and pay it as agreed at the order.

    Held credit pays now, and the authorized card when it is captured. What neither was agreed to pay is below the
    minimum of the gateway and is carried.
    """
    period = billing_period(start, 0, Interval(subscription.interval), subscription.timezone)
    draft = build_period_invoice(subscription, period, BillingReason.ORDER, keyed_at=command.period_start)
    held, zero = await capture_hold(session, subscription), zero_money(subscription.currency)
    card = agreed_card_charge(held)
    paid = min(held_credit(held, subscription.currency), draft.total)
    unpaid = draft.total - paid
    due, carried = (unpaid, zero) if card is not None else (zero, unpaid)
    subscription = transition_subscription(
        changes,
        subscription,
        SubscriptionStatus.ACTIVE,
        "the instance is ready",
        billing_anchor=period.start,
        current_period_start=period.start,
        current_period_end=period.end,
        **await coupons.redeem_coupon(session, subscription),
    )
    description = line_description(subscription)
    if due:
        await post_invoice_transaction(session, changes, draft, description, None)
    if paid or carried:
        post = (
            ledger.collection_transaction(promotional=zero, wallet=zero, held=paid)
            if due
            else ledger.paid_invoice_transaction(
                promotional=zero, wallet=zero, held=paid, tax=draft.tax, carried=carried
            )
        )
        transaction_id = changes.add_ledger_transaction(
            post, key=f"paid/{draft.id}/held", description=description, ref=draft.id
        )
        parts = (*hold_parts(held), SourcePart(source=AllocationSource.DEBT, amount=carried))
        await allocate(session, changes, draft.id, parts, paid + carried, transaction_id=transaction_id)
    changes.schedule_reminders(period.end)
    changes.add_timeline_event("subscription.activated", "First billing period started.", ref=draft.id)
    if not due:
        add_invoice_paid_events(changes, draft.id, draft.total, carried)
    context = notification_context(
        subscription,
        **paid_fields(draft.total, carried),
        period_start=period.start,
        period_end=period.end,
        invoice_id=draft.id,
        instance_id=subscription.instance_id,
    )
    changes.enqueue_notification(NotificationKind.SERVICE_READY, context)
    invoice = add_invoice(
        changes,
        subscription,
        draft,
        status=InvoiceStatus.OPEN if due else InvoiceStatus.PAID,
        due=due,
        explanation=build_explanation(subscription, draft.lines),
    )
    outcome = await billing_outcome(session, subscription, invoice, changes, card=card)
    await changes.write_and_commit(session)
    return outcome
