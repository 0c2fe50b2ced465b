"""Statuses of a subscription and the transitions between them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from workflows.rules.errors import ErrorCode, RuleViolation


class SubscriptionStatus(StrEnum):
    PENDING = "pending"
    PROVISIONING = "provisioning"
    TRIALING = "trialing"
    ACTIVE = "active"
    PAST_DUE = "past_due"
    SUSPENDED = "suspended"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"
    FAILED = "failed"
    EXPIRED = "expired"


TRANSITIONS: dict[SubscriptionStatus, frozenset[SubscriptionStatus]] = {
    SubscriptionStatus.PENDING: frozenset(
        {SubscriptionStatus.PROVISIONING, SubscriptionStatus.EXPIRED, SubscriptionStatus.CANCELLED}
    ),
    SubscriptionStatus.PROVISIONING: frozenset(
        {
            SubscriptionStatus.TRIALING,
            SubscriptionStatus.ACTIVE,
            SubscriptionStatus.FAILED,
            SubscriptionStatus.CANCELLED,
        }
    ),
    SubscriptionStatus.TRIALING: frozenset(
        {SubscriptionStatus.ACTIVE, SubscriptionStatus.PAUSED, SubscriptionStatus.CANCELLED}
    ),
    SubscriptionStatus.ACTIVE: frozenset(
        {SubscriptionStatus.PAST_DUE, SubscriptionStatus.PAUSED, SubscriptionStatus.CANCELLED}
    ),
    SubscriptionStatus.PAST_DUE: frozenset(
        {SubscriptionStatus.ACTIVE, SubscriptionStatus.SUSPENDED, SubscriptionStatus.CANCELLED}
    ),
    SubscriptionStatus.SUSPENDED: frozenset({SubscriptionStatus.ACTIVE, SubscriptionStatus.CANCELLED}),
    SubscriptionStatus.PAUSED: frozenset({SubscriptionStatus.ACTIVE, SubscriptionStatus.CANCELLED}),
    SubscriptionStatus.CANCELLED: frozenset({SubscriptionStatus.TERMINATED}),
    SubscriptionStatus.TERMINATED: frozenset(),
    SubscriptionStatus.FAILED: frozenset(),
    SubscriptionStatus.EXPIRED: frozenset(),
}

LIVE_STATUSES = frozenset(
    {
        SubscriptionStatus.PENDING,
        SubscriptionStatus.PROVISIONING,
        SubscriptionStatus.TRIALING,
        SubscriptionStatus.ACTIVE,
        SubscriptionStatus.PAST_DUE,
        SubscriptionStatus.SUSPENDED,
        SubscriptionStatus.PAUSED,
    }
)
"""Statuses in which the customer has the service or waits for it."""

RENEWING_STATUSES = frozenset({SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING})
"""Statuses with a current period for which nothing is owed and which is renewed at its end.

In these alone a subscription can be paused or change its plan. In these, and in a pause, it can be cancelled at the end
of the period.
"""

RUNNING_STATUSES = RENEWING_STATUSES | {SubscriptionStatus.PAST_DUE}
"""Statuses in which the instance runs and the customer can operate it."""

STOPPED_STATUSES = frozenset({SubscriptionStatus.SUSPENDED, SubscriptionStatus.PAUSED, SubscriptionStatus.CANCELLED})
"""Statuses in which the instance is stopped by the platform and its data is kept."""

CANCELLATION_REQUESTED = "subscription.cancellation_requested"
"""Kind of the timeline event of an accepted cancellation of an order."""

PRE_READY_STATUSES = frozenset({SubscriptionStatus.PENDING, SubscriptionStatus.PROVISIONING})
PAST_DUE_STATUSES = frozenset({SubscriptionStatus.PAST_DUE, SubscriptionStatus.SUSPENDED})
TERMINAL_STATUSES = frozenset(state for state, targets in TRANSITIONS.items() if not targets)


def has_ended(status: SubscriptionStatus, *, was_activated: bool) -> bool:
    """Return whether nothing is left to do for a subscription.

    A cancelled one still has data to delete, unless it was an order that was cancelled before its instance was ready.
    """
    return status in TERMINAL_STATUSES or (status is SubscriptionStatus.CANCELLED and not was_activated)


def is_in_paid_period(status: SubscriptionStatus, period_end: datetime | None, now: datetime) -> bool:
    """Return whether there is a paid period, at whose end the subscription can be cancelled.

    A pause keeps the rest of the period that was paid before it.
    """
    if status is SubscriptionStatus.PAUSED:
        return period_end is not None and now < period_end
    return status in RENEWING_STATUSES


def unpaid_period_violation(status: SubscriptionStatus) -> RuleViolation:
    """Return the refusal of a cancellation at the end of a period that is not paid."""
    return RuleViolation(
        ErrorCode.ILLEGAL_MOVE,
        f"A subscription that is {status} cannot be cancelled at the end of its period, which is not paid."
        " Pay the open invoice first, or cancel now.",
        {"from": status},
    )


def transition(current: SubscriptionStatus, target: SubscriptionStatus) -> SubscriptionStatus:
    """Return ``target`` if the transition is allowed.

    Raises:
        RuleViolation: ``ILLEGAL_MOVE`` if the table does not list it.
    """
    if target not in TRANSITIONS[current]:
        raise RuleViolation(
            ErrorCode.ILLEGAL_MOVE,
            f"A subscription that is {current} cannot become {target}.",
            {"from": current, "to": target},
        )
    return target
