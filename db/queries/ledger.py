"""The only way entries get into the ledger, and the questions that prove it right.

The database keeps the balances, refuses an overdraft, an unbalanced transaction and every change of what was posted;
this module turns its refusals into the rules' and takes locks in one order.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import case, func, insert, literal, select, union_all
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from db.errors import is_overdraft
from db.models.ledger import CustomerBalance, LedgerAccountRow, LedgerEntryRow, LedgerTransactionRow
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.ledger import (
    CUSTOMER_ASSET_ACCOUNTS,
    ORGANIZATION_ACCOUNTS,
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
)
from workflows.rules.money import Money

LOCK_ORDER = tuple(str(account) for account in ORGANIZATION_ACCOUNTS)
"""Every transaction touches an organization's accounts in this order, so that no two wait for each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerBalances:
    """What an organization owns in one currency. ``wallet`` and ``promotional`` can be spent, ``held`` cannot."""

    wallet: Money
    promotional: Money
    held: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceMismatch:
    """A kept balance that differs from the sum of its entries (minor units)."""

    organization_id: str
    account: str
    currency: str
    stored_minor: int
    computed_minor: int


async def post_transaction(
    session: AsyncSession,
    transaction: LedgerTransaction,
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
        RuleViolation: ``INSUFFICIENT_FUNDS``; the database transaction is lost with it.
        ValueError: the posting mixes currencies.
    """
    currencies = {entry.amount.currency for entry in transaction.entries}
    if len(currencies) != 1:
        raise ValueError(f"one currency per transaction, not {sorted(currencies)}")
    (currency,) = currencies
    effect = sum(entry.amount.amount_minor for entry in transaction.entries if entry.account in CUSTOMER_ASSET_ACCOUNTS)
    rows = [
        {
            "transaction_id": transaction_id,
            "organization_id": organization_id if entry.account in ORGANIZATION_ACCOUNTS else None,
            "account": str(entry.account),
            "currency": currency,
            "amount_minor": entry.amount.amount_minor,
        }
        for entry in sorted(transaction.entries, key=_lock_position)
    ]
    try:
        written = await session.scalar(
            # The trigger skips a key that exists, under the lock of the organization's postings.
            insert(LedgerTransactionRow)
            .values(
                id=transaction_id,
                organization_id=organization_id,
                kind=transaction.kind.value,
                currency=currency,
                customer_delta_minor=effect,
                entry_count=len(rows),
                posted_at=at,
                reference_id=ref,
                description=description,
                idempotency_key=idempotency_key,
            )
            .returning(LedgerTransactionRow.id)
        )
        if written is None:
            return False
        # One statement: its rows, and with them the balances' row locks, are taken in the order given.
        await session.execute(insert(LedgerEntryRow).values(rows))
    except IntegrityError as error:
        if is_overdraft(error):
            raise RuleViolation(ErrorCode.INSUFFICIENT_FUNDS, "The balance is insufficient.") from error
        raise
    return True


def _lock_position(entry: LedgerEntry) -> int:
    return LOCK_ORDER.index(entry.account) if entry.account in LOCK_ORDER else len(LOCK_ORDER)


async def get_balances(
    session: AsyncSession, organization_id: str, currency: str, *, lock: bool = False
) -> CustomerBalances:
    """Return what the organization owns; ``lock`` locks the rows until the transaction ends (worker only)."""
    query = (
        select(LedgerAccountRow.account, LedgerAccountRow.balance_minor)
        .where(
            LedgerAccountRow.organization_id == organization_id,
            LedgerAccountRow.currency == currency,
            LedgerAccountRow.account.in_(LOCK_ORDER),
        )
        .order_by(case({account: rank for rank, account in enumerate(LOCK_ORDER)}, value=LedgerAccountRow.account))
    )
    rows = await session.execute(query.with_for_update() if lock else query)
    balances = {row.account: row.balance_minor for row in rows}

    def held_in(account: str) -> Money:
        return Money(amount_minor=balances.get(account, 0), currency=currency)

    return CustomerBalances(
        wallet=held_in(LedgerAccount.WALLET),
        promotional=held_in(LedgerAccount.PROMOTIONAL),
        held=held_in(LedgerAccount.HELD),
    )


async def get_carried_debt(session: AsyncSession, organization_id: str, currency: str) -> Money:
    """Return what the organization owes of amounts that were too small to charge: positive while it owes."""
    balance_minor = await session.scalar(
        select(LedgerAccountRow.balance_minor).where(
            LedgerAccountRow.organization_id == organization_id,
            LedgerAccountRow.currency == currency,
            LedgerAccountRow.account == LedgerAccount.DEBT,
        )
    )
    return Money(amount_minor=-(balance_minor or 0), currency=currency)


CUSTOMER_BALANCE = "customer_balance"
"""The account name under which a mismatch of ``customer_balances`` is reported: the sum of what the customer owns."""


async def find_balance_mismatches(session: AsyncSession) -> list[BalanceMismatch]:
    """Return every stored balance that is not the sum of its entries: none in a correct ledger."""
    entry = LedgerEntryRow
    by_account = (
        select(entry.organization_id, entry.account, entry.currency, func.sum(entry.amount_minor).label("minor"))
        .where(entry.organization_id.is_not(None))
        .group_by(entry.organization_id, entry.account, entry.currency)
    )
    of_customer = (
        select(
            entry.organization_id,
            literal(CUSTOMER_BALANCE).label("account"),
            entry.currency,
            func.sum(entry.amount_minor).label("minor"),
        )
        .where(entry.organization_id.is_not(None), entry.account.in_(CUSTOMER_ASSET_ACCOUNTS))
        .group_by(entry.organization_id, entry.currency)
    )
    stored = union_all(
        select(
            LedgerAccountRow.organization_id,
            LedgerAccountRow.account,
            LedgerAccountRow.currency,
            LedgerAccountRow.balance_minor.label("minor"),
        ),
        select(
            CustomerBalance.organization_id,
            literal(CUSTOMER_BALANCE),
            CustomerBalance.currency,
            CustomerBalance.balance_minor,
        ),
    ).subquery("stored")
    computed = union_all(by_account, of_customer).subquery("computed")
    rows = await session.execute(
        select(
            func.coalesce(stored.c.organization_id, computed.c.organization_id),
            func.coalesce(stored.c.account, computed.c.account),
            func.coalesce(stored.c.currency, computed.c.currency),
            func.coalesce(stored.c.minor, 0),
            func.coalesce(computed.c.minor, 0),
        )
        .select_from(stored)
        .join(
            computed,
            (stored.c.organization_id == computed.c.organization_id)
            & (stored.c.account == computed.c.account)
            & (stored.c.currency == computed.c.currency),
            full=True,
        )
        .where(func.coalesce(stored.c.minor, 0) != func.coalesce(computed.c.minor, 0))
    )
    return [
        BalanceMismatch(
            organization_id=organization_id,
            account=account,
            currency=currency,
            stored_minor=stored_minor,
            computed_minor=int(computed_minor),
        )
        for organization_id, account, currency, stored_minor, computed_minor in rows
    ]


async def count_unbalanced_transactions(session: AsyncSession) -> int:
    """Return how many transactions do not sum to zero in some currency, or have no entries: always 0."""
    sums = (
        select(LedgerTransactionRow.id)
        .outerjoin(LedgerEntryRow, LedgerEntryRow.transaction_id == LedgerTransactionRow.id)
        .group_by(LedgerTransactionRow.id, LedgerEntryRow.currency)
        .having(func.coalesce(func.sum(LedgerEntryRow.amount_minor), 1) != 0)
        .subquery()
    )
    return await session.scalar(select(func.count(func.distinct(sums.c.id)))) or 0
