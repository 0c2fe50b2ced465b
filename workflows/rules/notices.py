"""What the platform tells people: the kinds of notices, and when a delivery is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

CHANNEL_EMAIL = "email"


class NoticeKind(StrEnum):
    """One template each; ``templates/email/README.md`` says what each needs to be told."""

    EMAIL_VERIFICATION = "email_verification"
    PASSWORD_RESET = "password_reset"  # noqa: S105 - the name of a mail
    WELCOME = "welcome"
    TOP_UP_RECEIPT = "top_up_receipt"
    SUBSCRIPTION_CREATED = "subscription_created"
    SERVICE_READY = "service_ready"
    SUBSCRIPTION_EXPIRING = "subscription_expiring"
    SUBSCRIPTION_RENEWED = "subscription_renewed"
    PAYMENT_FAILED = "payment_failed"
    SUBSCRIPTION_SUSPENDED = "subscription_suspended"
    SUBSCRIPTION_RECOVERED = "subscription_recovered"
    SUBSCRIPTION_PAUSED = "subscription_paused"
    SUBSCRIPTION_RESUMED = "subscription_resumed"
    SUBSCRIPTION_CANCELLED = "subscription_cancelled"
    SUBSCRIPTION_TERMINATED = "subscription_terminated"
    SUBSCRIPTION_FAILED = "subscription_failed"
    SUBSCRIPTION_EXPIRED = "subscription_expired"
    PLAN_CHANGED = "plan_changed"
    REFUND_SUCCEEDED = "refund_succeeded"
    OPERATOR_ALERT = "operator_alert"


class Setback(StrEnum):
    """Why a delivery did not happen.

    ``transient``: the receiver asked to come back later, or the connection broke over this message.
    ``permanent``: the receiver refused this message. ``faulty``: it could not be composed.
    """

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    FAULTY = "faulty"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryLimits:
    """Bounds of one delivery. ``attempts`` is for refusals, ``age`` for everything that might pass."""

    first_pause: timedelta = timedelta(seconds=2)
    longest_pause: timedelta = timedelta(minutes=10)
    refusals: int = 3
    age: timedelta = timedelta(hours=72)


LIMITS = DeliveryLimits()


def retry_after(
    setback: Setback, *, attempts: int, created_at: datetime, now: datetime, limits: DeliveryLimits = LIMITS
) -> timedelta | None:
    """Return how long a delivery waits for its next attempt, or None when it has failed for good.

    ``attempts`` counts the one that just went wrong. Pauses double; a receiver that keeps refusing is asked
    ``limits.refusals`` times, because greylisting servers sometimes answer with a permanent code first.
    """
    if setback is not Setback.TRANSIENT and attempts >= limits.refusals:
        return None
    if now - created_at >= limits.age:
        return None
    return min(limits.first_pause * (1 << min(attempts - 1, 24)), limits.longest_pause)
