"""Holds, and the ledger with its balances."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, same_organization


class Hold(Base):
    """What was agreed to pay an order or an invoice while a card is charged or an instance is provisioned.

    The wallet and promotional credit are set aside; ``card_minor`` is what a card pays beside them, the first of
    ``payment_methods`` that is not declined. ``dedup_key`` names the hold, which is captured or released once.
    """

    __tablename__ = "holds"
    __table_args__ = (
        UniqueConstraint("subscription_id", "dedup_key"),
        CheckConstraint("wallet_minor >= 0 AND promotional_minor >= 0 AND card_minor >= 0", name="valid_amounts"),
        CheckConstraint("status IN ('held', 'captured', 'released')", name="status"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
        Index(
            "uq_holds_one_open_per_subscription",
            "subscription_id",
            unique=True,
            postgresql_where=text("status = 'held'"),
        ),
        same_organization("holds", "subscription_id", "subscriptions"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    organization_id: Mapped[str]
    subscription_id: Mapped[str]
    dedup_key: Mapped[str]
    currency: Mapped[str]
    wallet_minor: Mapped[int]
    promotional_minor: Mapped[int]
    card_minor: Mapped[int]
    payment_methods: Mapped[list[dict[str, str]]] = mapped_column(JSONB)
    status: Mapped[str]


class LedgerAccountRow(Base):
    """What an organization's account holds; kept by the database itself as entries are inserted.

    ``id`` is ``<organization>/<account>/<currency>``. Platform accounts keep no row: their balance is their sum, so
    that no transaction waits for another account's.
    """

    __tablename__ = "ledger_accounts"
    __table_args__ = (
        CheckConstraint(
            "account NOT IN ('wallet', 'promotional', 'held') OR balance_minor >= 0", name="non_negative_balance"
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    account: Mapped[str]
    currency: Mapped[str]
    balance_minor: Mapped[int]
    lock_version: Mapped[int] = mapped_column(default=0, server_default=text("0"))


class CustomerBalance(Base):
    """The sum of an organization's wallet, promotional and held accounts in one currency; a trigger maintains it.

    Its row is the lock of every posting of the organization in that currency, taken before the accounts' rows.
    ``lock_version`` is the one column that the worker may update: ``SELECT FOR UPDATE`` requires such a column.
    """

    __tablename__ = "customer_balances"
    __table_args__ = (CheckConstraint("balance_minor >= 0", name="non_negative_balance"),)

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    currency: Mapped[str] = mapped_column(primary_key=True)
    balance_minor: Mapped[int]
    lock_version: Mapped[int] = mapped_column(default=0, server_default=text("0"))


class LedgerTransactionRow(Base):
    """One balanced posting.

    ``customer_delta_minor`` is the change of wallet, promotional and held together,
    ``balance_after_minor`` their sum in this currency after it. A trigger fills ``sequence_number`` and
    ``balance_after_minor`` under the lock of ``CustomerBalance``, and skips a row whose ``idempotency_key`` exists.
    """

    __tablename__ = "ledger_transactions"
    __table_args__ = (
        Index("ix_ledger_transactions_organization_id_sequence_number", "organization_id", "sequence_number"),
        UniqueConstraint("id", "organization_id"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
        CheckConstraint("entry_count >= 2", name="entry_count"),
        CheckConstraint(
            "kind IN ('top_up', 'charge', 'refund', 'credit', 'adjustment', 'hold', 'release', 'invoice', 'void')",
            name="kind",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    sequence_number: Mapped[int] = mapped_column(unique=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    kind: Mapped[str]
    currency: Mapped[str]
    customer_delta_minor: Mapped[int]
    balance_after_minor: Mapped[int]
    entry_count: Mapped[int]
    posted_at: Mapped[datetime]
    reference_id: Mapped[str | None]
    description: Mapped[str]
    idempotency_key: Mapped[str] = mapped_column(unique=True)


class LedgerEntryRow(Base):
    """Signed: credits positive. Never updated, never deleted. ``organization_id`` is null for platform accounts."""

    __tablename__ = "ledger_entries"
    __table_args__ = (
        CheckConstraint(
            "CASE WHEN organization_id IS NULL"
            " THEN account IN ('revenue', 'tax_payable', 'refunds', 'write_off', 'adjustments')"
            " OR account LIKE 'clearing:_%'"
            " ELSE account IN ('wallet', 'promotional', 'debt', 'held', 'receivable') END",
            name="account",
        ),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    transaction_id: Mapped[str] = mapped_column(ForeignKey("ledger_transactions.id"), index=True)
    organization_id: Mapped[str | None] = mapped_column(index=True)
    account: Mapped[str]
    currency: Mapped[str]
    amount_minor: Mapped[int]
