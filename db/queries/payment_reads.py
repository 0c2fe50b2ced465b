"""Payments, refunds and methods on file as their owners see them. Read only: the rows belong to workflows.

``organization_id`` None means every account's (administrators); row-level security stands below either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Integer, Select, and_, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.payments import Payment, Refund
from db.queries.pages import bind_place, follows_bound_place
from db.reads import PreparedQuery, RowReader, prepare


class PaymentDetails(NamedTuple):
    """A payment as far as the API returns it. Attributes: those of `Payment`."""

    id: str
    organization_id: str
    status: str
    amount_minor: int
    currency: str
    gateway: str
    purpose: str
    refunded_minor: int
    redirect_url: str | None
    decline_code: str | None
    payment_method_id: str | None
    subscription_id: str | None
    invoice_id: str | None
    created_at: datetime
    workflow_id: str


def payment_columns() -> tuple[Any, ...]:
    """Return the columns that make `PaymentDetails`."""
    return tuple(getattr(Payment, name) for name in PaymentDetails._fields)


def _select_payment(*, is_own: bool) -> Select[*tuple[Any, ...]]:
    query = select(*payment_columns())
    return query.where(Payment.organization_id == bindparam("organization_id")) if is_own else query


@cache
def _payment_by_id(*, is_own: bool) -> PreparedQuery[PaymentDetails]:
    return prepare(_select_payment(is_own=is_own).where(Payment.id == bindparam("id")), PaymentDetails)


@cache
def _payments_page(
    *, is_own: bool, is_after: bool, has_subscription: bool, has_status: bool
) -> PreparedQuery[PaymentDetails]:
    query = (
        _select_payment(is_own=is_own)
        .order_by(Payment.created_at.desc(), Payment.id.desc())
        .limit(bindparam("limit", type_=Integer))
    )
    if is_after:
        query = query.where(follows_bound_place(Payment.created_at, Payment.id))
    if has_subscription:
        query = query.where(Payment.subscription_id == bindparam("subscription_id"))
    if has_status:
        query = query.where(Payment.status == bindparam("status"))
    return prepare(query, PaymentDetails)


async def get_payment(reader: RowReader, identifier: str, organization_id: str | None) -> PaymentDetails | None:
    query = _payment_by_id(is_own=organization_id is not None)
    rows = await reader.fetch(query, {"id": identifier, "organization_id": organization_id})
    return rows[0] if rows else None


async def list_payments(
    reader: RowReader,
    organization_id: str | None,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    subscription_id: str | None = None,
    status: str | None = None,
) -> Sequence[PaymentDetails]:
    """Newest first; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = _payments_page(
        is_own=organization_id is not None,
        is_after=after is not None,
        has_subscription=subscription_id is not None,
        has_status=status is not None,
    )
    values = {
        "organization_id": organization_id,
        "limit": limit,
        **bind_place(after),
        "subscription_id": subscription_id,
        "status": status,
    }
    return await reader.fetch(query, values)


async def get_refund(session: AsyncSession, identifier: str) -> Refund | None:
    refund: Refund | None = await session.scalar(select(Refund).where(Refund.id == identifier))
    return refund


async def get_payment_with_refund(
    session: AsyncSession, payment_id: str, refund_id: str
) -> tuple[Payment, Refund | None] | None:
    """Return any organization's payment, with one of its refunds if that was requested before."""
    query = (
        select(Payment, Refund)
        .outerjoin(Refund, and_(Refund.payment_id == Payment.id, Refund.id == refund_id))
        .where(Payment.id == payment_id)
    )
    row = (await session.execute(query)).one_or_none()
    return None if row is None else (row[0], row[1])
