"""Outages of days: the attempt that succeeds afterwards decides when a grace period and a resumed period start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest_asyncio
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from tests.support.databases import DatabaseFixture
from tests.support.subscription_fixture import SubscriptionFixture, run_subscription_fixture
from tests.support.temporal import TemporalFixture
from workflows.rules.periods import billing_period

DAY = timedelta(days=1)
OUTAGE = 3 * DAY
TOLERANCE = timedelta(minutes=2)
"""Real time passes while time is skipped."""

STEP = timedelta(seconds=1)
POLL_INTERVAL = 0.05


@dataclass
class Outage(Interceptor):
    """Fails each attempt of one activity until ``OUTAGE`` has passed since it was scheduled."""

    activity_type: str = ""
    noticed: asyncio.Event = field(default_factory=asyncio.Event)
    lasted: timedelta | None = None
    """How late the attempt was that no longer failed."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _FailingActivity(next, self)


class _FailingActivity(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, outage: Outage) -> None:
        super().__init__(next)
        self._outage = outage

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        if info.activity_type != self._outage.activity_type:
            return await super().execute_activity(input)
        if info.is_local:
            raise ConnectionError("the database is down")
        passed = info.started_time - info.scheduled_time
        if passed >= OUTAGE:
            self._outage.lasted = passed
            return await super().execute_activity(input)
        self._outage.noticed.set()
        raise ApplicationError("the database is down", next_retry_delay=OUTAGE - passed)


@dataclass
class LateSubscriptions:
    subscriptions: SubscriptionFixture
    outage: Outage

    async def wait_for_end_of_outage(self, subscription_id: str) -> timedelta:
        """Wait until the outage was noticed, skip its days, and return how late the attempt is that ends it.

        A skip also starts attempts that are not due yet.
        """
        subscriptions, outage = self.subscriptions, self.outage
        handle = subscriptions.handle(subscription_id)
        async with asyncio.timeout(120):
            await outage.noticed.wait()
            began_at = await subscriptions.now(subscription_id)
            while outage.lasted is None:
                remaining = began_at + OUTAGE - await subscriptions.now(subscription_id)
                await subscriptions.temporal.fast_forward(handle, max(remaining, STEP))
                await asyncio.sleep(POLL_INTERVAL)
        return outage.lasted


@pytest_asyncio.fixture
async def late(temporal: TemporalFixture, database: DatabaseFixture) -> AsyncIterator[LateSubscriptions]:
    outage = Outage()
    async with run_subscription_fixture(temporal, database, interceptors=[outage]) as fixture:
        yield LateSubscriptions(fixture, outage)
        await fixture.assert_ledger_balanced()


async def test_the_grace_period_of_a_renewal_starts_after_the_outage(late: LateSubscriptions) -> None:
    subscriptions = late.subscriptions
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_active_subscription("starter")
    due: datetime = (await subscriptions.subscription(subscription))["current_period_end"]
    late.outage.activity_type = "billing.start_period"
    until_due = due - await subscriptions.now(subscription) - timedelta(seconds=1)
    await subscriptions.temporal.fast_forward(subscriptions.handle(subscription), until_due)
    lasted = await late.wait_for_end_of_outage(subscription)
    await subscriptions.wait_for_status(subscription, "past_due")
    row = await subscriptions.subscription(subscription)
    assert row["current_period_start"] == due
    assert timedelta() <= row["past_due_since"] - (due + lasted) < TOLERANCE
    (mail,) = await subscriptions.rows("SELECT template_context FROM notifications WHERE kind = 'payment_failed'")
    retry_at = row["past_due_since"] + DAY
    assert mail["template_context"]["next_retry_at"] == retry_at.isoformat()
    assert (await subscriptions.workflows.get_clock_status(subscription)).next_action_at == retry_at


async def test_a_resumed_period_starts_after_the_outage(late: LateSubscriptions) -> None:
    subscriptions = late.subscriptions
    await subscriptions.top_up(1000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.wait_for_status(subscription, "paused")
    late.outage.activity_type = "billing.start_period"
    ordered_at = await subscriptions.now(subscription)
    command = subscriptions.lifecycle_command("resume")
    resumption = asyncio.create_task(subscriptions.workflows.resume(subscription, command))
    lasted = await late.wait_for_end_of_outage(subscription)
    await resumption
    await subscriptions.wait_for_status(subscription, "active")
    row = await subscriptions.subscription(subscription)
    period = billing_period(row["billing_anchor"], 0)
    assert timedelta() <= period.start - (ordered_at + lasted) < TOLERANCE
    assert (row["current_period_start"], row["current_period_end"]) == (period.start, period.end)
    assert (await subscriptions.workflows.get_clock_status(subscription)).next_action_at == period.end
