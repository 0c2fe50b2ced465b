"""Notifications as their organization sees them. Read only: the dispatcher writes them."""

from __future__ import annotations

from sqlalchemy import exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.notifications import Notification


async def has_pending_notification(session: AsyncSession, organization_id: str) -> bool:
    """Return whether a message to this organization is due and not sent yet; later reminders do not count."""
    return bool(
        await session.scalar(
            select(
                exists().where(
                    Notification.organization_id == organization_id,
                    Notification.status.in_(("pending", "sending")),
                    or_(Notification.scheduled_for.is_(None), Notification.next_attempt_at <= func.now()),
                )
            )
        )
    )
