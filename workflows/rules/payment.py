"""A payment's states. Facts about it arrive in any order and any number; the furthest one counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from workflows.rules.errors import Refusal, RuleBroken
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


S = PaymentStatus

MOVES: dict[PaymentStatus, frozenset[PaymentStatus]] = {
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

IN_FLIGHT = frozenset({S.CREATED, S.PENDING, S.UNKNOWN, S.AUTHORIZED})
RECEIVED = frozenset({S.SUCCEEDED, S.PARTIALLY_REFUNDED, S.REFUNDED, S.DISPUTED})


def move(current: PaymentStatus, target: PaymentStatus) -> PaymentStatus:
    """Return ``target`` if it is a legal move.

    Raises:
        RuleBroken: ``ILLEGAL_MOVE``.
    """
    if target not in MOVES[current]:
        raise RuleBroken(Refusal.ILLEGAL_MOVE, f"A payment that is {current} cannot become {target}.")
    return target


def observe(current: PaymentStatus, fact: PaymentStatus) -> PaymentStatus:
    """Return the status after a gateway said ``fact``: a fact that comes late or twice changes nothing."""
    return fact if fact in MOVES[current] else current


CLOSED = frozenset({S.FAILED, S.EXPIRED, S.CANCELLED})
"""It ended without money, and whoever waited for it was told so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
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
class Seen:
    """What a gateway says of a payment. ``amount`` is what it was asked for, or what it received."""

    reference: str
    status: PaymentStatus
    amount: Money
    decline_code: str | None = None
    redirect_url: str | None = None


def contradiction(seen: Seen, *, amount: Money, reference: str | None) -> str | None:
    """Return why what was seen cannot be this payment, or None when it can.

    ``reference`` is the gateway's name of it as far as it is known.
    """
    if seen.amount.currency != amount.currency:
        return f"currency {seen.amount.currency} instead of {amount.currency}"
    if seen.amount != amount:
        return f"amount {seen.amount.amount_minor} instead of {amount.amount_minor}"
    if reference is not None and seen.reference != reference:
        return "another payment of the gateway"
    return None


POLLS = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15), timedelta(hours=1))
POLL_EVERY = timedelta(days=1)
PENDING_AT_MOST = timedelta(hours=24)
"""How long a customer may take to complete a payment that waits for them."""


def next_poll(silent_since: datetime, polls: int) -> datetime:
    """Return when to ask the gateway next: 1, 5, 15 minutes and 1 hour after it fell silent, then daily."""
    if polls < len(POLLS):
        return silent_since + POLLS[polls]
    return silent_since + POLLS[-1] + (polls - len(POLLS) + 1) * POLL_EVERY
