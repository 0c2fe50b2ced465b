"""Timeline of a subscription."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import and_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.subscriptions import Subscription, TimelineEvent


async def list_timeline_events(
    session: AsyncSession,
    subscription_id: str,
    organization_id: str,
    *,
    limit: int,
    after: tuple[datetime, int] | None = None,
) -> Sequence[TimelineEvent] | None:
    """Return the events of a subscription, oldest first, or None if the organization has no such subscription.

    Args:
        limit: The most events to return.
        after: ``(at, id)`` of the last event of the previous page.
    """
    is_event = TimelineEvent.subscription_id == Subscription.id
    if after is not None:
        is_event = and_(is_event, tuple_(TimelineEvent.occurred_at, TimelineEvent.id) > after)
    query = (
        select(Subscription.id, TimelineEvent)
        .outerjoin(TimelineEvent, is_event)
        .where(Subscription.id == subscription_id, Subscription.organization_id == organization_id)
        .order_by(TimelineEvent.occurred_at, TimelineEvent.id)
        .limit(limit)
    )
    # The outer join answers one row without an event for a subscription that has none.
    events: list[TimelineEvent | None] = [event for _, event in await session.execute(query)]
    return [event for event in events if event is not None] if events else None
