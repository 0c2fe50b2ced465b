"""The only way entries get into the ledger, and the questions that prove it right.

The database keeps the balances, refuses an overdraft, an unbalanced transaction and every change of what was posted;
this module turns its refusals into the rules' and takes locks in one order.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import case, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.billing import LedgerAccount, LedgerEntry, LedgerTransaction
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.ledger import OF_THE_CUSTOMER, OF_THE_ORGANIZATION, Account, Entry, Posting
from workflows.rules.money import Money

LOCK_ORDER = tuple(str(account) for account in (*OF_THE_CUSTOMER, Account.RECEIVABLE))
"""Every transaction touches an organisation's accounts in this order, so that no two wait for each other."""

OVERDRAFT = "ck_ledger_accounts_never_below_zero"


@dataclass(frozen=True, slots=True, kw_only=True)
class Balances:
    """What an organisation owns in one currency. ``wallet`` and ``promotional`` can be spent, ``held`` cannot."""

    wallet: Money
    promotional: Money
    held: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A kept balance that differs from the sum of its entries (minor units)."""

    organization_id: str
    account: str
    currency: str
    kept: int
    summed: int


async def post(
    session: AsyncSession,
    posting: Posting,
    *,
    transaction_id: str,
    organization_id: str,
    at: datetime,
    ref: str | None,
    description: str,
    idempotency_key: str,
) -> bool:
    """Write one transaction with its entries; False when this key was posted before (nothing is written then).

    Raises:
        RuleBroken: ``INSUFFICIENT_FUNDS``; the database transaction is lost with it.
        ValueError: the posting mixes currencies.
    """
    currencies = {entry.amount.currency for entry in posting.entries}
    if len(currencies) != 1:
        raise ValueError(f"one currency per transaction, not {sorted(currencies)}")
    (currency,) = currencies
    effect = sum(entry.amount.amount_minor for entry in posting.entries if entry.account in OF_THE_CUSTOMER)
    written = await session.scalar(
        upsert(LedgerTransaction)
        .values(
            id=transaction_id,
            organization_id=organization_id,
            kind=posting.kind.value,
            currency=currency,
            effect_minor=effect,
            at=at,
            ref=ref,
            description=description,
            idempotency_key=idempotency_key,
        )
        .on_conflict_do_nothing(index_elements=[LedgerTransaction.idempotency_key])
        .returning(LedgerTransaction.id)
    )
    if written is None:
        return False
    rows = [
        {
            "transaction_id": transaction_id,
            "organization_id": organization_id if entry.account in OF_THE_ORGANIZATION else None,
            "account": str(entry.account),
            "currency": currency,
            "amount_minor": entry.amount.amount_minor,
        }
        for entry in sorted(posting.entries, key=_lock_rank)
    ]
    try:
        # One statement: its rows, and with them the balances' row locks, are taken in the order given.
        await session.execute(insert(LedgerEntry).values(rows))
    except IntegrityError as error:
        if _constraint(error) == OVERDRAFT:
            raise RuleBroken(Refusal.INSUFFICIENT_FUNDS, "The account does not hold this amount.") from error
        raise
    return True


def _lock_rank(entry: Entry) -> int:
    return LOCK_ORDER.index(entry.account) if entry.account in LOCK_ORDER else len(LOCK_ORDER)


def _constraint(error: IntegrityError) -> str | None:
    diagnostics = getattr(error.orig, "diag", None)
    name: str | None = getattr(diagnostics, "constraint_name", None)
    return name


async def balances(session: AsyncSession, organization_id: str, currency: str, *, lock: bool = False) -> Balances:
    """Return what the organisation owns; ``lock`` holds it still until the transaction ends (worker only)."""
    query = (
        select(LedgerAccount.account, LedgerAccount.balance_minor)
        .where(
            LedgerAccount.organization_id == organization_id,
            LedgerAccount.currency == currency,
            LedgerAccount.account.in_(LOCK_ORDER),
        )
        .order_by(case({account: rank for rank, account in enumerate(LOCK_ORDER)}, value=LedgerAccount.account))
    )
    rows = await session.execute(query.with_for_update() if lock else query)
    kept = {row.account: row.balance_minor for row in rows}

    def held_in(account: str) -> Money:
        return Money(amount_minor=kept.get(account, 0), currency=currency)

    return Balances(
        wallet=held_in(Account.WALLET), promotional=held_in(Account.PROMOTIONAL), held=held_in(Account.HELD)
    )


async def receivable(session: AsyncSession, organization_id: str, currency: str) -> Money:
    """Return what the organisation owes by finalised, unpaid invoices: positive while it owes."""
    kept = await session.scalar(
        select(LedgerAccount.balance_minor).where(
            LedgerAccount.organization_id == organization_id,
            LedgerAccount.currency == currency,
            LedgerAccount.account == Account.RECEIVABLE,
        )
    )
    return Money(amount_minor=-(kept or 0), currency=currency)


async def drift(session: AsyncSession) -> list[Drift]:
    """Return every kept balance that is not the sum of its entries; an empty list is the proof."""
    summed = (
        select(
            LedgerEntry.organization_id,
            LedgerEntry.account,
            LedgerEntry.currency,
            func.sum(LedgerEntry.amount_minor).label("amount"),
        )
        .where(LedgerEntry.organization_id.is_not(None))
        .group_by(LedgerEntry.organization_id, LedgerEntry.account, LedgerEntry.currency)
        .subquery()
    )
    kept = LedgerAccount
    rows = await session.execute(
        select(
            func.coalesce(kept.organization_id, summed.c.organization_id),
            func.coalesce(kept.account, summed.c.account),
            func.coalesce(kept.currency, summed.c.currency),
            func.coalesce(kept.balance_minor, 0),
            func.coalesce(summed.c.amount, 0),
        )
        .select_from(kept)
        .join(
            summed,
            (kept.organization_id == summed.c.organization_id)
            & (kept.account == summed.c.account)
            & (kept.currency == summed.c.currency),
            full=True,
        )
        .where(func.coalesce(kept.balance_minor, 0) != func.coalesce(summed.c.amount, 0))
    )
    return [
        Drift(organization_id=organization, account=account, currency=currency, kept=balance, summed=int(amount))
        for organization, account, currency, balance, amount in rows
    ]


async def unbalanced(session: AsyncSession) -> int:
    """Return how many transactions do not sum to zero in some currency, or have no entries: always 0."""
    sums = (
        select(LedgerTransaction.id)
        .outerjoin(LedgerEntry, LedgerEntry.transaction_id == LedgerTransaction.id)
        .group_by(LedgerTransaction.id, LedgerEntry.currency)
        .having(func.coalesce(func.sum(LedgerEntry.amount_minor), 1) != 0)
        .subquery()
    )
    return await session.scalar(select(func.count(func.distinct(sums.c.id)))) or 0
