"""Payments, payment methods, refunds and webhook events."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, same_organization


class Payment(Base):
    """One payment. Written by its ``Payment`` workflow alone.

    ``idempotency_key`` is the root of every key toward the gateway, stored before the first call. ``closing_run_id`` is
    the workflow run that saw it succeed: this run alone signals subscriptions of the money. ``credited_to_wallet``:
    the money went to the wallet although the payment was for an invoice. ``gateway_requested_at`` is an instant of the
    database's clock, because a gateway forgets keys by real time; the other instants are of the subscription's clock.
    Per invoice at most one payment is in flight.
    """

    __tablename__ = "payments"
    __table_args__ = (
        UniqueConstraint("gateway", "gateway_reference"),
        UniqueConstraint("organization_id", "id", "currency"),
        same_organization("payments", "subscription_id", "subscriptions"),
        same_organization("payments", "payment_method_id", "payment_methods"),
        same_organization("payments", "invoice_id", "invoices", with_currency=True),
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
            "captured_minor IN (0, amount_minor) AND refunded_minor BETWEEN 0 AND captured_minor",
            name="valid_captured_and_refunded",
        ),
        CheckConstraint("purpose IN ('top_up', 'order', 'invoice')", name="purpose"),
        CheckConstraint(
            "status IN ('created', 'pending', 'unknown', 'authorized', 'succeeded', 'failed', 'expired', 'cancelled',"
            " 'partially_refunded', 'refunded', 'disputed')",
            name="status",
        ),
        CheckConstraint(
            "(captured_minor > 0) = (status IN ('succeeded', 'partially_refunded', 'refunded', 'disputed'))"
            " AND (captured_minor > 0) = (succeeded_at IS NOT NULL)",
            name="received",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    subscription_id: Mapped[str | None] = mapped_column(index=True)
    invoice_id: Mapped[str | None] = mapped_column(index=True)
    purpose: Mapped[str]
    gateway: Mapped[str]
    gateway_reference: Mapped[str | None]
    payment_method_id: Mapped[str | None]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    captured_minor: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    refunded_minor: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    status: Mapped[str] = mapped_column(index=True)
    decline_code: Mapped[str | None]
    redirect_url: Mapped[str | None]
    idempotency_key: Mapped[str] = mapped_column(unique=True)
    gateway_requested_at: Mapped[datetime] = mapped_column(server_default=func.now())
    workflow_id: Mapped[str]
    closing_run_id: Mapped[str | None]
    credited_to_wallet: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    succeeded_at: Mapped[datetime | None]


CHARGE_ORDER = "m.is_default DESC, m.charge_order, m.id"
"""The order in which an organization's payment methods ``m`` are charged: the default, then the backups."""


