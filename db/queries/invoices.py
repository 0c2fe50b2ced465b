"""Invoices as their owning workflow writes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import Money

ISSUER = "BERTH"


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceRecord:
    id: str
    kind: str
    status: InvoiceStatus
    total: Money
    tax: Money
    due: Money
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRecord:
    id: int
    purpose: str
    wallet: Money
    promotional: Money

    @property
    def total(self) -> Money:
        return self.wallet + self.promotional


_COLUMNS = "id, kind, status, currency, total_minor, tax_minor, amount_due_minor, period_start, period_end"

DRAW = """
INSERT INTO invoice_series (issuer, year, last)
    SELECT CAST(:issuer AS text), CAST(:year AS bigint), 1 WHERE CAST(:drawn AS boolean)
    ON CONFLICT (issuer, year) DO UPDATE SET last = invoice_series.last + 1
    RETURNING issuer || '-' || year || '-' || lpad(last::text, greatest(6, length(last::text)), '0') AS number
"""
"""Draws the year's next number and prints it: issuer, year, and a sequence without gaps."""


def drawn_at(at: datetime, *, wanted: bool = True) -> dict[str, Any]:
    """Return the parameters of ``DRAW``."""
    return {"issuer": ISSUER, "year": at.year, "drawn": wanted}


async def draw_number(session: AsyncSession, at: datetime) -> str:
    """Draw the next number of the year. The series stays locked until the commit, so call it as late as possible."""
    return str((await session.execute(text(DRAW), drawn_at(at))).scalar_one())


async def find(session: AsyncSession, invoice_id: str) -> InvoiceRecord | None:
    row = (
        (await session.execute(text(f"SELECT {_COLUMNS} FROM invoices WHERE id = :id FOR UPDATE"), {"id": invoice_id}))
        .mappings()
        .one_or_none()
    )
    return None if row is None else _invoice(row)


async def find_period(session: AsyncSession, subscription_id: str, period_start: datetime) -> InvoiceRecord | None:
    """Return the one invoice of a period that is not void, if it was written already."""
    statement = text(
        f"SELECT {_COLUMNS} FROM invoices WHERE subscription_id = :id AND period_start = :start"
        " AND kind = 'period' AND status <> 'void'"
    )
    row = (await session.execute(statement, {"id": subscription_id, "start": period_start})).mappings().one_or_none()
    return None if row is None else _invoice(row)


async def open_invoices(session: AsyncSession, subscription_id: str) -> list[InvoiceRecord]:
    statement = text(
        f"SELECT {_COLUMNS} FROM invoices WHERE subscription_id = :id AND status = 'open' ORDER BY issued_at FOR UPDATE"
    )
    return [_invoice(row) for row in (await session.execute(statement, {"id": subscription_id})).mappings()]


async def find_order(session: AsyncSession, order_id: str) -> InvoiceRecord | None:
    """Return the invoice that a plan change's order wrote, if it did."""
    row = (
        (await session.execute(text(f"SELECT {_COLUMNS} FROM invoices WHERE order_id = :id"), {"id": order_id}))
        .mappings()
        .one_or_none()
    )
    return None if row is None else _invoice(row)


async def paid_in_period(session: AsyncSession, subscription_id: str, start: datetime, end: datetime) -> int:
    """Return what was paid for ``[start, end)`` less the credit that changes in it gave, in minor units.

    A change that was undone counts for nothing: its invoice was returned, its credit taken back.
    """
    statement = text(
        """
        SELECT COALESCE((SELECT sum(i.total_minor) FROM invoices i WHERE i.subscription_id = :id AND i.status = 'paid'
                AND i.period_start >= :start AND i.period_start < :end AND NOT EXISTS (
                    SELECT FROM ledger_transactions WHERE idempotency_key = 'reverted/' || i.order_id)), 0)
            - COALESCE((SELECT sum(effect_minor) FROM ledger_transactions WHERE ref = :id
                AND kind IN ('credit', 'charge') AND at >= :start AND at < :end), 0)
        """
    )
    result = await session.execute(statement, {"id": subscription_id, "start": start, "end": end})
    return int(result.scalar_one())


async def mark_paid(session: AsyncSession, invoice_id: str, at: datetime, number: str | None) -> None:
    await session.execute(
        text(
            "UPDATE invoices SET status = 'paid', paid_at = :at, amount_due_minor = 0,"
            " number = COALESCE(number, :number), issued_at = COALESCE(issued_at, :at) WHERE id = :id"
        ),
        {"id": invoice_id, "at": at, "number": number},
    )


async def mark_void(session: AsyncSession, invoice_id: str, at: datetime) -> None:
    await session.execute(
        text("UPDATE invoices SET status = 'void', voided_at = :at, amount_due_minor = 0 WHERE id = :id"),
        {"id": invoice_id, "at": at},
    )


async def void_drafts(session: AsyncSession, subscription_id: str, at: datetime) -> None:
    """Withdraw invoices that were never issued; whoever still pays for one finds it void."""
    await session.execute(
        text(
            "UPDATE invoices SET status = 'void', voided_at = :at, amount_due_minor = 0"
            " WHERE subscription_id = :id AND status = 'draft'"
        ),
        {"id": subscription_id, "at": at},
    )


async def open_hold(session: AsyncSession, subscription_id: str) -> HoldRecord | None:
    """Return the credit that is set aside for a subscription right now; there is at most one such hold."""
    statement = text(
        "SELECT id, purpose, currency, wallet_minor, promotional_minor FROM holds"
        " WHERE subscription_id = :id AND status = 'held' FOR UPDATE"
    )
    row = (await session.execute(statement, {"id": subscription_id})).mappings().one_or_none()
    if row is None:
        return None
    return HoldRecord(
        id=row["id"],
        purpose=row["purpose"],
        wallet=Money(amount_minor=row["wallet_minor"], currency=row["currency"]),
        promotional=Money(amount_minor=row["promotional_minor"], currency=row["currency"]),
    )


async def insert_hold(
    session: AsyncSession,
    *,
    organization_id: str,
    subscription_id: str,
    purpose: str,
    wallet: Money,
    promotional: Money,
) -> None:
    await session.execute(
        text(
            "INSERT INTO holds (organization_id, subscription_id, purpose, currency, wallet_minor, promotional_minor,"
            " status) VALUES (:organization_id, :subscription_id, :purpose, :currency, :wallet, :promotional, 'held')"
        ),
        {
            "organization_id": organization_id,
            "subscription_id": subscription_id,
            "purpose": purpose,
            "currency": wallet.currency,
            "wallet": wallet.amount_minor,
            "promotional": promotional.amount_minor,
        },
    )


async def end_hold(session: AsyncSession, hold_id: int, status: str) -> None:
    """``captured`` or ``released``."""
    await session.execute(text("UPDATE holds SET status = :status WHERE id = :id"), {"id": hold_id, "status": status})


def _invoice(row: RowMapping) -> InvoiceRecord:
    def money(column: str) -> Money:
        return Money(amount_minor=row[column], currency=row["currency"])

    return InvoiceRecord(
        id=row["id"],
        kind=row["kind"],
        status=InvoiceStatus(row["status"]),
        total=money("total_minor"),
        tax=money("tax_minor"),
        due=money("amount_due_minor"),
        period_start=row["period_start"],
        period_end=row["period_end"],
    )
