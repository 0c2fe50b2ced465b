"""Which plans an order accepts."""

from __future__ import annotations

import pytest
from temporalio.exceptions import ApplicationError

from tests.support.billing_commands import top_up
from tests.support.billing_fixture import BillingFixture


@pytest.mark.parametrize(
    "hide",
    [
        "UPDATE plans SET is_public = false",
        "UPDATE plans SET is_retired = true",
        "UPDATE services SET is_published = false",
    ],
)
async def test_an_order_of_a_plan_that_is_not_offered_is_refused(billing: BillingFixture, hide: str) -> None:
    await top_up(billing, 500)
    await billing.execute(hide)
    with pytest.raises(ApplicationError) as refused:
        await billing.subscription_activities.record_order(billing.create_command())
    assert refused.value.type == "PLAN_UNAVAILABLE"
    assert await billing.query("SELECT id FROM subscriptions") == []
    assert await billing.balance() == 500
