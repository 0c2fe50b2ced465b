"""A payment's states. Facts about it arrive in any order and any number; the furthest one counts."""

from __future__ import annotations

from enum import StrEnum

from workflows.rules.errors import Refusal, RuleBroken


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
