"""Wallet, transactions and invoices as their owners see them. Read only: the rows belong to workflows.

Statements are built once per set of conditions: to build one takes longer than to execute it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Integer, Select, and_, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from db.models.identity import Organization
from db.models.invoices import Invoice
from db.models.ledger import LedgerAccountRow, LedgerTransactionRow
from db.models.payments import Payment
from db.queries.invoice_sources import invoice_sources, parse_invoice_sources, payment_ids_of_invoice
from db.queries.pages import bind_place, follows_bound_place
from workflows.rules.invoice import InvoiceSource
from workflows.rules.ledger import LedgerAccount, TransactionKind
from workflows.rules.money import Money

CUSTOMER_VISIBLE_KINDS = (
    TransactionKind.TOP_UP,
    TransactionKind.CHARGE,
    TransactionKind.REFUND,
    TransactionKind.CREDIT,
    TransactionKind.ADJUSTMENT,
)
"""What customers see. Holds and releases move money between their own accounts and are not among it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrencyBalance:
    """What an account owns in one currency: ``spendable`` is wallet and promotional credit, ``held`` is set aside."""

    available: Money
    held: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionDetails:
    """A ledger transaction as far as the API returns it.

    Attributes:
        customer_delta_minor: What it added to the customer's balances and holds.
        balance_after_minor: Their sum in this currency after it.
    """

    id: str
    sequence_number: int
    kind: str
    currency: str
    customer_delta_minor: int
    balance_after_minor: int
    posted_at: datetime
    reference_id: str | None
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceWithPayments:
    """An invoice with its lines, what paid it, and every payment that was tried for it or paid a part of it."""

    invoice: Invoice
    sources: tuple[InvoiceSource, ...]
    payments: tuple[Payment, ...]


_TRANSACTION_COLUMNS = (
    LedgerTransactionRow.id,
    LedgerTransactionRow.sequence_number,
    LedgerTransactionRow.kind,
    LedgerTransactionRow.currency,
    LedgerTransactionRow.customer_delta_minor,
    LedgerTransactionRow.balance_after_minor,
    LedgerTransactionRow.posted_at,
    LedgerTransactionRow.reference_id,
    LedgerTransactionRow.description,
)


@cache
def _balances() -> Select[*tuple[Any, ...]]:
    return (
        select(
            Organization.currency, LedgerAccountRow.currency, LedgerAccountRow.account, LedgerAccountRow.balance_minor
        )
        .outerjoin(
            LedgerAccountRow,
            and_(
                LedgerAccountRow.organization_id == Organization.id,
                LedgerAccountRow.account.in_((LedgerAccount.WALLET, LedgerAccount.PROMOTIONAL, LedgerAccount.HELD)),
            ),
        )
        .where(Organization.id == bindparam("organization_id"))
    )


async def list_balances(session: AsyncSession, organization_id: str) -> Sequence[CurrencyBalance]:
    """Return the balances in the organization's currency and in each other currency that it has accounts in."""
    rows = await session.execute(_balances(), {"organization_id": organization_id})
    sums: dict[str, dict[str, int]] = {}
    for default_currency, currency, account, minor in rows:
        sums.setdefault(default_currency, {})
        if currency is not None:
            sums.setdefault(currency, {})[account] = minor
    return [
        CurrencyBalance(
            available=Money(
                amount_minor=sums[currency].get(LedgerAccount.WALLET, 0)
                + sums[currency].get(LedgerAccount.PROMOTIONAL, 0),
                currency=currency,
            ),
            held=Money(amount_minor=sums[currency].get(LedgerAccount.HELD, 0), currency=currency),
        )
        for currency in sorted(sums)
    ]


@cache
def _transactions_page(*, is_after: bool, has_kind: bool, has_id: bool) -> Select[*tuple[Any, ...]]:
    query = (
        select(*_TRANSACTION_COLUMNS)
        .where(
            LedgerTransactionRow.organization_id == bindparam("organization_id"),
            LedgerTransactionRow.customer_delta_minor != 0,
            LedgerTransactionRow.kind.in_(CUSTOMER_VISIBLE_KINDS),
        )
        .order_by(LedgerTransactionRow.sequence_number.desc())
        .limit(bindparam("limit", type_=Integer))
    )
    if is_after:
        query = query.where(LedgerTransactionRow.sequence_number < bindparam("after"))
    if has_kind:
        query = query.where(LedgerTransactionRow.kind == bindparam("kind"))
    if has_id:
        query = query.where(LedgerTransactionRow.id == bindparam("id"))
    return query


async def list_transactions(
    session: AsyncSession,
    organization_id: str,
    *,
    limit: int,
    after: int | None = None,
    kind: str | None = None,
    transaction_id: str | None = None,
) -> Sequence[TransactionDetails]:
    """Return the customer's transactions, newest first; ``after`` is the last ``sequence_number`` of a page."""
    query = _transactions_page(is_after=after is not None, has_kind=kind is not None, has_id=transaction_id is not None)
    values = {"organization_id": organization_id, "limit": limit, "after": after, "kind": kind, "id": transaction_id}
    return [TransactionDetails(**row) for row in (await session.execute(query, values)).mappings()]


@cache
def _invoice_by_id() -> Select[Invoice]:
    return (
        select(Invoice)
        .options(joinedload(Invoice.lines))
        .where(Invoice.id == bindparam("id"), Invoice.organization_id == bindparam("organization_id"))
    )


@cache
def _invoices_page(*, is_after: bool, has_subscription: bool, has_status: bool) -> Select[Invoice]:
    query = (
        select(Invoice)
        .options(joinedload(Invoice.lines))
        .where(Invoice.organization_id == bindparam("organization_id"))
        .order_by(Invoice.created_at.desc(), Invoice.id.desc())
        .limit(bindparam("limit", type_=Integer))
    )
    if is_after:
        query = query.where(follows_bound_place(Invoice.created_at, Invoice.id))
    if has_subscription:
        query = query.where(Invoice.subscription_id == bindparam("subscription_id"))
    if has_status:
        query = query.where(Invoice.status == bindparam("status"))
    return query


async def list_invoices(
    session: AsyncSession,
    organization_id: str,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    subscription_id: str | None = None,
    status: str | None = None,
) -> Sequence[Invoice]:
    """Newest first, with lines; ``after`` is the ``(created_at, id)`` of the last one seen."""
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
    return (await session.scalars(query, values)).unique().all()


async def get_invoice(session: AsyncSession, identifier: str, organization_id: str) -> Invoice | None:
    """Return the organization's invoice with this id, with its lines."""
    values = {"id": identifier, "organization_id": organization_id}
    return (await session.scalars(_invoice_by_id(), values)).unique().first()


async def get_invoice_with_payments(
    session: AsyncSession, identifier: str, organization_id: str, *, limit: int
) -> InvoiceWithPayments | None:
    """Return an invoice with its lines, what paid it, and at most ``limit`` of its payments, newest first."""
    query = (
        select(Invoice, invoice_sources(identifier), Payment)
        .outerjoin(Payment, Payment.id.in_(payment_ids_of_invoice(identifier)))
        .options(joinedload(Invoice.lines))
        .where(Invoice.id == identifier, Invoice.organization_id == organization_id)
        .order_by(Payment.created_at.desc(), Payment.id.desc())
        .limit(limit)
    )
    rows = (await session.execute(query)).unique().all()
    if not rows:
        return None
    payments: list[Payment | None] = [payment for _, _, payment in rows]
    return InvoiceWithPayments(
        invoice=rows[0][0],
        sources=parse_invoice_sources(rows[0][1]),
        payments=tuple(payment for payment in payments if payment is not None),
    )
