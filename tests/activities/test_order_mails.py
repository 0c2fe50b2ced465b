"""The mail of an order names what the first period costs, from the context that the activity sends."""

from __future__ import annotations

import pytest

from tests.activities.test_data_deletion_mails import sent_text
from tests.support.billing_commands import top_up
from tests.support.billing_fixture import BillingFixture, insert_coupon
from workflows.rules.notifications import NotificationKind


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("starter", "US$4.00 is charged when the service is ready"),
        ("trial", "The first billing period follows it and costs US$4.00"),
    ],
)
async def test_an_order_with_a_coupon_names_the_reduced_charge(
    billing: BillingFixture, plan: str, expected: str
) -> None:
    await insert_coupon(billing.sessions, "WELCOME", 20, "once")
    await top_up(billing, 500)
    await billing.create_active_subscription(plan, coupon="WELCOME")
    text = await sent_text(billing, NotificationKind.SUBSCRIPTION_CREATED)
    assert expected in text
    assert "Price per period: US$5.00" in text
    assert "Coupon: WELCOME" in text
