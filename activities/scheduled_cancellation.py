"""The cancellation at the end of the period: what its withdrawal and its restoration write."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from activities.formatting import format_date, timezone_or_utc
from db.queries.change_set import ChangeSet
from db.queries.locked_subscriptions import LockedSubscription
from db.queries.plan_changes import is_last_change, plan_change_reason

CANCELLATION_WITHDRAWN = "Scheduled cancellation withdrawn: the subscription continues."
CANCELLATION_WITHDRAWN_BY_PAUSE = "Scheduled cancellation withdrawn: the subscription is paused."
CANCELLATION_WITHDRAWN_BY_PLAN_CHANGE = "Scheduled cancellation withdrawn: the plan has changed."
CANCELLATION_WITHDRAWN_BY_SCHEDULED_CHANGE = "Scheduled cancellation withdrawn: a plan change is scheduled."

_FIELD = "cancel_at_period_end"


def drop_cancellation(
    changes: ChangeSet, subscription: LockedSubscription, reason: str, message: str
) -> dict[str, Any]:
    """Record that a cancellation at the end of the period does not happen; return the columns that change."""
    if not subscription.cancel_at_period_end:
        return {}
    changes.record_change(_FIELD, str(True), str(False), reason)
    changes.add_timeline_event("subscription.cancellation_withdrawn", message)
    return {_FIELD: False}


async def restore_cancellation(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    plan_change_id: str,
    period_end: datetime,
) -> dict[str, Any]:
    """Return the columns that restore the cancellation that the plan change withdrew; none if it withdrew none.

    Nothing is restored where the customer withdrew it as well after the plan change, or the status changed since: a
    pause withdraws a cancellation.

    Args:
        period_end: The end of the period that the rollback restores.
    """
    reason = plan_change_reason(plan_change_id)
    if not await is_last_change(session, subscription.id, fields=(_FIELD, "status"), reason=reason):
        return {}
    changes.record_change(_FIELD, str(False), str(True), "plan change undone")
    add_cancellation_scheduled(changes, subscription, period_end)
    return {_FIELD: True}


def add_cancellation_scheduled(
    changes: ChangeSet, subscription: LockedSubscription, period_end: datetime | None
) -> None:
    """Add the timeline event of a cancellation at the end of the period; None is the first period, not begun yet."""
    day = "the end of the first period"
    if period_end is not None:
        day = format_date(period_end, timezone_or_utc(subscription.timezone))
    changes.add_timeline_event("subscription.cancellation_scheduled", f"Cancellation scheduled for {day}.")
