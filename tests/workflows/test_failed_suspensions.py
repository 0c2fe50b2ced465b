"""A suspension, a stop or a start that failed may have done a part of its work, which the next state undoes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.subscription_fixture import SubscriptionFixture
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows import policies
from workflows.ports.subscription import CustomerOperation, StartOperation


async def _fail_resumption(subscriptions: SubscriptionFixture) -> str:
    """Return a subscription that was paused and resumed, and whose instance could not be started again."""
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await wait_until(lambda: subscriptions.external.operations() == ["suspend"])
    await subscriptions.wait_until_idle(subscription)
    subscriptions.external.failing_operations = {"resume"}
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await wait_until(lambda: subscriptions.external.operations() == ["suspend", "resume"])
    await subscriptions.wait_until_idle(subscription)
    return subscription


@pytest.mark.parametrize("failures", [1, 3])
async def test_a_service_whose_suspension_failed_is_started_again_when_it_is_resumed(
    subscriptions: SubscriptionFixture, failures: int
) -> None:
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.failing_operations = {"suspend"}
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    for count in range(1, failures + 1):
        expected = ["suspend"] * count

        def is_tried(expected: list[str] = expected) -> bool:
            return subscriptions.external.operations() == expected

        await wait_until(is_tried)
        await subscriptions.wait_until_idle(subscription)
        if count < failures:
            await subscriptions.advance(subscription, policies.operation_backoff(count) + timedelta(seconds=1))
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    # At once: the wait after the failed suspensions is none before this operation.
    await wait_until(lambda: subscriptions.external.operations() == ["suspend"] * failures + ["resume"])


async def test_a_service_whose_resumption_failed_is_suspended_again_when_it_is_paused(
    subscriptions: SubscriptionFixture,
) -> None:
    subscription = await _fail_resumption(subscriptions)
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause again"))
    await wait_until(lambda: subscriptions.external.operations() == ["suspend", "resume", "suspend"])


async def test_a_resumption_that_fails_after_a_failed_suspension_is_repeated(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.failing_operations = {"suspend", "resume"}
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await wait_until(lambda: subscriptions.external.operations() == ["suspend"])
    await subscriptions.wait_until_idle(subscription)
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await wait_until(lambda: subscriptions.external.operations() == ["suspend", "resume"])
    await subscriptions.wait_until_idle(subscription)
    subscriptions.external.failing_operations.clear()
    await subscriptions.advance(subscription, policies.operation_backoff(1) + timedelta(seconds=1))
    await wait_until(lambda: subscriptions.external.operations() == ["suspend", "resume", "resume"])


async def _operate(subscriptions: SubscriptionFixture, subscription: str, kind: CustomerOperation) -> None:
    """Run a customer's operation to its end."""
    unique = TemporalFixture.unique_id(kind)
    count = len(subscriptions.external.operations())
    operation = StartOperation(update_id=unique, operation_id=unique, actor="usr_1", kind=kind)
    await subscriptions.workflows.start_operation(subscription, operation)
    await wait_until(lambda: len(subscriptions.external.operations()) > count)
    await subscriptions.wait_until_idle(subscription)


@pytest.mark.parametrize("end", ["pause", "cancel"])
async def test_an_instance_whose_start_failed_is_suspended_when_its_subscription_stops(
    subscriptions: SubscriptionFixture, end: str
) -> None:
    """The start that failed has scaled the workloads up: they would go on running, unpaid."""
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.failing_operations = {"start"}
    await _operate(subscriptions, subscription, CustomerOperation.STOP)
    await _operate(subscriptions, subscription, CustomerOperation.START)
    if end == "cancel":
        await subscriptions.cancel(subscription)
        await wait_until(lambda: subscriptions.external.operations() == ["stop", "start", "suspend"])
        return
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await wait_until(lambda: subscriptions.external.operations() == ["stop", "start", "suspend"])
    await subscriptions.wait_until_idle(subscription)
    # The customer wanted it to run, and cannot start what the platform has suspended.
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await wait_until(lambda: subscriptions.external.operations() == ["stop", "start", "suspend", "resume"])


async def test_an_instance_whose_stop_failed_is_resumed(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.failing_operations = {"stop"}
    await _operate(subscriptions, subscription, CustomerOperation.STOP)
    await wait_until(lambda: subscriptions.external.operations() == ["stop", "resume"])


async def test_an_instance_that_the_customer_stopped_after_a_failed_resumption_stays_stopped(
    subscriptions: SubscriptionFixture,
) -> None:
    """A suspension would take it from the customer, who cannot start what the platform has suspended."""
    subscription = await _fail_resumption(subscriptions)
    await _operate(subscriptions, subscription, CustomerOperation.STOP)
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause again"))
    await subscriptions.wait_for_status(subscription, "paused")
    assert subscriptions.external.operations() == ["suspend", "resume", "stop"]
