"""What falls due next in a subscription's life. The entity sleeps until then; nothing else keeps a calendar."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from workflows.rules import dunning
from workflows.rules.subscription import State

REMINDER_DAYS = (7, 3, 1)


class Step(StrEnum):
    REMIND = "remind"
    RENEW = "renew"
    END = "end"
    RETRY = "retry"
    SUSPEND = "suspend"
    GIVE_UP = "give_up"
    DELETE = "delete"


OF_DEBT = frozenset({Step.RETRY, Step.SUSPEND, Step.GIVE_UP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A moment and what is done then. ``days`` tells which reminder."""

    at: datetime
    step: Step
    days: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The facts that the calendar depends on."""

    state: State
    period_start: datetime | None = None
    period_end: datetime | None = None
    cancel_at_period_end: bool = False
    reminded: int | None = None
    first_failure: datetime | None = None
    attempts: int = 0
    hard_declined: bool = False
    cancelled_at: datetime | None = None
    calendar: dunning.Calendar


def next_due(standing: Standing) -> Due | None:
    """Return what falls due next, or None when only an order or a fact can move the subscription."""
    match standing.state:
        case State.TRIALING | State.ACTIVE:
            return _of_period(standing)
        case State.PAST_DUE:
            return _of_debt(standing)
        case State.SUSPENDED if standing.first_failure is not None:
            return Due(at=dunning.cancellation(standing.calendar, standing.first_failure), step=Step.GIVE_UP)
        case State.CANCELLED if standing.cancelled_at is not None:
            return Due(at=dunning.deletion(standing.calendar, standing.cancelled_at), step=Step.DELETE)
        case _:
            return None


def _of_period(standing: Standing) -> Due | None:
    if standing.period_end is None or standing.period_start is None:
        return None
    for days in REMINDER_DAYS:
        at = standing.period_end - timedelta(days=days)
        sent = standing.reminded is not None and standing.reminded <= days
        if not sent and at > standing.period_start:
            return Due(at=at, step=Step.REMIND, days=days)
    return Due(at=standing.period_end, step=Step.END if standing.cancel_at_period_end else Step.RENEW)


def _of_debt(standing: Standing) -> Due | None:
    if standing.first_failure is None:
        return None
    retry = dunning.next_retry(standing.calendar, standing.first_failure, standing.attempts)
    if retry is not None and not standing.hard_declined:
        return Due(at=retry, step=Step.RETRY)
    return Due(at=dunning.suspension(standing.calendar, standing.first_failure), step=Step.SUSPEND)
