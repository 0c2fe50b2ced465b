"""What a plan change writes to the subscription, the timeline and the outbox."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Unpack

from sqlalchemy.ext.asyncio import AsyncSession

from activities import coupons
from activities.formatting import format_date, timezone_or_utc
from activities.notification_context import ContextFields, notification_context
from activities.scheduled_cancellation import CANCELLATION_WITHDRAWN_BY_PLAN_CHANGE, drop_cancellation
from db.queries import locked_subscriptions
from db.queries.change_set import ChangeSet
from db.queries.locked_subscriptions import LockedSubscription
from db.queries.plan_changes import plan_change_reason
from workflows.ports.subscription import PlanTerms
from workflows.rules.notifications import NotificationKind
from workflows.rules.periods import BillingPeriod


async def apply_plan_change(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    terms: PlanTerms,
    name: str,
    plan_change_id: str,
    period: BillingPeriod | None,
    is_resized: bool,
    **extra: Unpack[ContextFields],
) -> None:
    """Add the new plan to ``changes``. It withdraws a scheduled cancellation or plan change.

    Args:
        period: The period that the change starts; None if the current one continues.
        is_resized: Whether a resize follows. What the change replaces is then recorded for its rollback.
        extra: Amounts and the invoice for the context of the notification.
    """
    if subscription.pending_plan_id is not None:
        changes.add_timeline_event(
            "subscription.plan_change_withdrawn", f"Scheduled plan change withdrawn: the plan changes to {name} now."
        )
    columns: dict[str, Any] = {
        "plan_id": terms.plan_id,
        "price_id": terms.price_id,
        "price_minor": terms.price.amount_minor,
        "pending_plan_id": None,
        **drop_cancellation(
            changes, subscription, plan_change_reason(plan_change_id), CANCELLATION_WITHDRAWN_BY_PLAN_CHANGE
        ),
    }
    if period is not None:
        columns |= {
            "billing_anchor": period.start,
            "current_period_start": period.start,
            "current_period_end": period.end,
            **await coupons.redeem_coupon_for_plan_change(session, changes, subscription, plan_change_id),
        }
        changes.void_reminders()
        changes.schedule_reminders(period.end)
    changes.update_subscription(**columns)
    extra["price"] = terms.price
    extra["next_charge_at"] = subscription.period_end if period is None else period.end
    extra["cancellation_withdrawn"] = subscription.cancel_at_period_end
    reason = plan_change_reason(plan_change_id)
    if is_resized:
        _record_replaced(changes, subscription, terms, period, reason)
    dedup_key = plan_change_dedup_key(plan_change_id)
    _add_plan_changed_events(changes, subscription, terms.plan_id, name, dedup_key, reason, **extra)


def _record_replaced(
    changes: ChangeSet, subscription: LockedSubscription, terms: PlanTerms, period: BillingPeriod | None, reason: str
) -> None:
    """Record what a rollback restores beside the plan; ``find_replaced_terms`` reads it."""
    anchor, start, end = subscription.billing_anchor, subscription.period_start, subscription.period_end
    if anchor is None or start is None or end is None:
        return
    new_anchor, new_start, new_end = (
        (anchor, start, end) if period is None else (period.start, period.start, period.end)
    )
    changes.record_change("price", subscription.price_id, terms.price_id, reason)
    changes.record_change("billing_anchor", anchor.isoformat(), new_anchor.isoformat(), reason)
    changes.record_change("current_period_start", start.isoformat(), new_start.isoformat(), reason)
    changes.record_change("current_period_end", end.isoformat(), new_end.isoformat(), reason)
    if subscription.pending_plan_id is not None:
        changes.record_change("pending_plan", subscription.pending_plan_id, None, reason)


async def with_period_terms(
    session: AsyncSession, subscription: LockedSubscription, terms: PlanTerms | None, at: datetime
) -> LockedSubscription:
    """Return the subscription with the terms of the period that starts; writes nothing."""
    if terms is None or terms.plan_id == subscription.plan_id:
        return subscription
    plan = await locked_subscriptions.get_plan_with_price(session, terms.plan_id, subscription.currency, at)
    return replace(
        subscription,
        plan_id=terms.plan_id,
        plan_code=terms.plan_code,
        plan_name=plan.name if plan is not None else terms.plan_code,
        price_id=terms.price_id,
        price=terms.price,
        interval=terms.interval.value,
    )


def add_scheduled_change(
    changes: ChangeSet, subscription: LockedSubscription, as_billed: LockedSubscription
) -> dict[str, Any]:
    """Add the events of a scheduled plan change that takes effect.

    Args:
        subscription: The subscription before the change.
        as_billed: The subscription with the terms of the period that starts.

    Returns:
        The columns to update; none when the plan stays.
    """
    if as_billed.plan_id == subscription.plan_id:
        return {}
    dedup_key = f"plan/{as_billed.plan_id}/{changes.keyed_at.isoformat()}"
    _add_plan_changed_events(
        changes, subscription, as_billed.plan_id, as_billed.plan_name, dedup_key, "plan change", price=as_billed.price
    )
    return {
        "plan_id": as_billed.plan_id,
        "price_id": as_billed.price_id,
        "price_minor": as_billed.price.amount_minor,
        "pending_plan_id": None,
    }


def add_plan_change_scheduled(
    changes: ChangeSet, subscription: LockedSubscription, plan_name: str, at: datetime | None
) -> None:
    """Add the timeline event of a plan change at the end of the period; None is a period without an end on record."""
    day = "the end of the billing period"
    if at is not None:
        day = format_date(at, timezone_or_utc(subscription.timezone))
    message = f"Plan change to {plan_name} scheduled for {day}."
    changes.add_timeline_event("subscription.plan_change_scheduled", message)


def plan_change_dedup_key(plan_change_id: str) -> str:
    return f"plan/{plan_change_id}"


def _add_plan_changed_events(
    changes: ChangeSet,
    subscription: LockedSubscription,
    plan_id: str,
    name: str,
    dedup_key: str,
    change_reason: str,
    **extra: Unpack[ContextFields],
) -> None:
    changes.record_change("plan", subscription.plan_id, plan_id, change_reason)
    changes.add_timeline_event("subscription.plan_changed", f"Plan changed to {name}.", dedup_key=dedup_key)
    changes.enqueue_notification(NotificationKind.PLAN_CHANGED, plan_changed_context(subscription, name, **extra))


def plan_changed_context(subscription: LockedSubscription, name: str, **extra: Unpack[ContextFields]) -> dict[str, Any]:
    extra["old_plan_name"] = subscription.plan_name
    return notification_context(replace(subscription, plan_name=name), **extra)
