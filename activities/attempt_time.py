"""The time of an activity's attempt.

The ``now`` of a command is the workflow's time when it scheduled the activity. An attempt that starts later, after an
outage of the database or of the workers, receives the command with ``now`` moved on by its delay: a grace period, the
date of an invoice and a proration count from when the work is done. A later attempt must find what an earlier one may
have committed: keys are built from ``scheduled_at``, and so is what the customer was shown, such as a price.
"""

from __future__ import annotations

import dataclasses
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

DELAY_THRESHOLD = timedelta(minutes=1)
"""A shorter delay counts as none, so that the period boundaries that a command names stay exact."""

_delay: ContextVar[timedelta] = ContextVar("attempt_delay", default=timedelta())


def attempt_delay() -> timedelta:
    """Return how much later than its activity was scheduled this attempt has started; zero below the threshold."""
    return _delay.get()


def scheduled_at(now: datetime) -> datetime:
    """Return the instant that is the same in each attempt, for the ``now`` of a received command."""
    return now - attempt_delay()


class AttemptTimeInterceptor(Interceptor):
    """Moves the ``now`` of each command on to the time of the attempt."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _ActivityAtAttemptTime(next)


class _ActivityAtAttemptTime(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        delay = _delay_of(activity.info())
        token = _delay.set(delay)
        try:
            return await super().execute_activity(
                dataclasses.replace(input, args=[_moved(argument, delay) for argument in input.args])
                if delay
                else input
            )
        finally:
            _delay.reset(token)


def _delay_of(info: activity.Info) -> timedelta:
    """Return how much later than its activity was scheduled an attempt has started.

    ``current_attempt_scheduled_time`` leaves out the wait for a worker, and is that of the first attempt for a local
    activity. Both times are of one clock, the server's or, for a local activity, the worker's. A virtual clock that is
    moved moves both.
    """
    delay = info.started_time - info.scheduled_time
    return delay if delay >= DELAY_THRESHOLD else timedelta()


def _moved(argument: Any, delay: timedelta) -> Any:
    if not dataclasses.is_dataclass(argument) or isinstance(argument, type):
        return argument
    now = getattr(argument, "now", None)
    return dataclasses.replace(argument, now=now + delay) if isinstance(now, datetime) else argument
