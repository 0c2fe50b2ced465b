"""Which coupons an order accepts, and how their redemptions are counted."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from tests.support.billing_commands import change_status_command, plan_change_command, rollback_command, top_up
from tests.support.billing_fixture import ORDERED_AT, USER, BillingFixture, insert_coupon
from workflows.ports.subscription import AbortOrder
from workflows.rules.subscription import SubscriptionStatus

INSTANT = timedelta(microseconds=1)


async def redemption_count(billing: BillingFixture) -> int:
    (row,) = await billing.query("SELECT redemption_count FROM coupons")
    return int(row["redemption_count"])


@pytest.mark.parametrize(
    ("columns", "accepted"),
    [
        ("is_active = true", True),
        ("is_active = false", False),
        ("max_redemptions = 3, redemption_count = 2", True),
        ("max_redemptions = 3, redemption_count = 3", False),
        (f"expires_at = '{ORDERED_AT + INSTANT}'", True),
        (f"expires_at = '{ORDERED_AT}'", False),
        ("code = 'OTHER'", False),
    ],
)
async def test_an_order_reserves_a_coupon_that_is_active_unexpired_and_not_used_up(
    billing: BillingFixture, columns: str, accepted: bool
) -> None:
    await insert_coupon(billing.sessions, "HALF", 50, "once")
    await billing.execute(f"UPDATE coupons SET {columns}")
    before = await redemption_count(billing)
    await top_up(billing, 500)
    command = billing.create_command(coupon="half")
    if not accepted:
        with pytest.raises(ApplicationError) as refused:
            await billing.subscription_activities.record_order(command)
        assert refused.value.type == "COUPON_INVALID"
        assert (await redemption_count(billing), await billing.balance("held")) == (before, 0)
        return
    await billing.assert_idempotent(billing.subscription_activities.record_order, command)
    assert (await redemption_count(billing), await billing.balance("held")) == (before + 1, 250)


@pytest.mark.parametrize(("currency", "accepted"), [("USD", True), ("EUR", False)])
async def test_an_order_refuses_a_coupon_of_an_amount_in_another_currency(
    billing: BillingFixture, currency: str, accepted: bool
) -> None:
    await insert_coupon(billing.sessions, "THREE", 50, "once")
    await billing.execute(
        "UPDATE coupons SET discount_type = 'fixed', percent = NULL, amount_minor = 300, max_redemptions = 1,"
        f" currency = '{currency}'"
    )
    await top_up(billing, 500)
    command = billing.create_command(coupon="THREE")
    if not accepted:
        with pytest.raises(ApplicationError, match="currency") as refused:
            await billing.subscription_activities.record_order(command)
        assert refused.value.type == "COUPON_INVALID"
        assert (await redemption_count(billing), await billing.balance("held")) == (0, 0)
        return
    await billing.subscription_activities.record_order(command)
    assert (await redemption_count(billing), await billing.balance("held")) == (1, 200)


async def test_the_last_redemption_returns_when_its_order_is_aborted_and_stays_used_once_it_is_invoiced(
    billing: BillingFixture,
) -> None:
    await insert_coupon(billing.sessions, "HALF", 50, "once")
    await billing.execute("UPDATE coupons SET max_redemptions = 1")
    await top_up(billing, 1000)
    command = billing.create_command(coupon="HALF")
    await billing.subscription_activities.record_order(command)
    with pytest.raises(ApplicationError, match="coupon"):
        await billing.subscription_activities.record_order(billing.create_command(coupon="HALF"))
    aborted = AbortOrder(
        subscription_id=command.order.subscription_id,
        status=SubscriptionStatus.CANCELLED,
        reason="no",
        actor=USER,
        now=ORDERED_AT,
    )
    await billing.subscription_activities.abort_order(aborted)
    assert await redemption_count(billing) == 0
    ordered = await billing.create_active_subscription(coupon="HALF")
    await billing.assert_idempotent(
        billing.subscription_activities.change_status, change_status_command(ordered, SubscriptionStatus.CANCELLED)
    )
    assert await redemption_count(billing) == 1
    assert [row["status"] for row in await billing.query("SELECT status FROM coupon_redemptions ORDER BY status")] == [
        "redeemed",
        "released",
    ]


@pytest.mark.parametrize(
    ("duration", "periods", "totals"),
    [("once", None, [250, 500, 500]), ("periods", 2, [250, 250, 500]), ("forever", None, [250, 250, 250])],
)
async def test_a_coupon_reduces_as_many_invoices_as_it_says(
    billing: BillingFixture, duration: str, periods: int | None, totals: list[int]
) -> None:
    await insert_coupon(billing.sessions, "HALF", 50, duration, periods)
    await top_up(billing, 1500)
    ordered = await billing.create_active_subscription(coupon="HALF")
    start = ordered.period.end
    for _ in totals[1:]:
        command = billing.start_period_command(ordered, start=start)
        outcome = await billing.assert_idempotent(billing.billing_activities.start_period, command)
        assert outcome.state.period_end is not None
        start = outcome.state.period_end
    assert [row["total_minor"] for row in await billing.invoices(ordered.id)] == totals
    assert await billing.query("SELECT coupon_redeemed, coupon_remaining_periods FROM subscriptions") == [
        {"coupon_redeemed": True, "coupon_remaining_periods": None if duration == "forever" else 0}
    ]


async def test_a_coupon_is_reserved_by_its_order_and_redeemed_by_the_first_invoice(billing: BillingFixture) -> None:
    await insert_coupon(billing.sessions, "HALF", 50, "periods", 3)
    await top_up(billing, 1_000)
    command = billing.create_command(coupon="HALF")
    opened = await billing.subscription_activities.record_order(command)
    columns = "SELECT coupon_redeemed, coupon_remaining_periods AS periods FROM subscriptions"
    assert await billing.query(columns) == [{"coupon_redeemed": False, "periods": 3}]
    await billing.billing_activities.start_first_period(billing.start_first_period_command(command, opened))
    assert await billing.query(columns) == [{"coupon_redeemed": True, "periods": 2}]


@pytest.mark.parametrize(("periods", "remaining"), [(3, [2, 1, 2]), (2, [1, 0, 1]), (1, [0, 0, 0])])
@pytest.mark.parametrize("yearly_price", [20_000, 40])
async def test_a_plan_change_that_is_rolled_back_gives_back_the_period_that_it_used(
    billing: BillingFixture, periods: int, remaining: list[int], yearly_price: int
) -> None:
    """One percent of 40 cents is nothing: the coupon's period was used all the same."""
    await insert_coupon(billing.sessions, "SMALL", 1, "periods", periods)
    await top_up(billing, 50_000)
    ordered = await billing.create_active_subscription(coupon="SMALL")

    async def remaining_periods() -> int:
        (row,) = await billing.query("SELECT coupon_remaining_periods FROM subscriptions")
        return int(row["coupon_remaining_periods"])

    await billing.execute(
        "INSERT INTO prices (id, plan_id, currency, amount_minor, effective_from)"
        f" VALUES ('prc_new', 'pln_pro-yearly', 'USD', {yearly_price}, '{ORDERED_AT}')"
    )
    counts = [await remaining_periods()]
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro-yearly"))
    assert changed.is_new_anchor
    counts.append(await remaining_periods())
    await billing.assert_idempotent(billing.billing_activities.rollback_plan_change, rollback_command(ordered))
    counts.append(await remaining_periods())
    assert counts == remaining
