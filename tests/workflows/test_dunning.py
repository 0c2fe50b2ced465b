"""Renewals that are not paid: the calendar of retries, suspension, recovery, and giving up."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.life import World
from workflows.ports.subscription import CustomerOperation, FundsArrived, OperateOrder
from workflows.rules.errors import RuleBroken

DAY = timedelta(days=1)


async def _past_due(life: World) -> str:
    """A subscription whose second period could not be paid from the wallet."""
    await life.top_up(500)
    subscription = await life.active("starter")
    end = (await life.subscription(subscription))["current_period_end"]
    await life.advance_to(subscription, end + timedelta(seconds=1))
    assert (await life.subscription(subscription))["status"] == "past_due"
    return subscription


@pytest.mark.scenario("B30")
async def test_a_wallet_that_does_not_cover_is_left_alone_and_a_top_up_collects_at_once(life: World) -> None:
    subscription = await _past_due(life)
    assert await life.balance() == 0
    await life.top_up(499, subscription)
    await life.settled(subscription)
    assert (await life.subscription(subscription))["status"] == "past_due"
    assert await life.balance() == 499
    await life.top_up(1, subscription)
    await life.until(subscription, "active")
    assert await life.balance() == 0
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "paid"]
    assert (await life.notices()).count("subscription_recovered") == 1


@pytest.mark.scenario("B46")
async def test_retries_then_suspension_on_day_seven_and_payment_brings_it_back(life: World) -> None:
    subscription = await _past_due(life)
    due = (await life.subscription(subscription))["first_failure_at"]
    assert due == (await life.invoices(subscription))[1]["period_start"]
    await life.advance_to(subscription, due + 6 * DAY)
    assert (await life.subscription(subscription))["status"] == "past_due"
    assert (await life.notices()).count("payment_failed") == 4
    await life.advance_to(subscription, due + 7 * DAY + timedelta(minutes=1))
    assert (await life.subscription(subscription))["status"] == "suspended"
    assert (await life.notices()).count("payment_failed") == 5
    assert life.outside.operations() == ["suspend"]
    await life.top_up(500, subscription)
    await life.until(subscription, "active")
    assert life.outside.operations() == ["suspend", "resume"]
    assert (await life.subscription(subscription))["first_failure_at"] is None


async def test_an_unpaid_subscription_is_cancelled_on_day_thirty_and_deleted_thirty_days_later(life: World) -> None:
    subscription = await _past_due(life)
    due = (await life.subscription(subscription))["first_failure_at"]
    await life.advance_to(subscription, due + 30 * DAY - timedelta(minutes=1))
    assert (await life.subscription(subscription))["status"] == "suspended"
    await life.advance_to(subscription, due + 30 * DAY + timedelta(minutes=1))
    assert (await life.subscription(subscription))["status"] == "cancelled"
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "void"]
    await life.advance(subscription, 31 * DAY)
    assert (await life.subscription(subscription))["status"] == "terminated"
    assert life.outside.operations() == ["suspend", "delete"]


@pytest.mark.scenario("B41")
async def test_a_customers_failed_retry_consumes_no_scheduled_attempt(life: World) -> None:
    subscription = await _past_due(life)
    await life.add_card()
    life.outside.decline = "insufficient_funds"
    due = (await life.subscription(subscription))["first_failure_at"]
    for _ in range(3):
        with pytest.raises(RuleBroken) as refused:
            await life.orchestrator.retry_payment(subscription, life.simple("retry"))
        assert refused.value.code == "PAYMENT_DECLINED"
        assert refused.value.details["decline_code"] == "insufficient_funds"
    asked = len([verb for verb, _ in life.outside.asked if verb == "charge"])
    await life.advance_to(subscription, due + 6 * DAY)
    scheduled = len([verb for verb, _ in life.outside.asked if verb == "charge"]) - asked
    assert scheduled == 3
    assert (await life.subscription(subscription))["status"] == "past_due"


@pytest.mark.scenario("B42")
async def test_a_hard_decline_is_not_retried_and_a_new_card_is_tried_at_once(life: World) -> None:
    await life.top_up(500)
    await life.add_card()
    life.outside.decline = "stolen_card"
    subscription = await life.active("starter")
    end = (await life.subscription(subscription))["current_period_end"]
    await life.advance_to(subscription, end + 5 * DAY)
    charges = [payment for verb, payment in life.outside.asked if verb == "charge"]
    assert len(charges) == 1
    life.outside.decline = None
    await life.orchestrator.funds_arrived(subscription, FundsArrived(source="pm_new"))
    await life.until(subscription, "active")
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "paid"]
    assert [pay.amount.amount_minor for pay in life.outside.paid] == [500]


@pytest.mark.scenario("B43")
async def test_cancelling_while_past_due_stops_the_retries_and_voids_the_invoice(life: World) -> None:
    subscription = await _past_due(life)
    await life.cancel(subscription)
    await life.advance(subscription, 10 * DAY)
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "void"]
    assert (await life.notices()).count("payment_failed") == 1
    assert await life.balance("receivable") == 0


@pytest.mark.scenario("B22")
async def test_nothing_new_is_charged_while_a_payment_is_unresolved(life: World) -> None:
    await life.top_up(500)
    await life.add_card()
    subscription = await life.active("starter")
    life.outside.answer.clear()
    end = (await life.subscription(subscription))["current_period_end"]
    handle = life.handle(subscription)
    view = await life.orchestrator.clock(subscription)
    while view.next_due is not None and view.next_due < end:
        await life.advance_to(subscription, view.next_due + timedelta(milliseconds=5))
        view = await life.orchestrator.clock(subscription)
    await life.temporal.fast_forward(handle, end - await life.now(subscription) - timedelta(seconds=1))
    await life.charging(1)
    assert not (await life.orchestrator.clock(subscription)).idle
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "open"]
    life.outside.answer.set()
    await life.until(subscription, "active")
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "paid"]
    assert len(life.outside.paid) == 1


@pytest.mark.scenario("B27")
async def test_money_that_arrives_after_the_cancellation_stays_in_the_wallet(life: World) -> None:
    await life.top_up(500)
    await life.add_card()
    subscription = await life.active("starter")
    life.outside.answer.clear()
    end = (await life.subscription(subscription))["current_period_end"]
    await life.advance_to(subscription, end - timedelta(hours=1))
    await life.temporal.fast_forward(life.handle(subscription), timedelta(hours=1, seconds=-2))
    await life.charging(1)
    await life.cancel(subscription)
    assert (await life.subscription(subscription))["status"] == "cancelled"
    life.outside.answer.set()
    await life.settled(subscription)
    assert await life.balance() == 500
    assert await life.balance("held") == 0
    assert (await life.subscription(subscription))["status"] == "cancelled"


async def test_operations_are_one_at_a_time_and_a_customers_stop_survives_a_renewal(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("starter")
    order = OperateOrder(order_id="stop/1", actor="usr", operation_id="op_1", kind=CustomerOperation.STOP)
    await life.orchestrator.operate(subscription, order)
    await life.settled(subscription)
    await life.advance(subscription, 40 * DAY)
    assert life.outside.operations() == ["stop"]
    start = OperateOrder(order_id="start/1", actor="usr", operation_id="op_2", kind=CustomerOperation.START)
    await life.orchestrator.operate(subscription, start)
    await life.settled(subscription)
    assert life.outside.operations() == ["stop", "start"]
