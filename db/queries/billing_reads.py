"""Wallet and transactions as their owners see them. Read only: the rows belong to workflows.

Statements are built once per set of conditions: to build one takes longer than to execute it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import NamedTuple

from sqlalchemy import Integer, and_, any_, bindparam, select
from sqlalchemy.dialects.postgresql import array

from db.models.identity import Organization
from db.models.ledger import LedgerAccountRow, LedgerTransactionRow
from db.reads import PreparedQuery, RowReader, prepare
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
    """Credit in one currency: wallet and promotional credit are ``available``, open holds are ``held``."""

    available: Money
    held: Money


class _BalanceRow(NamedTuple):
    default_currency: str
    currency: str | None
    account: str
    balance_minor: int


class TransactionDetails(NamedTuple):
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
def _balances() -> PreparedQuery[_BalanceRow]:
    query = (
        select(
            Organization.currency.label("default_currency"),
            LedgerAccountRow.currency,
            LedgerAccountRow.account,
            LedgerAccountRow.balance_minor,
        )
        .outerjoin(
            LedgerAccountRow,
            and_(
                LedgerAccountRow.organization_id == Organization.id,
                LedgerAccountRow.account
                == any_(array((LedgerAccount.WALLET, LedgerAccount.PROMOTIONAL, LedgerAccount.HELD))),
            ),
        )
        .where(Organization.id == bindparam("organization_id"))
    )
    return prepare(query, _BalanceRow)


async def list_balances(reader: RowReader, organization_id: str) -> Sequence[CurrencyBalance]:
    """Return the balances in the organization's currency and in each other currency that it has accounts in."""
    rows = await reader.fetch(_balances(), {"organization_id": organization_id})
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
def _transactions_page(*, is_after: bool, has_kind: bool, has_id: bool) -> PreparedQuery[TransactionDetails]:
    query = (
        select(*_TRANSACTION_COLUMNS)
        .where(
            LedgerTransactionRow.organization_id == bindparam("organization_id"),
            LedgerTransactionRow.customer_delta_minor != 0,
            LedgerTransactionRow.kind == any_(array([kind.value for kind in CUSTOMER_VISIBLE_KINDS])),
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
    return prepare(query, TransactionDetails)


async def list_transactions(
    reader: RowReader,
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
    return await reader.fetch(query, values)
