"""Cancelled orders whose workflow was lost during the compensation: the restarted run goes on with it."""

from __future__ import annotations

import pytest

from tests.support.lost_payments import LostPayments
from tests.support.subscription_fixture import SubscriptionFixture
from tests.support.wait import wait_until


async def _cancel_and_wait_for_request(subscriptions: SubscriptionFixture, subscription: str) -> None:
    """Cancel an order that is provisioned, while its deletion takes long."""
    subscriptions.external.operations_allowed.clear()
    await wait_until(lambda: "provision" in dict(subscriptions.external.calls))
    await subscriptions.cancel(subscription)

    async def is_requested() -> bool:
        return "subscription.cancellation_requested" in await subscriptions.timeline(subscription)

    await wait_until(is_requested)


@pytest.mark.parametrize("by_card", [False, True])
async def test_a_cancelled_order_that_is_lost_during_its_compensation_stays_cancelled(
    lost: LostPayments, by_card: bool
) -> None:
    subscriptions = lost.subscriptions
    if by_card:
        subscription = await lost.start_order()
    else:
        await subscriptions.top_up(500)
        subscription = await subscriptions.create_subscription("starter")
    await _cancel_and_wait_for_request(subscriptions, subscription)
    await lost.lose(subscription)
    subscriptions.external.operations_allowed.set()
    subscriptions.external.provisioning_done.set()
    await lost.restart()

    async def has_ended() -> bool:
        return await subscriptions.status(subscription) in {"cancelled", "active"}

    await wait_until(has_ended)
    row = await subscriptions.subscription(subscription)
    assert (row["status"], await subscriptions.invoices(subscription)) == ("cancelled", [])
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (0 if by_card else 500, 0)
    assert [payment["status"] for payment in await lost.payments(subscription)] == ["cancelled"] * by_card
    assert "delete" in subscriptions.external.operations()
    assert (await subscriptions.timeline(subscription)).count("subscription.cancelled") == 1
