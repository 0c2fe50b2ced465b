"""Dunning: when an unpaid invoice is retried, and when its subscription is suspended and cancelled."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from workflows.rules.payment import PaymentStatus

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


FRAUD_DECLINES = frozenset({"fraudulent", "merchant_blacklist", "stolen_card", "pickup_card"})
"""Decline codes by which the issuer or the gateway suspects fraud: no other card of the organization is tried."""

PAYMENT_IN_FLIGHT = "conflict"
"""Failure code of a payment that was not made, because another one of the same invoice is in flight."""


class FundsKind(StrEnum):
    """What a past-due subscription may collect from when it is signaled.

    Attributes:
        CREDIT: Money was added: credit, and the card for the remainder unless it was hard-declined.
        RELEASED_CREDIT: A failed card payment released its hold: credit alone. If this charged a card, two past-due
            subscriptions whose cards are declined would release and hold the same credit for ever.
        PAYMENT_METHOD: The customer saved a card or chose another default: it is tried even after a hard decline.
        PROMOTED_PAYMENT_METHOD: A backup became the default because the default was removed. It is tried unless it had
            a hard decline itself, or a card was declined for suspected fraud: by a removal the customer offers none.
    """

    CREDIT = "credit"
    RELEASED_CREDIT = "released_credit"
    PAYMENT_METHOD = "payment_method"
    PROMOTED_PAYMENT_METHOD = "promoted_payment_method"


@dataclass(frozen=True, slots=True, kw_only=True)
class DunningPolicy:
    """Days counted from the first failure. Suspension follows the last retry."""

    retry_days: tuple[int, ...] = field(default=(1, 3, 5, 7))
    cancel_day: int = 30
    retention_days: int = 30

    @property
    def suspend_day(self) -> int:
        return self.retry_days[-1] if self.retry_days else 0


DOWNTIME_THRESHOLD = timedelta(hours=1)
"""A longer delay counts as platform downtime, which does not count as grace period."""


def past_due_since(due_at: datetime, now: datetime) -> datetime:
    """Return the start of the grace period: the due date, or ``now`` when the platform collected late."""
    return late_start(due_at, now)


def late_start(planned_at: datetime, now: datetime) -> datetime:
    """Return when what was planned starts: then, or now if the platform is late by more than the threshold."""
    return planned_at if now - planned_at <= DOWNTIME_THRESHOLD else now


def postpone_dates(
    next_retry_at: datetime | None, suspends_at: datetime | None, now: datetime
) -> tuple[datetime | None, datetime | None]:
    """Return both dates as they are after platform downtime until ``now``.

    The first of them is late, extends the grace period by its delay, and happens at once.
    """
    first = next_retry_at or suspends_at
    if first is None or now - first <= DOWNTIME_THRESHOLD:
        return next_retry_at, suspends_at
    late = now - first
    return next_retry_at and next_retry_at + late, suspends_at and suspends_at + late


def next_retry_at(policy: DunningPolicy, grace_started_at: datetime, attempts_made: int) -> datetime | None:
    """Return when scheduled attempt number ``attempts_made`` (from zero) is due; None when all are used up."""
    if attempts_made >= len(policy.retry_days):
        return None
    return grace_started_at + timedelta(days=policy.retry_days[attempts_made])


def count_elapsed_retries(policy: DunningPolicy, past_due_since: datetime, now: datetime) -> int:
    """Return how many scheduled retries are in the past."""
    return sum(past_due_since + timedelta(days=day) <= now for day in policy.retry_days)


def count_recorded_retries(
    policy: DunningPolicy, past_due_since: datetime, *, failed_attempts: int, last_attempt_at: datetime | None
) -> int:
    """Return how many scheduled retries were made, from the attempts on record.

    Customers retry by hand as well, and the grace period may have been extended: at most one retry was made for each
    failed attempt after the first, and none that was due after the last attempt.
    """
    if last_attempt_at is None:
        return 0
    return min(max(failed_attempts - 1, 0), count_elapsed_retries(policy, past_due_since, last_attempt_at))


def suspends_at(policy: DunningPolicy, grace_started_at: datetime) -> datetime:
    return grace_started_at + timedelta(days=policy.suspend_day)


def cancels_at(policy: DunningPolicy, grace_started_at: datetime) -> datetime:
    return grace_started_at + timedelta(days=policy.cancel_day)


def deletes_at(policy: DunningPolicy, cancelled_at: datetime) -> datetime:
    return cancelled_at + timedelta(days=policy.retention_days)


def is_hard_decline(decline_code: str | None) -> bool:
    return decline_code in HARD_DECLINES


def all_hard_declined(
    decline_code: str | None, hard_declined_method_ids: Collection[str], method_ids: Sequence[str]
) -> bool:
    """Return whether no card is charged for an invoice by itself any more.

    Args:
        decline_code: Of the last charge. Suspected fraud rules out every card, until the customer offers one.
        hard_declined_method_ids: The cards with a hard decline while the invoice was collected.
        method_ids: The cards that may pay it.
    """
    return decline_code in FRAUD_DECLINES or (
        bool(method_ids) and all(method_id in hard_declined_method_ids for method_id in method_ids)
    )


def may_charge_backup(status: PaymentStatus, decline_code: str | None) -> bool:
    """Return whether the next saved method is charged after a payment ended with ``status``.

    Only a certain failure allows it: money of a payment whose outcome is unknown may still arrive.
    """
    return status is PaymentStatus.FAILED and decline_code not in FRAUD_DECLINES | {PAYMENT_IN_FLIGHT}


def may_charge_card(arrived: Set[FundsKind], *, by_customer: bool, is_scheduled: bool, hard_declined: bool) -> bool:
    """Return whether an attempt to collect may charge the card for what credit does not cover.

    Args:
        arrived: What has arrived since the last attempt.
        by_customer: Whether the customer asks for the attempt, who may also try a hard-declined card again.
        is_scheduled: Whether the attempt is a due action of the dunning schedule.
        hard_declined: Whether the card that is charged first was hard-declined.
    """
    if by_customer:
        return True
    return not hard_declined and (is_scheduled or arrived != {FundsKind.RELEASED_CREDIT})
