"""Subscriptions, invoices and the ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.base import Base


class Subscription(Base):
    """One subscription. Written by its ``Subscription`` workflow alone.

    ``price_id`` and ``price_minor`` are what was agreed; a price rise moves them on its declared date only.
    """

    __tablename__ = "subscriptions"
    __table_args__ = (
        Index("ix_subscriptions_organization_id_created_at_id", "organization_id", "created_at", "id"),
        Index(
            "ix_subscriptions_indebted",
            "organization_id",
            "first_failure_at",
            postgresql_where=text("status IN ('past_due', 'suspended')"),
        ),
        Index(
            "uq_subscriptions_one_trial_per_service",
            "organization_id",
            "service_id",
            unique=True,
            postgresql_where=text("trial AND status NOT IN ('failed', 'expired')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    user_id: Mapped[str]
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"))
    price_id: Mapped[str] = mapped_column(ForeignKey("prices.id"))
    service_id: Mapped[str] = mapped_column(index=True)
    name: Mapped[str | None]
    status: Mapped[str] = mapped_column(index=True)
    collection: Mapped[str | None]
    trial: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    currency: Mapped[str]
    price_minor: Mapped[int]
    coupon_code: Mapped[str | None]
    coupon_periods_left: Mapped[int | None]
    coupon_used: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    timezone: Mapped[str]
    anchor: Mapped[datetime | None]
    current_period_start: Mapped[datetime | None]
    current_period_end: Mapped[datetime | None]
    trial_end: Mapped[datetime | None]
    cancel_at_period_end: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    pending_plan_id: Mapped[str | None] = mapped_column(ForeignKey("plans.id"))
    first_failure_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]
    delete_at: Mapped[datetime | None]
    workflow_id: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class SubscriptionChange(Base):
    """Who changed what, from what, to what, why, and in which workflow run."""

    __tablename__ = "subscription_changes"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    organization_id: Mapped[str]
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id"), index=True)
    at: Mapped[datetime]
    actor: Mapped[str]
    what: Mapped[str]
    before: Mapped[str | None]
    after: Mapped[str | None]
    reason: Mapped[str]
    run_id: Mapped[str]


class TimelineEvent(Base):
    """One line of a subscription's story. ``fact`` makes a repeated activity write it once."""

    __tablename__ = "timeline_events"
    __table_args__ = (UniqueConstraint("subscription_id", "fact"),)

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    organization_id: Mapped[str]
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id"), index=True)
    at: Mapped[datetime]
    kind: Mapped[str]
    message: Mapped[str]
    ref: Mapped[str | None]
    fact: Mapped[str]


class Invoice(Base):
    """One invoice. ``number`` is drawn when it is finalised; a draft has none.

    ``kind`` is ``period`` or ``change``; only one ``period`` invoice exists per subscription and period that is not
    void. ``explanation`` says line by line why the amounts are what they are.
    """

    __tablename__ = "invoices"
    __table_args__ = (
        Index(
            "uq_invoices_subscription_id_period_start",
            "subscription_id",
            "period_start",
            unique=True,
            postgresql_where=text("kind = 'period' AND status <> 'void'"),
        ),
        Index("ix_invoices_organization_id_created_at_id", "organization_id", "created_at", "id"),
        CheckConstraint("(status = 'draft') <= (number IS NULL)", name="draft_has_no_number"),
        CheckConstraint("total_minor >= 0 AND amount_due_minor BETWEEN 0 AND total_minor", name="amounts"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id"), index=True)
    kind: Mapped[str]
    number: Mapped[str | None] = mapped_column(unique=True)
    status: Mapped[str]
    currency: Mapped[str]
    period_start: Mapped[datetime]
    period_end: Mapped[datetime]
    subtotal_minor: Mapped[int]
    tax_minor: Mapped[int]
    total_minor: Mapped[int]
    amount_due_minor: Mapped[int]
    issued_at: Mapped[datetime | None]
    paid_at: Mapped[datetime | None]
    voided_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    order_id: Mapped[str | None] = mapped_column(unique=True)
    explanation: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    lines: Mapped[list[InvoiceLine]] = relationship(
        lazy="raise", order_by="InvoiceLine.position", viewonly=True, primaryjoin="Invoice.id == InvoiceLine.invoice_id"
    )


class InvoiceLine(Base):
    __tablename__ = "invoice_lines"

    invoice_id: Mapped[str] = mapped_column(ForeignKey("invoices.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    description: Mapped[str]
    quantity: Mapped[int]
    unit_price_minor: Mapped[int]
    discount_minor: Mapped[int]
    tax_minor: Mapped[int]
    amount_minor: Mapped[int]
    price_id: Mapped[str | None]
    period_start: Mapped[datetime]
    period_end: Mapped[datetime]


class InvoiceSeries(Base):
    """The counter of one issuer and year; its row lock lasts one commit."""

    __tablename__ = "invoice_series"

    issuer: Mapped[str] = mapped_column(primary_key=True)
    year: Mapped[int] = mapped_column(primary_key=True)
    last: Mapped[int]


class Hold(Base):
    """Credit set aside for an order or an invoice; ``purpose`` names it, a hold is captured or released once."""

    __tablename__ = "holds"
    __table_args__ = (
        UniqueConstraint("subscription_id", "purpose"),
        CheckConstraint("wallet_minor >= 0 AND promotional_minor >= 0", name="amounts"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    organization_id: Mapped[str]
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id"))
    purpose: Mapped[str]
    currency: Mapped[str]
    wallet_minor: Mapped[int]
    promotional_minor: Mapped[int]
    status: Mapped[str]


class LedgerAccount(Base):
    """What an organisation's account holds; kept by the database itself as entries are inserted.

    ``id`` is ``<organization>/<account>/<currency>``. Platform accounts keep no row: their balance is their sum, so
    that no transaction waits for another account's.
    """

    __tablename__ = "ledger_accounts"
    __table_args__ = (
        CheckConstraint(
            "account NOT IN ('wallet', 'promotional', 'held') OR balance_minor >= 0", name="never_below_zero"
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    account: Mapped[str]
    currency: Mapped[str]
    balance_minor: Mapped[int]


class LedgerTransaction(Base):
    """One balanced posting. ``effect_minor`` is what it does to what the customer owns (wallet, promotional, held)."""

    __tablename__ = "ledger_transactions"
    __table_args__ = (Index("ix_ledger_transactions_organization_id_sequence", "organization_id", "sequence"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    kind: Mapped[str]
    currency: Mapped[str]
    effect_minor: Mapped[int]
    at: Mapped[datetime]
    ref: Mapped[str | None]
    description: Mapped[str]
    idempotency_key: Mapped[str] = mapped_column(unique=True)


class LedgerEntry(Base):
    """Signed: credits positive. Never updated, never deleted. ``organization_id`` is null for platform accounts."""

    __tablename__ = "ledger_entries"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    transaction_id: Mapped[str] = mapped_column(ForeignKey("ledger_transactions.id"), index=True)
    organization_id: Mapped[str | None] = mapped_column(index=True)
    account: Mapped[str]
    currency: Mapped[str]
    amount_minor: Mapped[int]
