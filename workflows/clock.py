"""A subscription's own clock: read everywhere, moved in the sandbox only.

The time-skipping server keeps a clock per workflow. Moving it is done in steps no longer than the next due moment,
each followed by a wait until the subscription has done what fell due: a longer step would let the server skip over the
back-offs of what runs on the way. A skip ends a moment before something falls due, and the rest passes by itself: where
a skip ends while an activity runs, the server goes on to the next timer, however far that is. Nothing else moves.
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
from workflows.client import NotRunning, NotSeenYet, Orchestrator, Unavailable
from workflows.ports.subscription import ClockView
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.subscription import BEFORE_READY, ENDED

T = TypeVar("T")

PATIENCE = timedelta(seconds=120)
"""How long one step may take to do what fell due, in real time: a suspension waits for the cluster."""

RUN_UP = timedelta(milliseconds=400)
"""How long before a due moment a skip ends. It ends later by what it took to begin, so this is more than that."""

LOOK_AGAIN_SECONDS = 0.03


class SubscriptionClock:
    """Raises from every method: ``Unavailable`` when nobody answers, ``NotRunning`` when there is no such workflow."""

    def __init__(self, orchestrator: Orchestrator, patience: timedelta = PATIENCE) -> None:
        self._orchestrator = orchestrator
        self._patience = patience
        # Skipping is stamped on nothing that this client starts, and children live in real time.
        self._skipper = TimeSkipper(
            orchestrator.client, config=TimeSkippingConfig(enabled=False, disable_propagation=True)
        )

    async def now(self, subscription_id: str) -> datetime:
        """What the subscription's clock shows: the server's time, plus what was skipped.

        The workflow's own answer would be the time of its last task, which may be weeks ago.
        """
        return await _reached(self._skipper.get_current_time(self._handle(subscription_id)))

    async def advance(
        self, subscription_id: str, *, by: timedelta | None = None, until: datetime | None = None
    ) -> datetime:
        """Move the clock ``by`` a span or ``until`` an instant; answer what it shows once all that fell due is done.

        A subscription that ends on the way has no clock any more: its clock is said to show the target.

        Raises:
            RuleBroken: ``CONFLICT`` while it is pending or provisioning.
        """
        now = await self.now(subscription_id)
        target = until if until is not None else now + (by or timedelta())
        while True:
            view, now = await self._idle(subscription_id)
            if view.state in BEFORE_READY:
                raise RuleBroken(
                    Refusal.CONFLICT,
                    f"A subscription that is {view.state} has no calendar yet.",
                    {"status": view.state},
                )
            if view.state in ENDED:
                return max(target, now) if until is None else target
            if now >= target:
                return now
            quiet = target if view.next_due is None else min(target, view.next_due - RUN_UP)
            if quiet > now:
                await self._skip(subscription_id, quiet - now)
            else:
                await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _idle(self, subscription_id: str) -> tuple[ClockView, datetime]:
        """Wait until the subscription has nothing to do before its next due moment, and return where it stands."""
        async with _bounded(self._patience):
            while True:
                try:
                    view = await self._orchestrator.clock(subscription_id)
                except NotSeenYet:
                    await asyncio.sleep(LOOK_AGAIN_SECONDS)
                    continue
                now = await self.now(subscription_id)
                done = view.idle and (view.next_due is None or view.next_due > now)
                if done or view.state in BEFORE_READY or view.state in ENDED:
                    return view, now
                await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _skip(self, subscription_id: str, by: timedelta) -> None:
        """Skip ``by``; a workflow that ends before is told by its state."""
        async with _bounded(self._patience):
            with suppress(NotRunning):
                await _reached(self._skipper.fast_forward(self._handle(subscription_id), by))

    def _handle(self, subscription_id: str) -> WorkflowHandle[Any, Any]:
        return self._orchestrator.client.get_workflow_handle(names.subscription_workflow(subscription_id))


@asynccontextmanager
async def _bounded(limit: timedelta) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limit.total_seconds()):
            yield
    except TimeoutError as error:
        raise Unavailable("the subscription is busy for too long") from error


async def _reached(call: Awaitable[T]) -> T:
    try:
        return await call
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NotRunning(error.message) from error
        raise Unavailable(error.message) from error
