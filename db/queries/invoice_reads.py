"""Invoices as their owners see them. Read only: the rows belong to workflows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Integer, Select, Text, bindparam, cast, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.invoices import Invoice, InvoiceLine
from db.models.payments import Payment
from db.queries.invoice_sources import invoice_sources, parse_invoice_sources, payment_ids_of_invoice
from db.queries.pages import bind_place, follows_bound_place
from db.queries.payment_reads import PaymentDetails, payment_columns
from db.reads import PreparedQuery, RowReader, prepare
from workflows.rules.invoice import InvoiceSource


class InvoiceLineDetails(NamedTuple):
    """A line as far as the API returns it. Attributes: those of `InvoiceLine`."""

    description: str
    quantity: int
    unit_price_minor: int
    discount_minor: int
    tax_minor: int
    amount_minor: int
    period_start: datetime
    period_end: datetime


class InvoiceDetails(NamedTuple):
    """An invoice as far as the API returns it. Attributes: those of `Invoice`; ``lines_json`` is read by ``lines``."""

    id: str
    number: str | None
    status: str
    billing_reason: str
    subscription_id: str
    finalized_at: datetime | None
    paid_at: datetime | None
    period_start: datetime
    period_end: datetime
    currency: str
    subtotal_minor: int
    tax_minor: int
    total_minor: int
    amount_due_minor: int
    created_at: datetime
    explanation: dict[str, Any]
    lines_json: str | None

    @property
    def lines(self) -> list[InvoiceLineDetails]:
        """The lines in their order."""
        return [
            InvoiceLineDetails._make((*values, datetime.fromisoformat(start), datetime.fromisoformat(end)))
            for *values, start, end in orjson.loads(self.lines_json or "[]")
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceWithPayments:
    """An invoice, what paid it, and every payment that was tried for it or paid a part of it."""

    invoice: InvoiceDetails
    sources: tuple[InvoiceSource, ...]
    payments: tuple[PaymentDetails, ...]


def _invoice_columns() -> tuple[Any, ...]:
    """Return the columns that make `InvoiceDetails`."""
    line = func.jsonb_build_array(*(getattr(InvoiceLine, name) for name in InvoiceLineDetails._fields))
    lines = (
        select(cast(func.jsonb_agg(aggregate_order_by(line, InvoiceLine.position)), Text))
        .where(InvoiceLine.invoice_id == Invoice.id)
        .scalar_subquery()
        .label("lines_json")
    )
    return (*(getattr(Invoice, name) for name in InvoiceDetails._fields[:-1]), lines)


def _select_invoice() -> Select[*tuple[Any, ...]]:
    return select(*_invoice_columns()).where(Invoice.organization_id == bindparam("organization_id"))


@cache
def _invoice_by_id() -> PreparedQuery[InvoiceDetails]:
    return prepare(_select_invoice().where(Invoice.id == bindparam("id")), InvoiceDetails)


@cache
def _invoices_page(*, is_after: bool, has_subscription: bool, has_status: bool) -> PreparedQuery[InvoiceDetails]:
    query = (
        _select_invoice()
        .order_by(Invoice.created_at.desc(), Invoice.id.desc())
        .limit(bindparam("limit", type_=Integer))
    )
    if is_after:
        query = query.where(follows_bound_place(Invoice.created_at, Invoice.id))
    if has_subscription:
        query = query.where(Invoice.subscription_id == bindparam("subscription_id"))
    if has_status:
        query = query.where(Invoice.status == bindparam("status"))
    return prepare(query, InvoiceDetails)


async def list_invoices(
    reader: RowReader,
    organization_id: str,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    subscription_id: str | None = None,
    status: str | None = None,
) -> Sequence[InvoiceDetails]:
    """Newest first; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = _invoices_page(
        is_after=after is not None, has_subscription=subscription_id is not None, has_status=status is not None
    )
    values = {
        "organization_id": organization_id,
        "limit": limit,
        **bind_place(after),
        "subscription_id": subscription_id,
        "status": status,
    }
    return await reader.fetch(query, values)


async def get_invoice(reader: RowReader, identifier: str, organization_id: str) -> InvoiceDetails | None:
    """Return the organization's invoice with this id."""
    rows = await reader.fetch(_invoice_by_id(), {"id": identifier, "organization_id": organization_id})
    return rows[0] if rows else None


async def get_invoice_with_payments(
    session: AsyncSession, identifier: str, organization_id: str, *, limit: int
) -> InvoiceWithPayments | None:
    """Return an invoice, what paid it, and at most ``limit`` of its payments, newest first."""
    columns = _invoice_columns()
    query = (
        select(*columns, invoice_sources(identifier), *payment_columns())
        .select_from(Invoice)
        .outerjoin(Payment, Payment.id.in_(payment_ids_of_invoice(identifier)))
        .where(Invoice.id == identifier, Invoice.organization_id == organization_id)
        .order_by(Payment.created_at.desc(), Payment.id.desc())
        .limit(limit)
    )
    rows = (await session.execute(query)).all()
    if not rows:
        return None
    payments = (PaymentDetails(*row[len(columns) + 1 :]) for row in rows)
    return InvoiceWithPayments(
        invoice=InvoiceDetails(*rows[0][: len(columns)]),
        sources=parse_invoice_sources(rows[0][len(columns)]),
        # The outer join answers one row of nulls for an invoice that has no payment.
        payments=tuple(payment for payment in payments if payment.id),
    )
