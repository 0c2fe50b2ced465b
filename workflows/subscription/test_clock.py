"""Test clock of a subscription: read everywhere, advanced in the sandbox only.

The time-skipping server keeps one clock per workflow. ``advance`` skips in steps that end at the next scheduled action
at the latest, and waits after each step until the subscription is idle: a longer skip would also skip the back-offs of
running activities. Each skip ends ``SKIP_MARGIN`` before the action is due and the rest passes in real time: a skip
that ends while an activity runs makes the server skip on to the next timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import TimeSkipper, TimeSkippingConfig

from workflows import names
from workflows.client import WorkflowClient
from workflows.ports.subscription import ClockStatus
from workflows.rpc_errors import TemporalUnavailable, WorkflowNotRunning, WorkflowTaskPending
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.subscription import PRE_READY_STATUSES, TERMINAL_STATUSES

T = TypeVar("T")

ADVANCE_STEP_TIMEOUT = timedelta(seconds=120)
"""Real time that one step may take to execute what is due: a suspension waits for the cluster."""

SKIP_MARGIN = timedelta(milliseconds=400)
"""How long before a scheduled action a skip ends. A skip starts late, so the margin exceeds the request's latency."""

POLL_INTERVAL_SECONDS = 0.03


class SubscriptionClock:
    """Reads and advances test clocks.

    Every method raises ``TemporalUnavailable`` without an answer and ``WorkflowNotRunning`` without such a workflow.
    """

    def __init__(self, workflows: WorkflowClient, step_timeout: timedelta = ADVANCE_STEP_TIMEOUT) -> None:
        self._workflows = workflows
        self._step_timeout = step_timeout
        # Disabled: workflows that this client starts do not skip time; child workflows run in real time.
        self._time_skipper = TimeSkipper(
            workflows.client, config=TimeSkippingConfig(enabled=False, disable_propagation=True)
        )

    async def now(self, subscription_id: str) -> datetime:
        """Return the time of the subscription: the server's time plus the skipped time.

        A query would return the time of the last workflow task, which may be weeks ago.
        """
        return await _translate_rpc_errors(self._time_skipper.get_current_time(self._handle(subscription_id)))

    async def advance(
        self, subscription_id: str, *, by: timedelta | None = None, until: datetime | None = None
    ) -> datetime:
        """Advance the clock ``by`` a duration or ``until`` an instant.

        Returns:
            The time once every action due until then is executed. A subscription that reaches a terminal status has no
            clock any more; its target is returned.

        Raises:
            RuleViolation: ``CONFLICT`` while the subscription is pending or provisioning.
        """
        now = await self.now(subscription_id)
        target = until if until is not None else now + (by or timedelta())
        released_until = now
        while True:
            view, now = await self._wait_until_idle(subscription_id)
            if view.state in PRE_READY_STATUSES:
                raise RuleViolation(
                    ErrorCode.CONFLICT,
                    f"A subscription that is {view.state} has no schedule yet.",
                    {"status": view.state},
                )
            if view.state in TERMINAL_STATUSES:
                return max(target, now) if until is None else target
            if now > released_until and view.reminders_at:
                await self._workflows.release_reminders(subscription_id)
                released_until = now
            if now >= target:
                return now
            skip_until = min([target, *(at for at in view.reminders_at if at > now)])
            if view.next_action_at is not None:
                skip_until = min(skip_until, view.next_action_at - SKIP_MARGIN)
            if skip_until > now:
                await self._skip(subscription_id, skip_until - now)
            else:
                await asyncio.sleep(POLL_INTERVAL_SECONDS)

    async def _wait_until_idle(self, subscription_id: str) -> tuple[ClockStatus, datetime]:
        """Wait until the subscription is idle before its next action; return its status and time."""
        async with _busy_timeout(self._step_timeout):
            while True:
                try:
                    view = await self._workflows.get_clock_status(subscription_id)
                except WorkflowTaskPending:
                    await asyncio.sleep(POLL_INTERVAL_SECONDS)
                    continue
                now = await self.now(subscription_id)
                is_done = view.is_idle and (view.next_action_at is None or view.next_action_at > now)
                is_before_ready = view.state in PRE_READY_STATUSES and not view.is_changing
                if is_done or is_before_ready or view.state in TERMINAL_STATUSES:
                    return view, now
                await asyncio.sleep(POLL_INTERVAL_SECONDS)

    async def _skip(self, subscription_id: str, by: timedelta) -> None:
        """Skip ``by``. A workflow that ends meanwhile is seen by its status."""
        async with _busy_timeout(self._step_timeout):
            with suppress(WorkflowNotRunning):
                await _translate_rpc_errors(self._time_skipper.fast_forward(self._handle(subscription_id), by))

    def _handle(self, subscription_id: str) -> WorkflowHandle[Any, Any]:
        return self._workflows.client.get_workflow_handle(names.subscription_workflow_id(subscription_id))


@asynccontextmanager
async def _busy_timeout(limit: timedelta) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limit.total_seconds()):
            yield
    except TimeoutError as error:
        raise TemporalUnavailable("The subscription did not become idle in time.") from error


async def _translate_rpc_errors(call: Awaitable[T]) -> T:
    try:
        return await call
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise WorkflowNotRunning(error.message) from error
        raise TemporalUnavailable(error.message) from error
