"""The status that operators find a subscription's workflow by."""

from __future__ import annotations

import pytest
from temporalio.api.enums.v1 import EventType

from tests.support.subscription_fixture import CancelAt, CollectionMethod, SubscriptionFixture
from tests.support.wait import wait_until
from workflows import names
from workflows.rules.errors import RuleViolation


async def _published_status(subscriptions: SubscriptionFixture, subscription_id: str) -> str | None:
    described = await subscriptions.handle(subscription_id).describe()
    return described.typed_search_attributes.get(names.STATUS_KEY)


async def _upserts(subscriptions: SubscriptionFixture, subscription_id: str) -> int:
    history = await subscriptions.handle(subscription_id).fetch_history()
    kind = EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES
    return sum(event.event_type == kind for event in history.events)


async def test_the_status_is_published_by_the_start_and_then_only_when_it_changes(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_subscription("starter")
    assert await _published_status(subscriptions, subscription) == "provisioning"
    assert await _upserts(subscriptions, subscription) == 0
    subscriptions.external.provisioning_done.set()
    await subscriptions.wait_for_status(subscription, "active")
    await subscriptions.wait_until_idle(subscription)
    assert await _published_status(subscriptions, subscription) == "active"
    assert await _upserts(subscriptions, subscription) == 1
    await subscriptions.cancel(subscription, CancelAt.NOW)
    assert await _published_status(subscriptions, subscription) == "cancelled"
    assert await _upserts(subscriptions, subscription) == 2


async def test_an_order_that_waits_for_its_card_is_published_as_pending(subscriptions: SubscriptionFixture) -> None:
    subscriptions.external.gateway_responses.clear()
    await subscriptions.add_card()
    subscription = await subscriptions.create_subscription("starter", collection_method=CollectionMethod.CARD)

    async def is_pending() -> bool:
        return await _published_status(subscriptions, subscription) == "pending"

    await wait_until(is_pending, description="the pending order is published")


async def test_an_order_that_is_refused_has_no_status(subscriptions: SubscriptionFixture) -> None:
    order = subscriptions.create_command("starter")
    with pytest.raises(RuleViolation):
        await subscriptions.workflows.create_subscription(order)
    assert await _published_status(subscriptions, order.subscription_id) is None
