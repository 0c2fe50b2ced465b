"""Payments, refunds and methods on file as their owners see them. Read only: the rows belong to workflows.

``organization_id`` None means every account's (administrators); row-level security stands below either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.payments import Payment, PaymentMethod, Refund
from db.queries import payments


async def payment(session: AsyncSession, identifier: str, organization_id: str | None) -> Payment | None:
    query = select(Payment).where(Payment.id == identifier)
    if organization_id is not None:
        query = query.where(Payment.organization_id == organization_id)
    found: Payment | None = await session.scalar(query)
    return found


async def payments_of(
    session: AsyncSession,
    organization_id: str | None,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    invoice_id: str | None = None,
    subscription_id: str | None = None,
    status: str | None = None,
) -> Sequence[Payment]:
    """Newest first; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = select(Payment).order_by(Payment.created_at.desc(), Payment.id.desc()).limit(limit)
    if organization_id is not None:
        query = query.where(Payment.organization_id == organization_id)
    if after is not None:
        query = query.where(tuple_(Payment.created_at, Payment.id) < after)
    if invoice_id is not None:
        query = query.where(Payment.invoice_id == invoice_id)
    if subscription_id is not None:
        query = query.where(Payment.subscription_id == subscription_id)
    if status is not None:
        query = query.where(Payment.status == status)
    return (await session.scalars(query)).all()


async def refund(session: AsyncSession, identifier: str) -> Refund | None:
    found: Refund | None = await session.scalar(select(Refund).where(Refund.id == identifier))
    return found


async def make_default(session: AsyncSession, identifier: str, organization_id: str) -> PaymentMethod | None:
    """Make a card on file the one that is charged first; None when there is no such card.

    The one thing about a card that its owner sets directly: a preference, not a fact of a process.
    """
    await payments.serialise_methods(session, organization_id)
    found = await payments.method(session, identifier, organization_id)
    if found is None or found.is_default:
        return found
    mine = (PaymentMethod.organization_id == organization_id, PaymentMethod.detached_at.is_(None))
    await session.execute(update(PaymentMethod).where(*mine, PaymentMethod.is_default).values(is_default=False))
    await session.execute(update(PaymentMethod).where(*mine, PaymentMethod.id == identifier).values(is_default=True))
    await session.refresh(found)
    return found
