"""Kinds of notifications, their priority, and when a delivery is retried."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

CHANNEL_EMAIL = "email"


class NotificationKind(StrEnum):
    """One template each (``templates/email``); ``activities/notification_keys.py`` lists the required context keys."""

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
    REFUND_FAILED = "refund_failed"
    OPERATOR_ALERT = "operator_alert"

    @property
    def priority(self) -> int:
        """Lower is sent first: a user waits for a sign-in mail, which must not queue behind a month's renewals."""
        return 0 if self in URGENT_KINDS else 1


URGENT_KINDS = frozenset({NotificationKind.EMAIL_VERIFICATION, NotificationKind.PASSWORD_RESET})


REMINDER_DAYS = (7, 3, 1)
"""Days before the end of a period, in the order of sending."""


def reminder_times(period_end: datetime, *, after: datetime) -> list[tuple[int, datetime]]:
    """Return days and instant of each reminder of a period that is due later than ``after``."""
    times = [(days, period_end - timedelta(days=days)) for days in REMINDER_DAYS]
    return [(days, at) for days, at in times if at > after]


def is_superseded(days_before: int, lateness: timedelta) -> bool:
    """Return whether the next reminder, or the end of the period, is due as well."""
    later = [days for days in REMINDER_DAYS if days < days_before]
    return lateness >= timedelta(days=days_before - (later[0] if later else 0))


class DeliveryFailure(StrEnum):
    """Why a delivery failed.

    ``transient``: the server asked for a later attempt, or the connection broke. ``permanent``: the server rejected
    the message. ``faulty``: the message could not be rendered.
    """

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    UNRENDERABLE = "faulty"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryLimits:
    """Bounds of the retries of one delivery. ``maximum_rejections`` does not count transient failures."""

    initial_interval: timedelta = timedelta(seconds=2)
    maximum_interval: timedelta = timedelta(minutes=10)
    maximum_rejections: int = 3
    maximum_age: timedelta = timedelta(hours=72)


LIMITS = RetryLimits()


def next_retry_delay(
    failure: DeliveryFailure, *, attempts: int, available_at: datetime, now: datetime, limits: RetryLimits = LIMITS
) -> timedelta | None:
    """Return the delay before the next attempt, or None when the delivery has failed permanently.

    Delays double. A permanent rejection is retried up to ``limits.maximum_rejections`` attempts, because greylisting
    servers sometimes answer with a permanent code first.

    Args:
        attempts: Attempts so far, the failed one included.
        available_at: When the message could be sent first.
    """
    if failure is not DeliveryFailure.TRANSIENT and attempts >= limits.maximum_rejections:
        return None
    if now - available_at >= limits.maximum_age:
        return None
    return min(limits.initial_interval * (1 << min(attempts - 1, 24)), limits.maximum_interval)
