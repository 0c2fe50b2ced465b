"""Debt that another payment repays: each source keeps its part, and refunds and rollbacks find it again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio

from activities.refunds import GatewayRefundActivities
from tests.activities.test_carried_debt import PRICE, account_with_card, carried
from tests.support.billing_commands import (
    DAY,
    card_payment_command,
    grant_promotional_credit,
    plan_change_command,
    rollback_command,
    top_up,
    usd,
)
from tests.support.billing_fixture import (
    ORGANIZATION,
    USER,
    BillingFixture,
    OpenedSubscription,
    insert_coupon,
)
from tests.support.payment_fixture import run_activity
from workflows.ports.refunds import RefundDestination, RefundInput, ReserveRefund, SendRefund

__all__ = ["account_with_card", "carried"]


@pytest_asyncio.fixture
async def repaying_payment(billing: BillingFixture, carried: OpenedSubscription) -> str:
    """Return a card payment of 5.20 that paid a renewal and the debt of 0.20 of the invoice before."""
    outcome = await billing.billing_activities.start_period(billing.start_period_command(carried))
    command = await card_payment_command(billing, carried, outcome)
    await billing.billing_activities.apply_card_payment(command)
    assert await billing.balance("debt") == 0
    return command.payment_id


def refund_input(payment_id: str, amount_minor: int | None) -> RefundInput:
    return RefundInput(
        refund_id="re_1",
        payment_id=payment_id,
        organization_id=ORGANIZATION,
        amount=usd(amount_minor) if amount_minor is not None else None,
        destination=RefundDestination.SOURCE,
        reason="goodwill",
        actor=USER,
    )


async def refunded_amounts(billing: BillingFixture) -> list[int]:
    """Return what each invoice has refunded, the older invoice first."""
    rows = await billing.query("SELECT refunded_minor FROM invoices ORDER BY created_at")
    return [row["refunded_minor"] for row in rows]


@pytest.mark.scenario("B34")
async def test_a_refused_refund_of_a_payment_that_paid_two_invoices_restores_both(
    billing: BillingFixture, carried: OpenedSubscription, repaying_payment: str
) -> None:
    refunds = GatewayRefundActivities(billing.sessions, {})
    now = carried.period.end + DAY
    await run_activity(refunds.reserve, ReserveRefund(command=refund_input(repaying_payment, None), now=now))
    assert await refunded_amounts(billing) == [20, PRICE]
    assert (await run_activity(refunds.send, SendRefund(refund_id="re_1", now=now))).status == "failed"
    assert await refunded_amounts(billing) == [0, 0]
    assert (await billing.balance("debt"), await billing.balance()) == (0, 0)


async def test_a_partial_refund_is_taken_from_the_newest_invoice_that_the_payment_paid(
    billing: BillingFixture, carried: OpenedSubscription, repaying_payment: str
) -> None:
    refunds = GatewayRefundActivities(billing.sessions, {})
    command = ReserveRefund(command=refund_input(repaying_payment, 20), now=carried.period.end + DAY)
    await run_activity(refunds.reserve, command)
    assert await refunded_amounts(billing) == [0, 20]


async def test_debt_that_was_repaid_while_the_card_was_charged_leaves_the_cards_part_in_the_wallet(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    await top_up(billing, PRICE)
    second = await billing.create_active_subscription()
    outcome = await billing.billing_activities.start_period(billing.start_period_command(carried))
    assert outcome.card_charge is not None
    assert outcome.card_charge.amount == usd(PRICE + 20)
    await top_up(billing, PRICE + 20)
    assert (await billing.billing_activities.start_period(billing.start_period_command(second))).paid
    assert (await billing.balance("debt"), await billing.balance()) == (0, 0)
    await billing.billing_activities.apply_card_payment(await card_payment_command(billing, carried, outcome))
    assert (await billing.balance("debt"), await billing.balance(), await billing.balance("held")) == (0, 20, 0)


async def test_two_debts_are_repaid_from_the_sources_that_are_left_after_each(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    await insert_coupon(billing.sessions, "SMALLER", 98, "once")
    await billing.create_active_subscription(coupon="SMALLER")
    assert await billing.balance("debt") == -30
    await grant_promotional_credit(billing, 510)
    await top_up(billing, 20)
    assert (await billing.billing_activities.start_period(billing.start_period_command(carried))).paid
    assert await billing.balance("debt") == 0
    rows = await billing.query(
        "SELECT source, sum(amount_minor)::bigint AS amount FROM invoice_allocations"
        " GROUP BY source HAVING sum(amount_minor) <> 0"
    )
    assert {row["source"]: row["amount"] for row in rows} == {"promotional": 510, "wallet": 20}


@pytest.mark.scenario("B17")
async def test_a_plan_change_that_was_carried_as_debt_is_rolled_back_with_its_debt(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    change = replace(plan_change_command(carried, "pro"), now=carried.period.end - timedelta(hours=10))
    changed = await billing.billing_activities.change_plan(change)
    assert changed.card_charge is None
    assert await billing.balance("debt") < -20
    rollback = replace(rollback_command(carried), now=carried.period.end - timedelta(hours=9))
    await billing.assert_idempotent(billing.billing_activities.rollback_plan_change, rollback)
    assert await billing.balance("debt") == -20
    assert (await billing.balance("receivable"), await billing.balance()) == (0, 0)


async def test_what_a_period_carried_counts_as_received_towards_an_upgrade(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    await billing.billing_activities.change_plan(plan_change_command(carried, "pro"))
    (line,) = await billing.query("SELECT amount_minor FROM invoice_lines WHERE description LIKE 'Unused%'")
    assert line["amount_minor"] < 0
