"""A subscription's story."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.billing import TimelineEvent


async def timeline(
    session: AsyncSession, subscription_id: str, *, limit: int, after: tuple[datetime, int] | None = None
) -> Sequence[TimelineEvent]:
    """Oldest first, of a subscription that the caller was already found to own; ``after`` is the last ``(at, id)``."""
    query = (
        select(TimelineEvent)
        .where(TimelineEvent.subscription_id == subscription_id)
        .order_by(TimelineEvent.at, TimelineEvent.id)
        .limit(limit)
    )
    if after is not None:
        query = query.where(tuple_(TimelineEvent.at, TimelineEvent.id) > after)
    return (await session.scalars(query)).all()
