"""Changes the status of a locked subscription, inside the caller's transaction."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities import coupons
from activities.attempt_time import scheduled_at
from activities.formatting import format_date, timezone_or_utc
from activities.invoicing import add_invoice_paid_events
from activities.notification_context import notification_context, paid_fields
from activities.outcomes import committed_state
from activities.plan_change_records import add_scheduled_change
from activities.scheduled_cancellation import CANCELLATION_WITHDRAWN, drop_cancellation
from db.queries import invoices
from db.queries.change_set import ChangeSet
from db.queries.invoices import InvoiceSummary
from db.queries.locked_subscriptions import LockedSubscription
from workflows.ports.billing import BillingOutcome
from workflows.rules import dunning
from workflows.rules.invoice import BillingReason, InvoiceStatus
from workflows.rules.money import Money
from workflows.rules.notifications import NotificationKind
from workflows.rules.periods import Interval, billing_period
from workflows.rules.renewal import PeriodOutcome
from workflows.rules.subscription import (
    SubscriptionStatus,
    is_in_paid_period,
    transition,
    unpaid_period_violation,
)


def new_change_set(subscription: LockedSubscription, at: datetime, actor: str) -> ChangeSet:
    return ChangeSet(
        organization_id=subscription.organization_id,
        subscription_id=subscription.id,
        occurred_at=at,
        keyed_at=scheduled_at(at),
        actor=actor,
        run_id=run_id(),
    )


def run_id() -> str:
    """Return the id of the calling workflow run; part of every change record."""
    return activity.info().workflow_run_id or "" if activity.in_activity() else ""


def transition_subscription(
    changes: ChangeSet, subscription: LockedSubscription, state: SubscriptionStatus, reason: str, **columns: Any
) -> LockedSubscription:
    """Change the status and record the change. The current status is no transition.

    The end of a pause withdraws a cancellation at the end of the period.
    """
    if state is not subscription.status:
        transition(subscription.status, state)
        if state is SubscriptionStatus.ACTIVE and subscription.status is SubscriptionStatus.PAUSED:
            columns |= drop_cancellation(changes, subscription, reason, CANCELLATION_WITHDRAWN)
        changes.record_change("status", subscription.status.value, state.value, reason)
        columns["status"] = state.value
    if columns:
        changes.update_subscription(**columns)
    return replace(
        subscription, status=state, past_due_since=columns.get("past_due_since", subscription.past_due_since)
    )


def require_paid_period(subscription: LockedSubscription, now: datetime) -> None:
    """Check that there is a paid period at whose end the subscription can be cancelled.

    Hazard: the workflow that commanded it may not have the result yet of a renewal that nothing could pay.

    Raises:
        RuleViolation: ``ILLEGAL_MOVE``.
    """
    if not is_in_paid_period(subscription.status, subscription.period_end, now):
        raise unpaid_period_violation(subscription.status)


def pause_unpaid_trial(changes: ChangeSet, subscription: LockedSubscription) -> LockedSubscription:
    subscription = transition_subscription(
        changes, subscription, SubscriptionStatus.PAUSED, "trial ended without a payment method"
    )
    changes.void_reminders()
    changes.add_timeline_event(
        "subscription.paused", "Paused: the trial ended without a payment method. The data is retained."
    )
    changes.enqueue_notification(
        NotificationKind.SUBSCRIPTION_PAUSED, notification_context(subscription, reason="trial_ended")
    )
    return subscription


def mark_past_due(
    changes: ChangeSet, subscription: LockedSubscription, due_at: datetime, reason: str, **columns: Any
) -> LockedSubscription:
    """Mark the subscription past due since ``due_at``, plus the downtime of the platform."""
    first = dunning.past_due_since(due_at, changes.occurred_at)
    changes.void_reminders()
    changes.add_timeline_event("subscription.past_due", f"Past due: {reason}.")
    return transition_subscription(
        changes, subscription, SubscriptionStatus.PAST_DUE, reason, past_due_since=first, **columns
    )


async def record_period_paid(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    invoice: InvoiceSummary,
    *,
    as_billed: LockedSubscription | None = None,
    carried: Money | None = None,
) -> BillingOutcome:
    """Record that the invoice of a period is paid, and write ``changes``: the subscription is active from now on.

    Args:
        invoice: The invoice, open or a draft.
        as_billed: The subscription with the terms of the period that a draft starts. None if the invoice is open: its
            period has started with the terms on record.
        carried: The part of the total that became debt of the organization.
    """
    before, is_draft = subscription.status, invoice.status is InvoiceStatus.DRAFT
    columns: dict[str, Any] = {"past_due_since": None}
    period_end = subscription.period_end
    if is_draft:
        as_billed = as_billed or subscription
        invoice = await _move_late_resumption(session, changes, subscription, invoice, as_billed)
        columns |= await _drafted_period(session, changes, subscription, invoice, as_billed)
        subscription, period_end = as_billed, invoice.period_end
    subscription = transition_subscription(changes, subscription, SubscriptionStatus.ACTIVE, "invoice paid", **columns)
    if before is not SubscriptionStatus.ACTIVE and period_end is not None:
        changes.schedule_reminders(period_end)
    add_invoice_paid_events(changes, invoice.id, invoice.total, carried)
    # An order's invoice that a card pays after readiness is no renewal: "service ready" has reported it.
    if before is not SubscriptionStatus.ACTIVE or invoice.billing_reason is not BillingReason.ORDER:
        _add_receipt(changes, subscription, invoice, _RECOVERY_EVENTS.get(before, "renewed"), carried)
    number = await invoices.assign_invoice_number(session, changes.occurred_at) if is_draft else None
    await invoices.mark_paid(session, invoice.id, changes.occurred_at, number)
    await changes.write(session)
    return BillingOutcome(
        state=await committed_state(session, subscription, changes), result=PeriodOutcome.PAID, invoice_id=invoice.id
    )


async def _move_late_resumption(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    draft: InvoiceSummary,
    as_billed: LockedSubscription,
) -> InvoiceSummary:
    """Return the draft. If it ends a pause and was paid late, its period starts now: the instance did not run."""
    start = dunning.late_start(draft.period_start, changes.occurred_at)
    if subscription.status is not SubscriptionStatus.PAUSED or start == draft.period_start:
        return draft
    period = billing_period(start, 0, Interval(as_billed.interval), as_billed.timezone)
    await invoices.move_draft(session, draft.id, period)
    return replace(draft, period_start=period.start, period_end=period.end)


async def _drafted_period(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    draft: InvoiceSummary,
    as_billed: LockedSubscription,
) -> dict[str, Any]:
    """Add the scheduled plan change that takes effect, and return the columns of the period that a draft starts."""
    return {
        **add_scheduled_change(changes, subscription, as_billed),
        "billing_anchor": draft.period_start,
        "current_period_start": draft.period_start,
        "current_period_end": draft.period_end,
        **await coupons.redeem_coupon(session, as_billed),
    }


def _add_receipt(
    changes: ChangeSet, subscription: LockedSubscription, invoice: InvoiceSummary, kind: str, carried: Money | None
) -> None:
    """Add the timeline event and the mail of a period that is paid: ``renewed``, ``resumed`` or ``recovered``."""
    key = f"{kind}/{invoice.id}"
    context = notification_context(
        subscription,
        **paid_fields(invoice.total, carried),
        invoice_id=invoice.id,
        period_start=invoice.period_start,
        period_end=invoice.period_end,
        cancellation_withdrawn=kind == "resumed" and subscription.cancel_at_period_end,
    )
    message = period_message(kind, subscription, invoice.period_end)
    changes.add_timeline_event(f"subscription.{kind}", message, ref=invoice.id, dedup_key=key)
    changes.enqueue_notification(NotificationKind(f"subscription_{kind}"), context, dedup_key=key)


_RECOVERY_EVENTS = {
    SubscriptionStatus.PAST_DUE: "recovered",
    SubscriptionStatus.SUSPENDED: "recovered",
    SubscriptionStatus.PAUSED: "resumed",
}


def period_message(kind: str, subscription: LockedSubscription, period_end: datetime) -> str:
    """Return the timeline's message of a period that is paid: ``renewed``, ``resumed`` or ``recovered``."""
    day = format_date(period_end, timezone_or_utc(subscription.timezone))
    begin = {"renewed": "Renewed", "resumed": "Resumed", "recovered": "Active again: the invoice is paid"}[kind]
    return f"{begin}. The billing period ends on {day}."


_STATUS_MESSAGES = {
    SubscriptionStatus.CANCELLED: "Cancelled",
    SubscriptionStatus.EXPIRED: "Order expired",
    SubscriptionStatus.FAILED: "Order failed",
    SubscriptionStatus.PAUSED: "Paused",
    SubscriptionStatus.SUSPENDED: "Suspended",
    SubscriptionStatus.TERMINATED: "Deleted",
}


def status_message(status: SubscriptionStatus, reason: str) -> str:
    """Return the timeline's message of a status change; ``reason`` may be the customer's own text."""
    text = reason.strip().rstrip(".")
    return f"{_STATUS_MESSAGES[status]}: {text}." if text else f"{_STATUS_MESSAGES[status]}."
