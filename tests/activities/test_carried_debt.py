"""Debt that an amount below the gateway's minimum left: it is repaid beside an invoice and refuses none."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio

from activities.billing import PostgresBillingActivities
from activities.reminders import load_context
from activities.subscriptions import PostgresSubscriptionActivities
from db.queries.invoice_documents import load_invoice_document_data
from tests.support.billing_commands import (
    DAY,
    TEN_DAYS_AFTER_ORDER,
    card_payment_command,
    collect,
    collect_command,
    create_past_due_subscriptions,
    payment_failure_command,
    plan_change_command,
    top_up,
    usd,
)
from tests.support.billing_fixture import (
    ORDERED_AT,
    USER,
    BillingFixture,
    OpenedSubscription,
    insert_card_payment,
    insert_coupon,
    insert_payment_method,
)
from workflows.ports.billing import CompletePlanChange, RecordPaymentFailure
from workflows.ports.subscription import StartProvisioning
from workflows.rules.funding import GatewayTerms
from workflows.rules.subscription import SubscriptionStatus

PRICE = 500
"""Of the starter plan per month, in cents."""


@pytest_asyncio.fixture
async def account_with_card(billing: BillingFixture) -> BillingFixture:
    """Return an account with a card whose gateway charges 0.50 and more, and a coupon that reduces 5.00 to 0.20."""
    set_minimum_charge(billing, 50)
    await insert_payment_method(billing.sessions)
    await insert_coupon(billing.sessions, "SMALL", 96, "once")
    return billing


@pytest_asyncio.fixture
async def carried(account_with_card: BillingFixture) -> OpenedSubscription:
    """Return an active subscription whose first invoice left a debt of 0.20, in an account with a card."""
    ordered = await account_with_card.create_active_subscription(coupon="SMALL")
    assert await account_with_card.balance("debt") == -20
    return ordered


def set_minimum_charge(billing: BillingFixture, amount_minor: int) -> None:
    """Run the activities with this minimum of the gateway from now on, in cents."""
    cards = {"stripe": GatewayTerms(name="stripe", minimum_minor={"USD": amount_minor})}
    billing.billing_activities = PostgresBillingActivities(billing.sessions, cards)
    billing.subscription_activities = PostgresSubscriptionActivities(billing.sessions, "apps.test", cards)


@pytest.mark.scenario("B13")
async def test_debt_that_is_carried_after_an_order_is_not_added_to_what_its_card_pays(
    account_with_card: BillingFixture,
) -> None:
    billing, command = account_with_card, account_with_card.create_command()
    opened = await billing.subscription_activities.record_order(command)
    await billing.create_active_subscription(coupon="SMALL")
    assert await billing.balance("debt") == -20
    assert await billing.subscription_activities.record_order(command) == opened
    secured = StartProvisioning(subscription_id=command.order.subscription_id, payment_id="pay_1", now=ORDERED_AT)
    await billing.subscription_activities.start_provisioning(secured)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_first_period, billing.start_first_period_command(command, opened)
    )
    assert outcome.card_charge is not None
    assert outcome.card_charge.amount.amount_minor == PRICE


@pytest.mark.scenario("B13")
async def test_an_amount_that_an_order_carries_stays_carried_when_the_gateways_minimum_falls(
    account_with_card: BillingFixture,
) -> None:
    billing, command = account_with_card, account_with_card.create_command(coupon="SMALL")
    opened = await billing.subscription_activities.record_order(command)
    set_minimum_charge(billing, 10)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_first_period, billing.start_first_period_command(command, opened)
    )
    assert (outcome.paid, outcome.card_charge) == (True, None)
    assert await billing.balance("debt") == -20


@pytest.mark.scenario("B13")
async def test_a_wallet_that_covers_a_renewal_pays_it_without_the_card(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    await top_up(billing, PRICE)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(carried)
    )
    assert (outcome.paid, outcome.card_charge) == (True, None)
    assert (await billing.balance(), await billing.balance("debt")) == (0, -20)


@pytest.mark.scenario("B13")
async def test_a_wallet_that_covers_a_renewal_and_the_debt_pays_both(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    await top_up(billing, PRICE + 20)
    assert (await billing.billing_activities.start_period(billing.start_period_command(carried))).paid
    assert (await billing.balance(), await billing.balance("debt")) == (0, 0)


@pytest.mark.scenario("B13")
async def test_a_card_that_pays_a_renewal_anyway_pays_the_debt_as_well(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    outcome = await billing.billing_activities.start_period(billing.start_period_command(carried))
    assert outcome.card_charge is not None
    assert outcome.card_charge.amount.amount_minor == PRICE + 20


@pytest.mark.scenario("B13")
async def test_the_receipt_of_an_invoice_names_the_debt_that_was_paid_with_it(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    other = await billing.create_active_subscription(coupon="SMALL")
    assert await billing.balance("debt") == -40
    outcome = await billing.billing_activities.start_period(billing.start_period_command(carried))
    await billing.billing_activities.apply_card_payment(await card_payment_command(billing, carried, outcome))
    assert await billing.balance("debt") == 0
    paid_with = set()
    async with billing.sessions() as session:
        for invoice in [*await billing.invoices(carried.id), *await billing.invoices(other.id)]:
            document = await load_invoice_document_data(session, invoice["id"])
            assert document is not None
            paid_with.add((document.total.amount_minor, document.debt_paid.amount_minor))
    assert paid_with == {(20, 0), (PRICE, 40)}


async def test_a_reminder_names_the_debt_that_the_renewal_collects(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    scheduled = {"subscription_id": carried.id, "days": 7, "due_at": carried.period.end.isoformat()}
    async with billing.sessions() as session:
        context = await load_context(session, scheduled)
    assert context is not None
    assert context["carried_debt"] == {"amount_minor": 20, "currency": "USD"}


async def test_credit_that_arrives_during_a_declined_charge_pays_the_renewal(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    outcome = await billing.billing_activities.start_period(billing.start_period_command(carried))
    await top_up(billing, PRICE)
    failed = await billing.billing_activities.record_payment_failure(payment_failure_command(carried, outcome))
    assert (failed.paid, failed.state.status) == (True, SubscriptionStatus.ACTIVE)


@pytest.mark.scenario("B30")
async def test_credit_that_covers_a_past_due_invoice_pays_it_at_each_attempt(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    for retry, credit_only in enumerate((False, True)):
        start = carried.period.end + 31 * retry * DAY
        outcome = await billing.billing_activities.start_period(billing.start_period_command(carried, start=start))
        await billing.billing_activities.record_payment_failure(payment_failure_command(carried, outcome))
        await top_up(billing, PRICE)
        collect = replace(collect_command(carried, outcome), credit_only=credit_only)
        collected = await billing.billing_activities.collect_invoice(collect)
        assert (collected.paid, collected.state.status) == (True, SubscriptionStatus.ACTIVE)


@pytest.mark.scenario("B13")
async def test_an_order_that_the_wallet_covers_needs_no_card(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    await top_up(billing, PRICE)
    opened = await billing.subscription_activities.record_order(billing.create_command())
    assert (opened.card_charge, opened.state.status) == (None, SubscriptionStatus.PROVISIONING)


@pytest.mark.scenario("B13")
async def test_a_change_of_the_interval_charges_carried_debt_once(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    command = replace(plan_change_command(carried, "pro-yearly"), now=ORDERED_AT + timedelta(seconds=1))
    changed = await billing.assert_idempotent(billing.billing_activities.change_plan, command)
    assert changed.card_charge is not None
    # 200.00 for the year, of which the unused month has contributed 0.20 that is still owed.
    assert changed.card_charge.amount.amount_minor == 20_000
    await insert_card_payment(billing.sessions, "pay_1", carried.id, changed.card_charge.amount)
    completed = await billing.billing_activities.complete_plan_change(
        CompletePlanChange(
            subscription_id=carried.id,
            invoice_id=changed.invoice_id or "",
            payment_id="pay_1",
            plan_change_id="order_1",
            actor=USER,
            terms=changed.terms,
            restarts=True,
            now=command.now,
        )
    )
    assert (completed.paid, await billing.balance("debt")) == (True, 0)
    assert [invoice["total_minor"] for invoice in await billing.invoices(carried.id)] == [20, 19_980]


@pytest.mark.scenario("B13")
async def test_a_plan_change_that_the_wallet_covers_needs_no_card(
    billing: BillingFixture, carried: OpenedSubscription
) -> None:
    declined = await billing.billing_activities.change_plan(plan_change_command(carried, "pro"))
    assert declined.card_charge is not None
    await billing.billing_activities.record_payment_failure(
        RecordPaymentFailure(
            subscription_id=carried.id,
            invoice_id=declined.invoice_id or "",
            payment_id="pay_1",
            decline_code="generic_decline",
            next_retry_at=None,
            now=TEN_DAYS_AFTER_ORDER,
        )
    )
    await top_up(billing, declined.card_charge.amount.amount_minor - 20)
    command = replace(plan_change_command(carried, "pro"), plan_change_id="order_2")
    changed = await billing.billing_activities.change_plan(command)
    assert (changed.card_charge, await billing.balance("debt")) == (None, -20)


async def remove_card(billing: BillingFixture) -> None:
    await billing.execute("UPDATE payment_methods SET is_default = false, detached_at = now()")


async def test_older_debts_reserve_credit_for_carried_debt_once(
    account_with_card: BillingFixture, carried: OpenedSubscription
) -> None:
    billing = account_with_card
    await remove_card(billing)
    debtors = await create_past_due_subscriptions(billing, "starter", "starter", "starter")
    await top_up(billing, 3 * PRICE + 20)
    assert [(await collect(billing, ordered)).paid for ordered in reversed(debtors)] == [True, True, True]
    assert (await billing.balance(), await billing.balance("debt")) == (0, 0)


async def test_a_card_is_not_charged_for_debt_that_credit_is_reserved_for(
    account_with_card: BillingFixture, carried: OpenedSubscription
) -> None:
    billing = account_with_card
    await remove_card(billing)
    older, younger = await create_past_due_subscriptions(billing, "starter", "starter")
    await insert_payment_method(billing.sessions)
    await top_up(billing, PRICE + 20 + 300)
    outcome = await collect(billing, younger)
    assert outcome.card_charge is not None
    assert outcome.card_charge.amount == usd(PRICE - 300)
    assert (await collect(billing, older)).paid
    assert await billing.balance("debt") == 0


async def test_a_payment_for_a_part_of_the_carried_debt_repays_the_oldest(
    account_with_card: BillingFixture, carried: OpenedSubscription
) -> None:
    """More debt is carried while the card is charged for the invoice and the debt until then."""
    billing = account_with_card
    outcome = await billing.billing_activities.start_period(billing.start_period_command(carried))
    assert outcome.card_charge is not None
    assert outcome.card_charge.amount == usd(PRICE + 20)
    other = billing.create_command(coupon="SMALL")
    opened = await billing.subscription_activities.record_order(other)
    later = replace(billing.start_first_period_command(other, opened), now=ORDERED_AT + DAY)
    await billing.billing_activities.start_first_period(later)
    assert await billing.balance("debt") == -40
    await billing.assert_idempotent(
        billing.billing_activities.apply_card_payment, await card_payment_command(billing, carried, outcome)
    )
    rows = await billing.query(
        "SELECT i.subscription_id AS id, sum(a.amount_minor)::int AS debt FROM invoice_allocations a"
        " JOIN invoices i ON i.id = a.invoice_id WHERE a.source = 'debt' GROUP BY 1"
    )
    assert {row["id"]: row["debt"] for row in rows} == {carried.id: 0, other.order.subscription_id: 20}
