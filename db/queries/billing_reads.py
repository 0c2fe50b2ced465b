"""Wallet, transactions and invoices as their owners see them. Read only: the rows belong to workflows.

``organization_id`` None means every account's (administrators); row-level security stands below either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from db.models.billing import Invoice, LedgerAccount, LedgerTransaction
from workflows.rules.ledger import Account, Kind
from workflows.rules.money import Money

SHOWN = (Kind.TOP_UP, Kind.CHARGE, Kind.REFUND, Kind.CREDIT, Kind.ADJUSTMENT)
"""What customers see. Holds and releases move money between their own accounts and are not among it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What an account owns in one currency: ``spendable`` is wallet and promotional credit, ``held`` is set aside."""

    spendable: Money
    held: Money


async def balances(session: AsyncSession, organization_id: str) -> Sequence[Balance]:
    """By currency; empty for an account that never had anything."""
    rows = await session.execute(
        select(LedgerAccount.currency, LedgerAccount.account, LedgerAccount.balance_minor).where(
            LedgerAccount.organization_id == organization_id,
            LedgerAccount.account.in_((Account.WALLET, Account.PROMOTIONAL, Account.HELD)),
        )
    )
    sums: dict[str, dict[str, int]] = {}
    for currency, account, minor in rows:
        sums.setdefault(currency, {})[account] = minor
    return [
        Balance(
            spendable=Money(
                amount_minor=sums[currency].get(Account.WALLET, 0) + sums[currency].get(Account.PROMOTIONAL, 0),
                currency=currency,
            ),
            held=Money(amount_minor=sums[currency].get(Account.HELD, 0), currency=currency),
        )
        for currency in sorted(sums)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionRow:
    """A transaction and what the account owned (spendable and held) in its currency after it."""

    transaction: LedgerTransaction
    balance_after: Money


async def transactions(
    session: AsyncSession,
    organization_id: str,
    *,
    limit: int,
    after: int | None = None,
    kind: str | None = None,
    identifier: str | None = None,
) -> Sequence[TransactionRow]:
    """Newest first; ``after`` is the ``sequence`` of the last one seen."""
    running = (
        select(
            LedgerTransaction.id,
            func.sum(LedgerTransaction.effect_minor)
            .over(partition_by=LedgerTransaction.currency, order_by=LedgerTransaction.sequence)
            .label("balance_after"),
        )
        .where(LedgerTransaction.organization_id == organization_id)
        .subquery()
    )
    query = (
        select(LedgerTransaction, running.c.balance_after)
        .join(running, running.c.id == LedgerTransaction.id)
        .where(LedgerTransaction.effect_minor != 0, LedgerTransaction.kind.in_(SHOWN))
        .order_by(LedgerTransaction.sequence.desc())
        .limit(limit)
    )
    if after is not None:
        query = query.where(LedgerTransaction.sequence < after)
    if kind is not None:
        query = query.where(LedgerTransaction.kind == kind)
    if identifier is not None:
        query = query.where(LedgerTransaction.id == identifier)
    return [
        TransactionRow(
            transaction=transaction, balance_after=Money(amount_minor=int(balance), currency=transaction.currency)
        )
        for transaction, balance in await session.execute(query)
    ]


async def invoices(
    session: AsyncSession,
    organization_id: str | None,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    subscription_id: str | None = None,
    status: str | None = None,
) -> Sequence[Invoice]:
    """Newest first, with lines; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = (
        select(Invoice)
        .options(selectinload(Invoice.lines))
        .order_by(Invoice.created_at.desc(), Invoice.id.desc())
        .limit(limit)
    )
    if organization_id is not None:
        query = query.where(Invoice.organization_id == organization_id)
    if after is not None:
        query = query.where(tuple_(Invoice.created_at, Invoice.id) < after)
    if subscription_id is not None:
        query = query.where(Invoice.subscription_id == subscription_id)
    if status is not None:
        query = query.where(Invoice.status == status)
    return (await session.scalars(query)).all()


async def invoice(session: AsyncSession, identifier: str, organization_id: str | None) -> Invoice | None:
    """One invoice with its lines."""
    query = select(Invoice).options(selectinload(Invoice.lines)).where(Invoice.id == identifier)
    if organization_id is not None:
        query = query.where(Invoice.organization_id == organization_id)
    return await session.scalar(query)
