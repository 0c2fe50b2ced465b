"""The calendar of a failed renewal: when to try again, when to suspend, when to give up."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

HARD_DECLINES = frozenset(
    {
        "lost_card",
        "stolen_card",
        "pickup_card",
        "account_closed",
        "invalid_account",
        "card_not_supported",
        "restricted_card",
        "revocation_of_authorization",
        "revocation_of_all_authorizations",
        "stop_payment_order",
        "fraudulent",
    }
)
"""Decline codes that a retry of the same card cannot cure (Stripe's list of codes that must not be retried)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """Days counted from the first failure. Suspension follows the last retry."""

    retry_days: tuple[int, ...] = field(default=(1, 3, 5, 7))
    cancel_day: int = 30
    retention_days: int = 30

    @property
    def suspend_day(self) -> int:
        return self.retry_days[-1] if self.retry_days else 0


LATE = timedelta(hours=1)
"""From here on the platform was away, and the calendar of a debt moves by what it was late."""


def first_failure(due_at: datetime, now: datetime) -> datetime:
    """Return the instant that grace is counted from: when the money was due.

    When the platform itself was late to ask, the customer is not the one who loses days: then it is now.
    """
    return due_at if now - due_at <= LATE else now


def next_retry(calendar: Calendar, first_failure: datetime, attempts_made: int) -> datetime | None:
    """Return when scheduled attempt number ``attempts_made`` (from zero) is due; None when all are used up."""
    if attempts_made >= len(calendar.retry_days):
        return None
    return first_failure + timedelta(days=calendar.retry_days[attempts_made])


def suspension(calendar: Calendar, first_failure: datetime) -> datetime:
    return first_failure + timedelta(days=calendar.suspend_day)


def cancellation(calendar: Calendar, first_failure: datetime) -> datetime:
    return first_failure + timedelta(days=calendar.cancel_day)


def deletion(calendar: Calendar, cancelled_at: datetime) -> datetime:
    return cancelled_at + timedelta(days=calendar.retention_days)


def is_hard(decline_code: str | None) -> bool:
    return decline_code in HARD_DECLINES
