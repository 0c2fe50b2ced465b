"""What paid an invoice, from its allocations: the only query of it, for the PDF, the mails and ``GET …/explain``."""

from __future__ import annotations

import orjson
from sqlalchemy import ScalarSelect, Select, Text, cast, func, select, union
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.invoices import InvoiceAllocation
from db.models.ledger import LedgerTransactionRow
from db.models.payments import Payment, PaymentMethod
from workflows.rules.allocations import AllocationSource
from workflows.rules.invoice import InvoiceSource
from workflows.rules.money import Money


def invoice_sources(invoice_id: str) -> ScalarSelect[str]:
    """Return the expression of what paid an invoice, oldest first, as the JSON that ``parse_invoice_sources`` reads."""
    sums = (
        select(
            InvoiceAllocation.source,
            InvoiceAllocation.payment_id,
            InvoiceAllocation.currency,
            func.sum(InvoiceAllocation.amount_minor).label("amount_minor"),
            func.min(InvoiceAllocation.allocated_at).label("allocated_at"),
        )
        .where(InvoiceAllocation.invoice_id == invoice_id)
        .group_by(InvoiceAllocation.source, InvoiceAllocation.payment_id, InvoiceAllocation.currency)
        .subquery()
    )
    columns = {
        "source": sums.c.source,
        "payment_id": sums.c.payment_id,
        "currency": sums.c.currency,
        "amount_minor": sums.c.amount_minor,
        "brand": PaymentMethod.brand,
        "last4": PaymentMethod.last4,
    }
    row = func.jsonb_build_object(*(part for column in columns.items() for part in column))
    ordered = aggregate_order_by(row, sums.c.allocated_at, sums.c.source, sums.c.payment_id)
    return (
        select(cast(func.jsonb_agg(ordered), Text))
        .select_from(sums)
        .outerjoin(Payment, Payment.id == sums.c.payment_id)
        .outerjoin(PaymentMethod, PaymentMethod.id == Payment.payment_method_id)
        .scalar_subquery()
    )


def parse_invoice_sources(stored: str | None) -> tuple[InvoiceSource, ...]:
    """Return the value of ``invoice_sources``; the database returns None for an invoice without allocations."""
    return tuple(
        InvoiceSource(
            source=AllocationSource(row["source"]),
            amount=Money(amount_minor=row["amount_minor"], currency=row["currency"]),
            payment_id=row["payment_id"],
            card=f"{row['brand'].title()} ending in {row['last4']}" if row["brand"] else None,
        )
        for row in orjson.loads(stored or "[]")
    )


async def list_invoice_sources(session: AsyncSession, invoice_id: str) -> tuple[InvoiceSource, ...]:
    """Return what paid an invoice, oldest first, with an amount of zero where it was all returned."""
    return parse_invoice_sources(await session.scalar(select(invoice_sources(invoice_id))))


async def get_debt_paid_with(session: AsyncSession, invoice_id: str, currency: str) -> Money:
    """Return the carried debt of other invoices that was paid in the transactions that paid an invoice."""
    paid_in = select(InvoiceAllocation.ledger_transaction_id).where(InvoiceAllocation.invoice_id == invoice_id)
    amount_minor = await session.scalar(
        select(-func.sum(InvoiceAllocation.amount_minor))
        .join(LedgerTransactionRow, LedgerTransactionRow.id == InvoiceAllocation.ledger_transaction_id)
        .where(
            InvoiceAllocation.ledger_transaction_id.in_(paid_in),
            InvoiceAllocation.source == AllocationSource.DEBT.value,
            InvoiceAllocation.reverses_id.is_not(None),
            InvoiceAllocation.invoice_id != invoice_id,
            # A transaction that pays several debts is of one invoice.
            LedgerTransactionRow.reference_id == invoice_id,
        )
    )
    return Money(amount_minor=int(amount_minor or 0), currency=currency)


def payment_ids_of_invoice(invoice_id: str) -> Select[tuple[str]]:
    """Return the query of the payments that were made for an invoice or paid a part of it.

    The payment of an order precedes its invoice, so only an allocation says which invoice it paid.
    """
    made_for = select(Payment.id).where(Payment.invoice_id == invoice_id)
    paid = select(InvoiceAllocation.payment_id).where(
        InvoiceAllocation.invoice_id == invoice_id, InvoiceAllocation.payment_id.is_not(None)
    )
    ids = union(made_for, paid).subquery()
    return select(ids.c.id)
