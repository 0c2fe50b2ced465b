"""A payment's states. Facts about it arrive in any order and any number; the furthest one counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money


class PaymentStatus(StrEnum):
    CREATED = "created"
    PENDING = "pending"
    UNKNOWN = "unknown"
    AUTHORIZED = "authorized"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    PARTIALLY_REFUNDED = "partially_refunded"
    REFUNDED = "refunded"
    DISPUTED = "disputed"


class RefundStatus(StrEnum):
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


S = PaymentStatus

TRANSITIONS: dict[PaymentStatus, frozenset[PaymentStatus]] = {
    S.CREATED: frozenset({S.PENDING, S.UNKNOWN, S.AUTHORIZED, S.SUCCEEDED, S.FAILED, S.EXPIRED, S.CANCELLED}),
    S.PENDING: frozenset({S.UNKNOWN, S.AUTHORIZED, S.SUCCEEDED, S.FAILED, S.EXPIRED, S.CANCELLED}),
    S.UNKNOWN: frozenset({S.PENDING, S.AUTHORIZED, S.SUCCEEDED, S.FAILED, S.EXPIRED, S.CANCELLED}),
    S.AUTHORIZED: frozenset({S.UNKNOWN, S.SUCCEEDED, S.FAILED, S.EXPIRED, S.CANCELLED}),
    # Money that arrives late is money all the same: a failed or expired payment may still succeed.
    S.FAILED: frozenset({S.SUCCEEDED}),
    S.EXPIRED: frozenset({S.SUCCEEDED}),
    S.CANCELLED: frozenset({S.SUCCEEDED}),
    S.SUCCEEDED: frozenset({S.PARTIALLY_REFUNDED, S.REFUNDED, S.DISPUTED}),
    S.PARTIALLY_REFUNDED: frozenset({S.REFUNDED, S.DISPUTED}),
    S.REFUNDED: frozenset(),
    S.DISPUTED: frozenset({S.SUCCEEDED, S.REFUNDED}),
}

IN_FLIGHT_STATUSES = frozenset({S.CREATED, S.PENDING, S.UNKNOWN, S.AUTHORIZED})
PAID_STATUSES = frozenset({S.SUCCEEDED, S.PARTIALLY_REFUNDED, S.REFUNDED, S.DISPUTED})


REFUNDABLE_STATUSES = frozenset({S.SUCCEEDED, S.PARTIALLY_REFUNDED, S.REFUNDED})

REFUND_TRANSITIONS: dict[RefundStatus, frozenset[RefundStatus]] = {
    RefundStatus.PENDING: frozenset({RefundStatus.SUCCEEDED, RefundStatus.FAILED}),
    # The bank may reject a refund for some days after the gateway has sent it.
    RefundStatus.SUCCEEDED: frozenset({RefundStatus.FAILED}),
    RefundStatus.FAILED: frozenset(),
}
"""What a gateway may report next of a refund to the source."""


def transition(current: PaymentStatus, target: PaymentStatus) -> PaymentStatus:
    """Return ``target`` if it is a legal move.

    Raises:
        RuleViolation: ``ILLEGAL_MOVE``.
    """
    if target not in TRANSITIONS[current]:
        raise RuleViolation(ErrorCode.ILLEGAL_MOVE, f"A payment that is {current} cannot become {target}.")
    return target


def apply_gateway_status(current: PaymentStatus, reported: PaymentStatus) -> PaymentStatus:
    """Return the status after a gateway has reported one: a report that comes late or twice changes nothing."""
    return reported if reported in TRANSITIONS[current] else current


def status_after_refunds(current: PaymentStatus, *, captured_minor: int, refunded_minor: int) -> PaymentStatus:
    """Return the status of a payment of which ``refunded_minor`` was refunded for certain. A disputed one stays so."""
    if current not in REFUNDABLE_STATUSES:
        return current
    if refunded_minor == 0:
        return S.SUCCEEDED
    return S.REFUNDED if refunded_minor == captured_minor else S.PARTIALLY_REFUNDED


UNPAID_FINAL_STATUSES = frozenset({S.FAILED, S.EXPIRED, S.CANCELLED})
"""The payment ended without money."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentRecord:
    """A payment as it is on record."""

    payment_id: str
    organization_id: str
    amount: Money
    gateway: str
    purpose: str
    status: PaymentStatus
    payment_method_id: str | None
    subscription_id: str | None
    invoice_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRefund:
    """A refund as it is on record."""

    refund_id: str
    payment_id: str
    organization_id: str
    amount: Money
    destination: str
    status: RefundStatus
    reason: str
    actor: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPayment:
    """What a gateway says of a payment. ``amount`` is what it was asked for, or what it received."""

    reference: str
    status: PaymentStatus
    amount: Money
    decline_code: str | None = None
    redirect_url: str | None = None


def mismatch_reason(gateway_payment: GatewayPayment, *, amount: Money, reference: str | None) -> str | None:
    """Return why the payment at the gateway cannot be this payment, or None when it can.

    ``reference`` is the gateway's name of it as far as it is known.
    """
    if gateway_payment.amount.currency != amount.currency:
        return f"currency {gateway_payment.amount.currency} instead of {amount.currency}"
    if gateway_payment.amount != amount:
        return f"amount {gateway_payment.amount.amount_minor} instead of {amount.amount_minor}"
    if reference is not None and gateway_payment.reference != reference:
        return "gateway payment id mismatch"
    return None


IDEMPOTENCY_KEY_RETENTION = timedelta(hours=23)
"""Gateways keep idempotency keys for 24 hours; a call is repeated only while there is an hour to spare."""

POLL_DELAYS = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15), timedelta(hours=1))
POLL_INTERVAL = timedelta(days=1)
CUSTOMER_ACTION_TIMEOUT = timedelta(hours=24)
"""How long a customer may take to complete a payment that waits for them."""


def next_poll_at(status_since: datetime, polls: int) -> datetime:
    """Return when to poll the gateway next: 1, 5, 15 minutes and 1 hour after the status began, then daily."""
    if polls < len(POLL_DELAYS):
        return status_since + POLL_DELAYS[polls]
    return status_since + POLL_DELAYS[-1] + (polls - len(POLL_DELAYS) + 1) * POLL_INTERVAL
