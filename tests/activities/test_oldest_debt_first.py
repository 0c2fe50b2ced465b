"""Credit pays the oldest debt of an organization first, in whichever order its subscriptions collect."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import permutations

import pytest

from tests.support.billing_commands import (
    DAY,
    change_status_command,
    collect,
    create_past_due_subscriptions,
    grant_promotional_credit,
    payment_failure_command,
    top_up,
)
from tests.support.billing_fixture import BillingFixture, insert_payment_method
from workflows.ports.billing import RecordPaymentFailure
from workflows.rules.subscription import SubscriptionStatus


@pytest.mark.scenario("B30")
@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_credit_pays_the_oldest_debts_in_whichever_order_the_subscriptions_collect(
    billing: BillingFixture, order: tuple[int, ...]
) -> None:
    debtors = await create_past_due_subscriptions(billing, "starter", "starter", "starter")
    await top_up(billing, 1_200)
    for position in order:
        await collect(billing, debtors[position])
    statuses = [(await billing.invoices(ordered.id))[-1]["status"] for ordered in debtors]
    assert statuses == ["paid", "paid", "open"]
    assert await billing.balance() == 200


async def test_promotional_credit_is_left_to_the_older_debt(billing: BillingFixture) -> None:
    older, younger = await create_past_due_subscriptions(billing, "starter", "starter")
    await grant_promotional_credit(billing, 500)
    assert not (await collect(billing, younger)).paid
    assert (await collect(billing, older)).paid


async def test_credit_is_left_to_the_older_debt_of_a_suspended_subscription(billing: BillingFixture) -> None:
    older, younger = await create_past_due_subscriptions(billing, "starter", "starter")
    await billing.subscription_activities.change_status(change_status_command(older, SubscriptionStatus.SUSPENDED))
    await top_up(billing, 600)
    assert not (await collect(billing, younger)).paid
    assert (await collect(billing, older)).paid
    assert await billing.balance() == 100


async def test_debts_that_are_collected_at_once_are_paid_one_after_the_other(billing: BillingFixture) -> None:
    debtors = await create_past_due_subscriptions(billing, "starter", "starter", "starter")
    await top_up(billing, 600)
    await asyncio.gather(*(collect(billing, ordered) for ordered in reversed(debtors)))
    statuses = [(await billing.invoices(ordered.id))[-1]["status"] for ordered in debtors]
    assert statuses == ["paid", "open", "open"]
    assert await billing.balance() == 100


async def test_an_older_debt_that_credit_does_not_cover_does_not_block_a_younger_one(billing: BillingFixture) -> None:
    debtors = await create_past_due_subscriptions(billing, "pro", "starter")
    await top_up(billing, 600)
    outcomes = [await collect(billing, ordered) for ordered in debtors]
    assert [outcome.paid for outcome in outcomes] == [False, True]


async def test_credit_that_an_older_debt_leaves_to_its_declined_card_pays_a_younger_one(
    billing: BillingFixture,
) -> None:
    """The older debt takes credit only beside a card that pays the rest: none is set aside for it."""
    older, younger = await create_past_due_subscriptions(billing, "pro", "starter")
    await insert_payment_method(billing.sessions)
    await top_up(billing, 600)
    charged = await collect(billing, older)
    assert charged.card_charge is not None
    await billing.billing_activities.record_payment_failure(
        replace(payment_failure_command(older, charged), decline_code="lost_card")
    )
    collected = await collect(billing, younger, credit_only=True)
    assert collected.paid
    assert await billing.balance() == 100


async def test_a_failed_card_leaves_credit_to_the_older_debt(billing: BillingFixture) -> None:
    """Credit that arrives while a card of the younger debt is charged belongs to the older debt."""
    older, younger = await create_past_due_subscriptions(billing, "starter", "starter")
    await insert_payment_method(billing.sessions)
    outcome = await collect(billing, younger)
    assert outcome.card_charge is not None
    await top_up(billing, 500)
    failed = await billing.billing_activities.record_payment_failure(
        RecordPaymentFailure(
            subscription_id=younger.id,
            invoice_id=outcome.invoice_id or "",
            payment_id="pay_1",
            decline_code="generic_decline",
            next_retry_at=None,
            now=younger.period.end + 5 * DAY,
        )
    )
    assert not failed.paid
    assert (await collect(billing, older)).paid


@pytest.mark.scenario("B41")
async def test_a_repeated_failure_of_a_card_reports_that_credit_paid_meanwhile(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    outcome = await billing.billing_activities.start_period(billing.start_period_command(ordered))
    assert outcome.card_charge is not None
    await top_up(billing, 500)
    failure = RecordPaymentFailure(
        subscription_id=ordered.id,
        invoice_id=outcome.invoice_id or "",
        payment_id="pay_1",
        decline_code="generic_decline",
        next_retry_at=None,
        now=ordered.period.end,
    )
    first = await billing.assert_idempotent(billing.billing_activities.record_payment_failure, failure)
    assert first.paid


async def test_a_released_hold_and_credit_that_arrived_meanwhile_pay_together(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    await grant_promotional_credit(billing, 100)
    await top_up(billing, 150)
    outcome = await billing.billing_activities.start_period(billing.start_period_command(ordered))
    assert outcome.card_charge is not None
    assert outcome.card_charge.amount.amount_minor == 250
    await top_up(billing, 250)
    failed = await billing.billing_activities.record_payment_failure(payment_failure_command(ordered, outcome))
    assert failed.paid
    assert [await billing.balance(account) for account in ("wallet", "promotional", "held")] == [0, 0, 0]


@pytest.mark.parametrize("first", [0, 1])
async def test_debts_of_one_instant_are_paid_in_the_order_of_their_ids(billing: BillingFixture, first: int) -> None:
    await top_up(billing, 1_000)
    debtors = sorted([await billing.create_active_subscription() for _ in range(2)], key=lambda ordered: ordered.id)
    for ordered in debtors:
        await billing.billing_activities.start_period(billing.start_period_command(ordered))
    await top_up(billing, 500)
    for position in (first, 1 - first):
        await collect(billing, debtors[position])
    assert [(await billing.invoices(ordered.id))[-1]["status"] for ordered in debtors] == ["paid", "open"]


async def test_credit_is_left_to_an_older_debt_that_a_card_is_charged_for_without_credit(
    billing: BillingFixture,
) -> None:
    older, younger = await create_past_due_subscriptions(billing, "starter", "starter")
    await insert_payment_method(billing.sessions)
    charged = await collect(billing, older)
    assert charged.card_charge is not None
    await top_up(billing, 500)
    assert not (await collect(billing, younger, credit_only=True)).paid
    failed = await billing.billing_activities.record_payment_failure(payment_failure_command(older, charged))
    assert failed.paid
    assert await billing.balance() == 0