class PaymentMethod(Base):
    """A card on file: the gateway's name of it, and what a person recognizes it by. Never card data.

    ``charge_order`` orders the backups; a detached method stays for the history of what it paid, and has
    ``gateway_detached_at`` once its gateway has forgotten it too.

    ``offered_at`` is when the customer saved this method or made it the default, and ``promoted_at`` when it became the
    default because the one before was removed: open debts were signaled to try it. Both are instants of the database's
    clock, to be compared with ``Payment.gateway_requested_at``; None for what was not recorded then.
    """

    __tablename__ = "payment_methods"
    __table_args__ = (
        UniqueConstraint("gateway", "gateway_reference"),
        UniqueConstraint("organization_id", "id"),
        Index(
            "uq_payment_methods_one_default",
            "organization_id",
            unique=True,
            postgresql_where=text("is_default AND detached_at IS NULL"),
        ),
        Index("ix_payment_methods_organization_id_charge_order", "organization_id", "charge_order"),
        CheckConstraint("exp_month BETWEEN 1 AND 12", name="expiry"),
        Index(
            "ix_payment_methods_unfinished_removals",
            "id",
            postgresql_where=text("detached_at IS NOT NULL AND gateway_detached_at IS NULL"),
        ),
        CheckConstraint("last4 ~ '^[0-9]{0,4}$'", name="last4"),
        CheckConstraint("gateway_detached_at IS NULL OR detached_at IS NOT NULL", name="detached"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    gateway: Mapped[str]
    gateway_reference: Mapped[str]
    gateway_customer_reference: Mapped[str]
    brand: Mapped[str]
    last4: Mapped[str]
    exp_month: Mapped[int | None]
    exp_year: Mapped[int | None]
    fingerprint: Mapped[str | None]
    is_default: Mapped[bool]
    charge_order: Mapped[int]
    created_at: Mapped[datetime]
    detached_at: Mapped[datetime | None]
    gateway_detached_at: Mapped[datetime | None]
    offered_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    promoted_at: Mapped[datetime | None]

    @property
    def expires(self) -> str | None:
        """Return ``MM/YYYY``, None where the gateway did not state the expiry."""
        if self.exp_month is None or self.exp_year is None:
            return None
        return f"{self.exp_month:02d}/{self.exp_year:04d}"


class GatewayCustomer(Base):
    """What a gateway calls an organization."""

    __tablename__ = "gateway_customers"
    __table_args__ = (UniqueConstraint("gateway", "gateway_reference"),)

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    gateway: Mapped[str] = mapped_column(primary_key=True)
    gateway_reference: Mapped[str]


class Refund(Base):
    """A refund of one payment; a repeated request with the same ``idempotency_key`` is the same refund.

    Pending refunds are reserved: they count in ``payments.refunded_minor`` until they fail. ``from_wallet_minor`` is
    the part that is taken from the wallet, because no invoice holds it; the invoices return the remainder. It is
    decided when the refund is reserved. ``gateway_requested_at`` is an instant of the database's clock, not later than
    the first request to the gateway; None for a refund that was reserved before the column existed.
    """

    __tablename__ = "refunds"
    __table_args__ = (
        UniqueConstraint("gateway_reference"),
        CheckConstraint("amount_minor > 0", name="amount"),
        CheckConstraint("from_wallet_minor BETWEEN 0 AND amount_minor", name="from_wallet"),
        CheckConstraint("status IN ('pending', 'succeeded', 'failed')", name="status"),
        CheckConstraint("destination IN ('source', 'wallet')", name="destination"),
        same_organization("refunds", "payment_id", "payments", with_currency=True),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(index=True)
    payment_id: Mapped[str] = mapped_column(index=True)
    amount_minor: Mapped[int]
    from_wallet_minor: Mapped[int]
    currency: Mapped[str]
    destination: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str]
    actor: Mapped[str]
    request_id: Mapped[str | None]
    failure_code: Mapped[str | None]
    gateway_reference: Mapped[str | None]
    idempotency_key: Mapped[str] = mapped_column(unique=True)
    gateway_requested_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class WebhookEventRow(Base):
    """A verified webhook, once per gateway and event. It holds data of a payment, none of a person.

    ``received`` until the workflow of the payment or the refund has accepted it, then ``delivered``. ``ignored``: it is
    about none of this installation. ``mismatch``: it contradicts the payment and changed nothing. An event about a
    refund has its ``refund_id``, and no ``payment_status``: only the gateway itself is asked for the refund's status.
    """

    __tablename__ = "webhook_events"
    __table_args__ = (
        CheckConstraint("status IN ('received', 'delivered', 'ignored', 'mismatch')", name="status"),
        Index("ix_webhook_events_undelivered", "received_at", postgresql_where=text("status = 'received'")),
    )

    gateway: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    event_type: Mapped[str]
    payment_id: Mapped[str | None] = mapped_column(index=True)
    refund_id: Mapped[str | None]
    gateway_reference: Mapped[str | None]
    payment_status: Mapped[str | None]
    amount_minor: Mapped[int | None]
    currency: Mapped[str | None]
    decline_code: Mapped[str | None]
    payload_sha256: Mapped[str]
    status: Mapped[str]
    mismatch_reason: Mapped[str | None]
    received_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]
