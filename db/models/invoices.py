"""Invoices, their lines, what paid them and what was credited of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.base import Base, same_organization


class Invoice(Base):
    """One invoice. ``number`` is drawn when it is finalized; a draft has none.

    ``billing_reason`` is why it was written. Of the reasons that start a period, a subscription has one invoice per
    period that is not void. ``explanation`` says line by line why the amounts are what they are.
    """

    __tablename__ = "invoices"
    __table_args__ = (
        Index(
            "uq_invoices_subscription_id_period_start",
            "subscription_id",
            "period_start",
            unique=True,
            postgresql_where=text("billing_reason <> 'plan_change' AND status <> 'void'"),
        ),
        Index("ix_invoices_organization_id_created_at_id", "organization_id", "created_at", "id"),
        CheckConstraint("(status = 'draft') <= (number IS NULL)", name="draft_has_no_number"),
        CheckConstraint("status IN ('draft', 'open', 'paid', 'void', 'uncollectible')", name="status"),
        CheckConstraint(
            "billing_reason IN ('order', 'renewal', 'trial_end', 'resumption', 'interval_change', 'plan_change')",
            name="billing_reason",
        ),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
        CheckConstraint("period_start < period_end", name="period"),
        CheckConstraint(
            "subtotal_minor >= 0 AND tax_minor >= 0 AND total_minor = subtotal_minor + tax_minor", name="total"
        ),
        CheckConstraint(
            "status IN ('draft', 'void') OR (number IS NOT NULL AND finalized_at IS NOT NULL)",
            name="finalized_has_number",
        ),
        CheckConstraint(
            "status <> 'paid' OR (amount_due_minor = 0 AND paid_at IS NOT NULL)", name="paid_has_nothing_due"
        ),
        CheckConstraint("total_minor >= 0 AND amount_due_minor BETWEEN 0 AND total_minor", name="valid_amounts"),
        CheckConstraint("refunded_minor BETWEEN 0 AND total_minor", name="refunded"),
        CheckConstraint(
            "(status = 'void') = (voided_at IS NOT NULL) AND (status <> 'void' OR amount_due_minor = 0)", name="void"
        ),
        UniqueConstraint("organization_id", "id"),
        UniqueConstraint("organization_id", "id", "currency"),
        same_organization("invoices", "subscription_id", "subscriptions"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    subscription_id: Mapped[str] = mapped_column(index=True)
    billing_reason: Mapped[str]
    number: Mapped[str | None] = mapped_column(unique=True)
    status: Mapped[str]
    currency: Mapped[str]
    period_start: Mapped[datetime]
    period_end: Mapped[datetime]
    subtotal_minor: Mapped[int]
    tax_minor: Mapped[int]
    total_minor: Mapped[int]
    amount_due_minor: Mapped[int]
    refunded_minor: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    finalized_at: Mapped[datetime | None]
    paid_at: Mapped[datetime | None]
    voided_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    plan_change_id: Mapped[str | None] = mapped_column(unique=True)
    explanation: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    lines: Mapped[list[InvoiceLine]] = relationship(
        lazy="raise", order_by="InvoiceLine.position", viewonly=True, primaryjoin="Invoice.id == InvoiceLine.invoice_id"
    )


class InvoiceLine(Base):
    __tablename__ = "invoice_lines"
    __table_args__ = (
        same_organization("invoice_lines", "invoice_id", "invoices"),
        CheckConstraint("amount_minor = unit_price_minor * quantity - discount_minor", name="amount"),
        CheckConstraint("period_start <= period_end", name="period"),
    )

    invoice_id: Mapped[str] = mapped_column(primary_key=True)
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


class InvoiceAllocation(Base):
    """An amount that one source paid of one invoice. Never updated, never deleted.

    A reversal is a row with a negative amount that names the row it reverses, of the same invoice and source. At each
    commit the database checks that the sum of an invoice's rows is ``total - amount due - refunded``, and zero for a
    draft and for a void invoice.
    """

    __tablename__ = "invoice_allocations"
    __table_args__ = (
        UniqueConstraint("id", "invoice_id", "source"),
        same_organization("invoice_allocations", "invoice_id", "invoices", with_currency=True),
        same_organization("invoice_allocations", "payment_id", "payments", with_currency=True),
        ForeignKeyConstraint(
            ["reverses_id", "invoice_id", "source"],
            ["invoice_allocations.id", "invoice_allocations.invoice_id", "invoice_allocations.source"],
            name="fk_invoice_allocations_reverses",
        ),
        ForeignKeyConstraint(
            ["ledger_transaction_id", "organization_id"],
            ["ledger_transactions.id", "ledger_transactions.organization_id"],
            name="fk_invoice_allocations_ledger_transaction",
        ),
        Index("ix_invoice_allocations_invoice_id", "invoice_id"),
        Index("ix_invoice_allocations_payment_id", "payment_id", postgresql_where=text("payment_id IS NOT NULL")),
        Index("ix_invoice_allocations_reverses_id", "reverses_id", postgresql_where=text("reverses_id IS NOT NULL")),
        Index("ix_invoice_allocations_ledger_transaction_id", "ledger_transaction_id"),
        Index("ix_invoice_allocations_debt", "organization_id", "currency", postgresql_where=text("source = 'debt'")),
        CheckConstraint("source IN ('promotional', 'wallet', 'payment', 'credit_note', 'debt')", name="source"),
        CheckConstraint("(source = 'payment') = (payment_id IS NOT NULL)", name="payment_of_source"),
        CheckConstraint("(source = 'credit_note') = (credit_note_id IS NOT NULL)", name="credit_note_of_source"),
        CheckConstraint("amount_minor <> 0", name="amount"),
        CheckConstraint("(amount_minor < 0) = (reverses_id IS NOT NULL)", name="reversal_is_negative"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    invoice_id: Mapped[str]
    currency: Mapped[str]
    source: Mapped[str]
    payment_id: Mapped[str | None]
    credit_note_id: Mapped[str | None]
    amount_minor: Mapped[int]
    reverses_id: Mapped[str | None]
    ledger_transaction_id: Mapped[str]
    allocated_at: Mapped[datetime]


class PlanChangeCredit(Base):
    """Credit that a plan change gave for unused time of an invoice that was paid.

    A negative row takes back what the same plan change gave, when the change is rolled back.
    """

    __tablename__ = "plan_change_credits"
    __table_args__ = (
        same_organization("plan_change_credits", "invoice_id", "invoices", with_currency=True),
        ForeignKeyConstraint(
            ["ledger_transaction_id", "organization_id"],
            ["ledger_transactions.id", "ledger_transactions.organization_id"],
            name="fk_plan_change_credits_ledger_transaction",
        ),
        Index("ix_plan_change_credits_invoice_id", "invoice_id"),
        Index("ix_plan_change_credits_plan_change_id", "plan_change_id"),
        CheckConstraint("amount_minor <> 0", name="amount"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    invoice_id: Mapped[str]
    currency: Mapped[str]
    plan_change_id: Mapped[str]
    amount_minor: Mapped[int]
    ledger_transaction_id: Mapped[str]
    credited_at: Mapped[datetime]


class InvoiceNumberSequence(Base):
    """The counter of one issuer and year; its row lock lasts one commit."""

    __tablename__ = "invoice_number_sequences"

    issuer: Mapped[str] = mapped_column(primary_key=True)
    year: Mapped[int] = mapped_column(primary_key=True)
    last_number: Mapped[int]
