"""The next scheduled action of a subscription, at which its workflow wakes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from workflows.rules import dunning
from workflows.rules.subscription import RENEWING_STATUSES, SubscriptionStatus


class ActionKind(StrEnum):
    START_PERIOD = "start_period"
    CANCEL_AT_PERIOD_END = "cancel_at_period_end"
    RETRY_PAYMENT = "retry_payment"
    SUSPEND = "suspend"
    CANCEL_UNPAID = "cancel_unpaid"
    DELETE_DATA = "delete_data"


DUNNING_ACTIONS = frozenset({ActionKind.RETRY_PAYMENT, ActionKind.SUSPEND, ActionKind.CANCEL_UNPAID})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledAction:
    """An action and the instant at which it is due."""

    at: datetime
    kind: ActionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleInput:
    """The facts that the schedule depends on."""

    status: SubscriptionStatus
    period_start: datetime | None = None
    period_end: datetime | None = None
    cancel_at_period_end: bool = False
    grace_started_at: datetime | None = None
    retries_made: int = 0
    hard_declined: bool = False
    cancelled_at: datetime | None = None
    policy: dunning.DunningPolicy


def next_action(schedule: ScheduleInput) -> ScheduledAction | None:
    """Return the next action, or None when only a command or a signal can change the subscription."""
    match schedule.status:
        case status if status in RENEWING_STATUSES:
            return _next_period_action(schedule)
        case SubscriptionStatus.PAUSED if schedule.cancel_at_period_end:
            return _next_period_action(schedule)
        case SubscriptionStatus.PAST_DUE:
            return _next_dunning_action(schedule)
        case SubscriptionStatus.SUSPENDED if schedule.grace_started_at is not None:
            return ScheduledAction(
                at=dunning.cancels_at(schedule.policy, schedule.grace_started_at), kind=ActionKind.CANCEL_UNPAID
            )
        case SubscriptionStatus.CANCELLED if schedule.cancelled_at is not None:
            return ScheduledAction(
                at=dunning.deletes_at(schedule.policy, schedule.cancelled_at), kind=ActionKind.DELETE_DATA
            )
        case _:
            return None


def _next_period_action(schedule: ScheduleInput) -> ScheduledAction | None:
    if schedule.period_end is None or schedule.period_start is None:
        return None
    return ScheduledAction(
        at=schedule.period_end,
        kind=ActionKind.CANCEL_AT_PERIOD_END if schedule.cancel_at_period_end else ActionKind.START_PERIOD,
    )


def _next_dunning_action(schedule: ScheduleInput) -> ScheduledAction | None:
    if schedule.grace_started_at is None:
        return None
    retry = dunning.next_retry_at(schedule.policy, schedule.grace_started_at, schedule.retries_made)
    if retry is not None and not schedule.hard_declined:
        return ScheduledAction(at=retry, kind=ActionKind.RETRY_PAYMENT)
    return ScheduledAction(at=dunning.suspends_at(schedule.policy, schedule.grace_started_at), kind=ActionKind.SUSPEND)
