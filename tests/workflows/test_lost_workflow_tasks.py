"""Workflow tasks that are lost, with their worker, after the transaction of a local activity was committed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from temporalio import workflow

from tests.support.subscription_fixture import SubscriptionFixture
from tests.support.wait import wait_until
from workflows.ports.subscription import CancelAt


class LostTasks:
    """Fails the workflow task in which a local activity ends next, as if its worker died."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._is_next_lost = False
        self._released = threading.Event()
        execute = workflow.execute_local_activity_method

        async def execute_and_lose(*args: Any, **kwargs: Any) -> Any:
            try:
                return await execute(*args, **kwargs)
            finally:
                if self._is_next_lost:
                    self._is_next_lost = False
                    self.count += 1
                    # What the test sends now arrives before the task is repeated. The SDK lets a task block for 2 s.
                    self._released.wait(timeout=1.5)
                    raise RuntimeError("the worker dies before it completes the workflow task")

        monkeypatch.setattr(workflow, "execute_local_activity_method", execute_and_lose)

    def lose_next(self) -> None:
        self._is_next_lost = True

    def release(self) -> None:
        """Let the lost task end, so that the server repeats it."""
        self._released.set()

    async def wait_for_first(self) -> None:
        async def is_lost() -> bool:
            return self.count > 0

        await wait_until(is_lost)


@pytest.fixture
def lost_tasks(monkeypatch: pytest.MonkeyPatch) -> LostTasks:
    return LostTasks(monkeypatch)


@pytest.mark.scenario("B49")
async def test_a_resumption_whose_task_is_lost_starts_one_period(
    subscriptions: SubscriptionFixture, lost_tasks: LostTasks
) -> None:
    """The repeated task has another time, and a resumption starts its period now."""
    await subscriptions.top_up(2000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.wait_until_idle(subscription)
    lost_tasks.lose_next()
    lost_tasks.release()
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await subscriptions.wait_for_status(subscription, "active")
    assert await subscriptions.balance() == 1000
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]


@pytest.mark.scenario("B27")
@pytest.mark.parametrize("plan", ["starter", "trial"])
@pytest.mark.parametrize("at", list(CancelAt))
async def test_a_cancellation_before_a_lost_period_start_is_repeated_leaves_no_debt_and_no_hold(
    subscriptions: SubscriptionFixture, lost_tasks: LostTasks, plan: str, at: CancelAt
) -> None:
    """Credit and a card pay the period: its start holds the credit until the card has paid."""
    await subscriptions.top_up(700 if plan == "starter" else 200)
    subscription = await subscriptions.create_active_subscription(plan)
    await subscriptions.add_card()
    period_end = (await subscriptions.subscription(subscription))["current_period_end"]
    now = await subscriptions.now(subscription)
    lost_tasks.lose_next()
    moving = asyncio.create_task(
        subscriptions.temporal.fast_forward(subscriptions.handle(subscription), period_end - now)
    )
    await lost_tasks.wait_for_first()
    # It is handled before the repeated task asks for the period again.
    cancelling = asyncio.create_task(subscriptions.cancel(subscription, at))
    for _ in range(2):
        # Sent after the cancellation, and answered by the same server.
        await subscriptions.handle(subscription).describe()
    lost_tasks.release()
    await cancelling
    await moving
    await subscriptions.wait_until_idle(subscription)
    assert await subscriptions.balance("held") == 0
    assert "open" not in [invoice["status"] for invoice in await subscriptions.invoices(subscription)]
