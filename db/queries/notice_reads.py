"""Notices as their account sees them. Read only: the dispatcher owns them."""

from __future__ import annotations

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.notifications import Notification


async def is_waiting(session: AsyncSession, organization_id: str) -> bool:
    """Whether a message to this account is still to be sent."""
    return bool(
        await session.scalar(
            select(
                exists().where(
                    Notification.organization_id == organization_id, Notification.status.in_(("pending", "sending"))
                )
            )
        )
    )
