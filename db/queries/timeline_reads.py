"""Timeline of a subscription."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import NamedTuple

from sqlalchemy import Integer, and_, bindparam, select, tuple_

from db.models.subscriptions import Subscription, TimelineEvent
from db.reads import PreparedQuery, RowReader, prepare


class TimelineEventDetails(NamedTuple):
    """An event as far as the API returns it. Attributes: those of `TimelineEvent`."""

    id: int
    occurred_at: datetime
    kind: str
    message: str
    reference_id: str | None


@cache
def _events_page(*, is_after: bool) -> PreparedQuery[TimelineEventDetails]:
    """The outer join answers one row of nulls for a subscription that has no event."""
    is_event = TimelineEvent.subscription_id == Subscription.id
    if is_after:
        place = tuple_(
            bindparam("after_occurred_at", type_=TimelineEvent.occurred_at.type),
            bindparam("after_id", type_=TimelineEvent.id.type),
        )
        is_event = and_(is_event, tuple_(TimelineEvent.occurred_at, TimelineEvent.id) > place)
    query = (
        select(*(getattr(TimelineEvent, name) for name in TimelineEventDetails._fields))
        .select_from(Subscription)
        .outerjoin(TimelineEvent, is_event)
        .where(Subscription.id == bindparam("id"), Subscription.organization_id == bindparam("organization_id"))
        .order_by(TimelineEvent.occurred_at, TimelineEvent.id)
        .limit(bindparam("limit", type_=Integer))
    )
    return prepare(query, TimelineEventDetails)


async def list_timeline_events(
    reader: RowReader,
    subscription_id: str,
    organization_id: str,
    *,
    limit: int,
    after: tuple[datetime, int] | None = None,
) -> Sequence[TimelineEventDetails] | None:
    """Return the events of a subscription, oldest first, or None if the organization has no such subscription.

    Args:
        limit: The most events to return.
        after: ``(at, id)`` of the last event of the previous page.
    """
    occurred_at, event_id = after or (None, None)
    values = {
        "id": subscription_id,
        "organization_id": organization_id,
        "limit": limit,
        "after_occurred_at": occurred_at,
        "after_id": event_id,
    }
    rows = await reader.fetch(_events_page(is_after=after is not None), values)
    return [row for row in rows if row.id] if rows else None
