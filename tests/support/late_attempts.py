"""Attempts of activities that start long after their activity was scheduled, as after an outage of the database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.attempt_time import AttemptTimeInterceptor

Command = TypeVar("Command")
Result = TypeVar("Result")

SCHEDULED_AT = datetime(2030, 1, 1, tzinfo=UTC)
"""On the server's clock, which is not that of the subscription."""


class _Activity(ActivityInboundInterceptor):
    """The end of the chain of interceptors: runs the activity."""

    def __init__(self) -> None:
        pass

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        return await input.fn(*input.args)


async def run_late(
    perform: Callable[[Command], Awaitable[Result]], command: Command, delay: timedelta, *, waited: bool = False
) -> Result:
    """Run the attempt of an activity that starts ``delay`` after the activity was scheduled.

    Args:
        waited: It is the first attempt, which has waited for a worker; otherwise earlier attempts have failed.
    """
    environment = ActivityEnvironment()
    environment.info = replace(
        environment.info,
        attempt=1 if waited else 9,
        scheduled_time=SCHEDULED_AT,
        current_attempt_scheduled_time=SCHEDULED_AT if waited else SCHEDULED_AT + delay,
        started_time=SCHEDULED_AT + delay,
    )

    async def attempt() -> Result:
        chain = AttemptTimeInterceptor().intercept_activity(_Activity())
        received = ExecuteActivityInput(fn=perform, args=[command], executor=None, headers={})
        result: Result = await chain.execute_activity(received)
        return result

    return await environment.run(attempt)
