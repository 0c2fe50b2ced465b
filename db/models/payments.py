"""Payments, methods on file, refunds, and what gateways told us."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base


class Payment(Base):
    """One payment. Written by its ``Payment`` workflow alone.

    ``idempotency_key`` is the root of every key toward the gateway, stored before the first call. ``settled_run`` is
    the workflow run that saw it succeed, so that this run alone tells subscriptions of the money; ``to_wallet`` says
    that the money went there although something else was to be paid. ``requested_at`` is the database's own clock,
    because a gateway forgets keys by its own; the other instants are business time. Per invoice at most one payment
    is in flight.
    """

    __tablename__ = "payments"
    __table_args__ = (
        UniqueConstraint("gateway", "gateway_reference"),
        Index(
            "uq_payments_one_in_flight_per_invoice",
            "invoice_id",
            unique=True,
            postgresql_where=text(
                "invoice_id IS NOT NULL AND status IN ('created', 'pending', 'unknown', 'authorized')"
            ),
        ),
        Index("ix_payments_organization_id_created_at_id", "organization_id", "created_at", "id"),
        CheckConstraint("amount_minor > 0", name="amount"),
        CheckConstraint(
            "captured_minor IN (0, amount_minor) AND refunded_minor BETWEEN 0 AND captured_minor", name="moved"
        ),
        CheckConstraint("purpose IN ('top_up', 'order', 'invoice')", name="purpose"),
        CheckConstraint(
            "status IN ('created', 'pending', 'unknown', 'authorized', 'succeeded', 'failed', 'expired', 'cancelled',"
            " 'partially_refunded', 'refunded', 'disputed')",
            name="status",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    subscription_id: Mapped[str | None] = mapped_column(ForeignKey("subscriptions.id"), index=True)
    invoice_id: Mapped[str | None] = mapped_column(index=True)
    purpose: Mapped[str]
    gateway: Mapped[str]
    gateway_reference: Mapped[str | None]
    payment_method_id: Mapped[str | None] = mapped_column(ForeignKey("payment_methods.id"))
    amount_minor: Mapped[int]
    currency: Mapped[str]
    captured_minor: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    refunded_minor: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    status: Mapped[str] = mapped_column(index=True)
    decline_code: Mapped[str | None]
    redirect_url: Mapped[str | None]
    idempotency_key: Mapped[str] = mapped_column(unique=True)
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now())
    workflow_id: Mapped[str]
    settled_run: Mapped[str | None]
    to_wallet: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    succeeded_at: Mapped[datetime | None]


class PaymentMethod(Base):
    """A card on file: the gateway's name of it, and what a person recognises it by. Never card data.

    ``position`` orders the backups; a detached method stays for the history of what it paid.
    """

    __tablename__ = "payment_methods"
    __table_args__ = (
        UniqueConstraint("gateway", "reference"),
        Index(
            "uq_payment_methods_one_default",
            "organization_id",
            unique=True,
            postgresql_where=text("is_default AND detached_at IS NULL"),
        ),
        Index("ix_payment_methods_organization_id_position", "organization_id", "position"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    gateway: Mapped[str]
    reference: Mapped[str]
    customer_reference: Mapped[str]
    brand: Mapped[str]
    last4: Mapped[str]
    exp_month: Mapped[int]
    exp_year: Mapped[int]
    fingerprint: Mapped[str | None]
    is_default: Mapped[bool]
    position: Mapped[int]
    created_at: Mapped[datetime]
    detached_at: Mapped[datetime | None]


class GatewayCustomer(Base):
    """What a gateway calls an organisation."""

    __tablename__ = "gateway_customers"
    __table_args__ = (UniqueConstraint("gateway", "reference"),)

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    gateway: Mapped[str] = mapped_column(primary_key=True)
    reference: Mapped[str]


class Refund(Base):
    """Money given back of one payment; ``idempotency_key`` makes a repeated order the same refund.

    ``pending`` ones are reserved: they count in ``payments.refunded_minor`` until they fail.
    """

    __tablename__ = "refunds"
    __table_args__ = (
        UniqueConstraint("gateway_reference"),
        CheckConstraint("amount_minor > 0", name="amount"),
        CheckConstraint("status IN ('pending', 'succeeded', 'failed')", name="status"),
        CheckConstraint("\"to\" IN ('source', 'wallet')", name="to"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    payment_id: Mapped[str] = mapped_column(ForeignKey("payments.id"), index=True)
    amount_minor: Mapped[int]
    currency: Mapped[str]
    to: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str]
    actor: Mapped[str]
    failure_code: Mapped[str | None]
    gateway_reference: Mapped[str | None]
    idempotency_key: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class WebhookEvent(Base):
    """A verified webhook, once per gateway and event. Only facts about a payment are kept, nothing of a person.

    ``received`` until its payment was told, then ``delivered``; ``ignored`` says nothing about a payment of ours;
    ``mismatch`` contradicts the payment and moved nothing.
    """

    __tablename__ = "webhook_events"
    __table_args__ = (
        CheckConstraint("status IN ('received', 'delivered', 'ignored', 'mismatch')", name="status"),
        Index("ix_webhook_events_undelivered", "received_at", postgresql_where=text("status = 'received'")),
    )

    gateway: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    payment_id: Mapped[str | None] = mapped_column(index=True)
    reference: Mapped[str | None]
    fact: Mapped[str | None]
    amount_minor: Mapped[int | None]
    currency: Mapped[str | None]
    decline_code: Mapped[str | None]
    payload_sha256: Mapped[str]
    status: Mapped[str]
    note: Mapped[str | None]
    received_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]
