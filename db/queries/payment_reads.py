"""Payments, refunds and methods on file as their owners see them. Read only: the rows belong to workflows.

``organization_id`` None means every account's (administrators); row-level security stands below either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.payments import Payment, Refund


async def get_payment(session: AsyncSession, identifier: str, organization_id: str | None) -> Payment | None:
    query = select(Payment).where(Payment.id == identifier)
    if organization_id is not None:
        query = query.where(Payment.organization_id == organization_id)
    payment: Payment | None = await session.scalar(query)
    return payment


async def list_payments(
    session: AsyncSession,
    organization_id: str | None,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    subscription_id: str | None = None,
    status: str | None = None,
) -> Sequence[Payment]:
    """Newest first; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = select(Payment).order_by(Payment.created_at.desc(), Payment.id.desc()).limit(limit)
    if organization_id is not None:
        query = query.where(Payment.organization_id == organization_id)
    if after is not None:
        query = query.where(tuple_(Payment.created_at, Payment.id) < after)
    if subscription_id is not None:
        query = query.where(Payment.subscription_id == subscription_id)
    if status is not None:
        query = query.where(Payment.status == status)
    return (await session.scalars(query)).all()


async def get_refund(session: AsyncSession, identifier: str) -> Refund | None:
    refund: Refund | None = await session.scalar(select(Refund).where(Refund.id == identifier))
    return refund
