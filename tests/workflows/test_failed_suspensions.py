"""A suspension or a resumption that failed may have done a part of its work, which the next state undoes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.subscription_fixture import SubscriptionFixture
from tests.support.wait import wait_until
from workflows import policies


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
    await subscriptions.top_up(10_000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await wait_until(lambda: subscriptions.external.operations() == ["suspend"])
    await subscriptions.wait_until_idle(subscription)
    subscriptions.external.failing_operations = {"resume"}
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await wait_until(lambda: subscriptions.external.operations() == ["suspend", "resume"])
    await subscriptions.wait_until_idle(subscription)
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause again"))
    await wait_until(lambda: subscriptions.external.operations() == ["suspend", "resume", "suspend"])
