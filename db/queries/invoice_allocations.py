"""Invoice allocations as billing activities read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from db.models.invoices import Invoice, InvoiceAllocation, PlanChangeCredit
from workflows.rules.allocations import Allocation, AllocationSource, CarriedDebt, InvoiceBalance
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import Money


@dataclass(frozen=True, slots=True, kw_only=True)
class ReversedPart:
    """A part of a payment that a refund took from an invoice. ``amount`` is positive."""

    invoice_id: str
    is_invoice_void: bool
    amount: Money


async def list_allocations(session: AsyncSession, invoice_id: str) -> tuple[Allocation, ...]:
    """Return the allocations of an invoice and their reversals, oldest first."""
    return (await list_allocations_by_invoice(session, [invoice_id])).get(invoice_id, ())


async def list_allocations_by_invoice(
    session: AsyncSession, invoice_ids: Sequence[str]
) -> dict[str, tuple[Allocation, ...]]:
    """Return the allocations of each invoice that has any, oldest first."""
    rows = await session.scalars(
        select(InvoiceAllocation)
        .where(InvoiceAllocation.invoice_id.in_(invoice_ids))
        .order_by(InvoiceAllocation.allocated_at, InvoiceAllocation.id)
    )
    allocations: dict[str, tuple[Allocation, ...]] = {}
    for row in rows:
        allocations[row.invoice_id] = (*allocations.get(row.invoice_id, ()), _to_allocation(row))
    return allocations


async def list_carried_debt(session: AsyncSession, organization_id: str, currency: str) -> list[CarriedDebt]:
    """Return the carried debt of an organization that is not paid yet, the oldest first."""
    reversal = aliased(InvoiceAllocation)
    remaining = InvoiceAllocation.amount_minor + func.coalesce(
        select(func.sum(reversal.amount_minor)).where(reversal.reverses_id == InvoiceAllocation.id).scalar_subquery(), 0
    )
    rows = await session.execute(
        select(InvoiceAllocation.invoice_id, InvoiceAllocation.id, remaining)
        .where(
            InvoiceAllocation.organization_id == organization_id,
            InvoiceAllocation.currency == currency,
            InvoiceAllocation.source == AllocationSource.DEBT.value,
            InvoiceAllocation.reverses_id.is_(None),
            remaining > 0,
        )
        .order_by(InvoiceAllocation.allocated_at, InvoiceAllocation.id)
    )
    return [
        CarriedDebt(
            invoice_id=invoice_id,
            allocation_id=allocation_id,
            amount=Money(amount_minor=int(amount_minor), currency=currency),
        )
        for invoice_id, allocation_id, amount_minor in rows
    ]


async def list_invoice_balances(
    session: AsyncSession, subscription_id: str, start: datetime, end: datetime
) -> dict[str, InvoiceBalance]:
    """Return the paid invoices of the period ``[start, end)``, plan changes in it included, the oldest first."""
    rows = (
        await session.execute(
            select(Invoice.id, Invoice.currency, Invoice.total_minor, Invoice.refunded_minor)
            .where(
                Invoice.subscription_id == subscription_id,
                Invoice.status == InvoiceStatus.PAID.value,
                Invoice.period_start >= start,
                Invoice.period_start < end,
            )
            .order_by(Invoice.created_at, Invoice.id)
        )
    ).all()
    allocations = await list_allocations_by_invoice(session, [row.id for row in rows])
    credited = await _credited_by_invoice(session, [row.id for row in rows])
    return {
        row.id: InvoiceBalance(
            total=Money(amount_minor=row.total_minor, currency=row.currency),
            refunded=Money(amount_minor=row.refunded_minor, currency=row.currency),
            credited=Money(amount_minor=credited.get(row.id, 0), currency=row.currency),
            allocations=allocations.get(row.id, ()),
        )
        for row in rows
    }


async def get_invoice_balance(session: AsyncSession, invoice_id: str) -> InvoiceBalance:
    """Return an invoice with everything that was allocated to it and credited for it.

    Raises:
        NoResultFound: There is no such invoice.
    """
    invoice = await session.get_one(Invoice, invoice_id)
    return InvoiceBalance(
        total=Money(amount_minor=invoice.total_minor, currency=invoice.currency),
        refunded=Money(amount_minor=invoice.refunded_minor, currency=invoice.currency),
        credited=Money(
            amount_minor=(await _credited_by_invoice(session, [invoice_id])).get(invoice_id, 0),
            currency=invoice.currency,
        ),
        allocations=await list_allocations(session, invoice_id),
    )


async def list_plan_change_credits(session: AsyncSession, plan_change_id: str) -> list[tuple[str, Money]]:
    """Return the credit that a plan change gave and did not take back, per invoice."""
    amount = func.sum(PlanChangeCredit.amount_minor)
    rows = await session.execute(
        select(PlanChangeCredit.invoice_id, PlanChangeCredit.currency, amount)
        .where(PlanChangeCredit.plan_change_id == plan_change_id)
        .group_by(PlanChangeCredit.invoice_id, PlanChangeCredit.currency)
        .having(amount > 0)
        .order_by(PlanChangeCredit.invoice_id)
    )
    return [
        (invoice_id, Money(amount_minor=int(amount_minor), currency=currency))
        for invoice_id, currency, amount_minor in rows
    ]


async def _credited_by_invoice(session: AsyncSession, invoice_ids: Sequence[str]) -> dict[str, int]:
    rows = await session.execute(
        select(PlanChangeCredit.invoice_id, func.sum(PlanChangeCredit.amount_minor))
        .where(PlanChangeCredit.invoice_id.in_(invoice_ids))
        .group_by(PlanChangeCredit.invoice_id)
    )
    return {invoice_id: int(amount_minor) for invoice_id, amount_minor in rows}


async def has_allocations(session: AsyncSession, payment_id: str) -> bool:
    """Return whether a payment has paid an invoice, wholly or in part."""
    statement = select(select(InvoiceAllocation.id).where(InvoiceAllocation.payment_id == payment_id).exists())
    return bool(await session.scalar(statement))


async def list_invoices_of_payment(session: AsyncSession, payment_id: str) -> list[str]:
    """Return the ids of the invoices that a payment has paid, wholly or in part, the newest first.

    The invoices are locked until the transaction ends.
    """
    paid = select(InvoiceAllocation.invoice_id).where(InvoiceAllocation.payment_id == payment_id)
    rows = await session.scalars(
        select(Invoice.id)
        .where(Invoice.id.in_(paid))
        .order_by(Invoice.created_at.desc(), Invoice.id.desc())
        .with_for_update(key_share=True)
    )
    return list(rows)


async def list_reversals_of_transaction(session: AsyncSession, transaction_id: str) -> list[ReversedPart]:
    """Return what a ledger transaction took from invoices, with the present status of each invoice."""
    rows = await session.execute(
        select(Invoice.id, Invoice.status, InvoiceAllocation.currency, InvoiceAllocation.amount_minor)
        .join(Invoice, Invoice.id == InvoiceAllocation.invoice_id)
        .where(InvoiceAllocation.ledger_transaction_id == transaction_id, InvoiceAllocation.reverses_id.is_not(None))
        .order_by(InvoiceAllocation.id)
        .with_for_update(of=Invoice, key_share=True)
    )
    return [
        ReversedPart(
            invoice_id=invoice_id,
            is_invoice_void=status == InvoiceStatus.VOID,
            amount=Money(amount_minor=-amount_minor, currency=currency),
        )
        for invoice_id, status, currency, amount_minor in rows
    ]


async def add_refunded_amount(session: AsyncSession, invoice_id: str, amount: Money) -> None:
    """Add to what was refunded of an invoice; a negative ``amount`` is a refund that failed."""
    await session.execute(
        update(Invoice)
        .where(Invoice.id == invoice_id)
        .values(refunded_minor=Invoice.refunded_minor + amount.amount_minor)
    )


def _to_allocation(row: InvoiceAllocation) -> Allocation:
    return Allocation(
        id=row.id,
        source=AllocationSource(row.source),
        amount=Money(amount_minor=row.amount_minor, currency=row.currency),
        payment_id=row.payment_id,
        credit_note_id=row.credit_note_id,
        reverses=row.reverses_id,
    )
