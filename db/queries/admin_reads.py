"""Lists across all organizations. Row-level security returns them to administrators only.

Each is newest first; ``after`` is the ``(created_at, id)`` of the last one seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.identity import AuditEntry, Organization, User

PageCursor = tuple[datetime, str] | None


async def list_users(
    session: AsyncSession, *, limit: int, after: PageCursor = None, email: str | None = None
) -> Sequence[User]:
    """``email`` is a part of the address, in any case."""
    query = select(User).order_by(User.created_at.desc(), User.id.desc()).limit(limit)
    if after is not None:
        query = query.where(tuple_(User.created_at, User.id) < after)
    if email is not None:
        query = query.where(User.email.icontains(email, autoescape=True))
    return (await session.scalars(query)).all()


async def list_organizations(session: AsyncSession, *, limit: int, after: PageCursor = None) -> Sequence[Organization]:
    query = select(Organization).order_by(Organization.created_at.desc(), Organization.id.desc()).limit(limit)
    if after is not None:
        query = query.where(tuple_(Organization.created_at, Organization.id) < after)
    return (await session.scalars(query)).all()


async def list_audit_entries(
    session: AsyncSession,
    *,
    limit: int,
    after: int | None = None,
    organization_id: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    object: str | None = None,
) -> Sequence[AuditEntry]:
    """Newest first; ``after`` is the id of the last one seen."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if after is not None:
        query = query.where(AuditEntry.id < after)
    if organization_id is not None:
        query = query.where(AuditEntry.organization_id == organization_id)
    if actor is not None:
        query = query.where(AuditEntry.actor == actor)
    if action is not None:
        query = query.where(AuditEntry.action == action)
    if object is not None:
        query = query.where(AuditEntry.object_id == object)
    return (await session.scalars(query)).all()
