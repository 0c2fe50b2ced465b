"""Every activity of billing, run twice with one command: Temporal does that whenever an answer was lost on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from temporalio.exceptions import ApplicationError

from tests.support.billing_commands import (
    DAY,
    TEN_DAYS_AFTER_ORDER,
    card_payment_command,
    change_status_command,
    collect_command,
    payment_failure_command,
    top_up,
    usd,
)
from tests.support.billing_fixture import (
    ORDERED_AT,
    ORGANIZATION,
    USER,
    BillingFixture,
    insert_coupon,
    insert_payment_method,
)
from workflows.ports.billing import (
    AdjustWallet,
)
from workflows.ports.subscription import AbortOrder, RecordCancellationRequest, SetCancelAtPeriodEnd, StartProvisioning
from workflows.rules.funding import CollectionMethod
from workflows.rules.renewal import PeriodKind
from workflows.rules.subscription import SubscriptionStatus

# Orders


async def test_an_order_paid_by_the_wallet(billing: BillingFixture) -> None:
    await top_up(billing, 600)
    command = billing.create_command()
    opened = await billing.assert_idempotent(billing.subscription_activities.record_order, command)
    assert await billing.balance("held") == 500
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_first_period, billing.start_first_period_command(command, opened)
    )
    assert (outcome.paid, outcome.state.status) == (True, SubscriptionStatus.ACTIVE)
    assert (await billing.balance(), await billing.balance("held")) == (100, 0)


async def test_the_instance_of_an_order_has_no_conditions_yet(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    await billing.subscription_activities.record_order(billing.create_command())
    columns = "parameters, entitlements, conditions"
    assert await billing.query(f"SELECT {columns} FROM instances") == [
        {"parameters": {}, "entitlements": {}, "conditions": []}
    ]


async def test_an_order_paid_by_wallet_and_card(billing: BillingFixture) -> None:
    await top_up(billing, 100)
    await insert_payment_method(billing.sessions)
    command = billing.create_command()
    opened = await billing.assert_idempotent(billing.subscription_activities.record_order, command)
    assert opened.card_charge is not None
    assert opened.card_charge.amount == usd(400)
    secured = StartProvisioning(subscription_id=command.order.subscription_id, payment_id="pay_1", now=ORDERED_AT)
    await billing.assert_idempotent(billing.subscription_activities.start_provisioning, secured)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_first_period, billing.start_first_period_command(command, opened)
    )
    assert outcome.card_charge is not None
    assert outcome.card_charge.amount == usd(400)


async def test_an_order_with_a_trial(billing: BillingFixture) -> None:
    command = billing.create_command("trial")
    opened = await billing.assert_idempotent(billing.subscription_activities.record_order, command)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_first_period, billing.start_first_period_command(command, opened)
    )
    assert (outcome.paid, outcome.invoice_id, outcome.state.status) == (True, None, SubscriptionStatus.TRIALING)


@pytest.mark.parametrize(
    ("collection", "remedy"),
    [(CollectionMethod.WALLET, "Top up"), (CollectionMethod.WALLET_THEN_CARD, "Top up or add a card")],
)
async def test_an_order_that_nothing_pays_says_what_to_do(
    billing: BillingFixture, collection: CollectionMethod, remedy: str
) -> None:
    await top_up(billing, 499)
    with pytest.raises(ApplicationError) as refused:
        await billing.subscription_activities.record_order(billing.create_command(collection_method=collection))
    assert refused.value.type == "INSUFFICIENT_FUNDS"
    assert refused.value.message == (f"Insufficient funds for the first period (US$5.00). {remedy}, then order again.")
    assert refused.value.details == ({"due_minor": 500, "currency": "USD"},)


@pytest.mark.scenario("B17")
async def test_a_trial_is_used_once_it_has_started(billing: BillingFixture) -> None:
    for ending in (SubscriptionStatus.CANCELLED, SubscriptionStatus.FAILED):
        aborted = billing.create_command("trial")
        await billing.subscription_activities.record_order(aborted)
        with pytest.raises(ApplicationError) as refused:
            await billing.subscription_activities.record_order(billing.create_command("trial"))
        assert refused.value.type == "TRIAL_ALREADY_USED"
        await billing.subscription_activities.abort_order(
            AbortOrder(
                subscription_id=aborted.order.subscription_id, status=ending, reason="no", actor=USER, now=ORDERED_AT
            )
        )
    started = await billing.create_active_subscription("trial")
    for ending in (SubscriptionStatus.CANCELLED, SubscriptionStatus.TERMINATED):
        await billing.subscription_activities.change_status(change_status_command(started, ending))
        with pytest.raises(ApplicationError) as refused:
            await billing.subscription_activities.record_order(billing.create_command("trial"))
        assert refused.value.type == "TRIAL_ALREADY_USED"


@pytest.mark.scenario("B18")
async def test_an_order_that_ends_gives_coupon_credit_and_host_name_back(billing: BillingFixture) -> None:
    await insert_coupon(billing.sessions, "WELCOME", 20, "once")
    await insert_payment_method(billing.sessions)
    for ending in (SubscriptionStatus.EXPIRED, SubscriptionStatus.FAILED, SubscriptionStatus.CANCELLED):
        await top_up(billing, 100)
        command = billing.create_command(coupon="WELCOME")
        await billing.assert_idempotent(billing.subscription_activities.record_order, command)
        close = AbortOrder(
            subscription_id=command.order.subscription_id, status=ending, reason="no", actor=USER, now=ORDERED_AT
        )
        if ending is SubscriptionStatus.FAILED:
            secured = StartProvisioning(
                subscription_id=command.order.subscription_id, payment_id="pay_1", now=ORDERED_AT
            )
            await billing.subscription_activities.start_provisioning(secured)
        request = RecordCancellationRequest(subscription_id=close.subscription_id, actor=USER, now=ORDERED_AT)
        await billing.assert_idempotent(billing.subscription_activities.record_cancellation_request, request)
        await billing.assert_idempotent(billing.subscription_activities.abort_order, close)
        assert await billing.balance("held") == 0
    assert await billing.balance() == 300
    assert (await billing.query("SELECT redemption_count FROM coupons"))[0]["redemption_count"] == 0
    # Nothing was ever begun for them, so no one else would say that they are gone.
    assert {row["status"] for row in await billing.query("SELECT status FROM instances")} == {"deleted"}


async def test_an_order_that_a_card_pays_alone_is_aborted_without_a_posting(billing: BillingFixture) -> None:
    await insert_payment_method(billing.sessions)
    command = billing.create_command()
    await billing.subscription_activities.record_order(command)
    abort = AbortOrder(
        subscription_id=command.order.subscription_id,
        status=SubscriptionStatus.EXPIRED,
        reason="declined",
        actor=USER,
        now=ORDERED_AT,
    )
    await billing.assert_idempotent(billing.subscription_activities.abort_order, abort)
    assert [row["status"] for row in await billing.query("SELECT status FROM holds")] == ["released"]
    assert await billing.query("SELECT kind FROM ledger_transactions") == []


# Renewals


async def test_a_renewal_that_the_wallet_pays(billing: BillingFixture) -> None:
    await top_up(billing, 2000)
    ordered = await billing.create_active_subscription()
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered)
    )
    assert outcome.paid
    assert await billing.balance() == 1000


@pytest.mark.scenario("B30")
async def test_a_renewal_that_nothing_pays(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered)
    )
    assert (outcome.paid, outcome.card_charge, outcome.state.status) == (False, None, SubscriptionStatus.PAST_DUE)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.collect_invoice, collect_command(ordered, outcome)
    )
    assert not outcome.paid
    await top_up(billing, 500)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.collect_invoice, collect_command(ordered, outcome)
    )
    assert (outcome.paid, outcome.state.status, outcome.state.past_due_since) == (True, SubscriptionStatus.ACTIVE, None)


async def test_a_renewal_that_a_card_pays(billing: BillingFixture) -> None:
    await top_up(billing, 600)
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription()
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered)
    )
    assert outcome.card_charge is not None
    assert outcome.card_charge.amount == usd(400)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.apply_card_payment, await card_payment_command(billing, ordered, outcome)
    )
    assert (outcome.paid, outcome.state.status) == (True, SubscriptionStatus.ACTIVE)
    assert (await billing.balance(), await billing.balance("held"), await billing.balance("receivable")) == (0, 0, 0)


async def test_a_renewal_that_a_card_declines_and_a_retry_that_it_pays(billing: BillingFixture) -> None:
    await top_up(billing, 600)
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription()
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered)
    )
    outcome = await billing.assert_idempotent(
        billing.billing_activities.record_payment_failure, payment_failure_command(ordered, outcome)
    )
    assert (outcome.paid, outcome.state.status) == (False, SubscriptionStatus.PAST_DUE)
    assert (await billing.balance(), await billing.balance("held")) == (100, 0)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.collect_invoice, collect_command(ordered, outcome)
    )
    assert outcome.card_charge is not None
    assert outcome.card_charge.amount == usd(400)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.apply_card_payment, await card_payment_command(billing, ordered, outcome)
    )
    assert (outcome.paid, outcome.state.status) == (True, SubscriptionStatus.ACTIVE)


async def test_the_end_of_a_trial(billing: BillingFixture) -> None:
    ordered = await billing.create_active_subscription("trial")
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered, kind=PeriodKind.TRIAL_END)
    )
    assert (outcome.paid, outcome.state.status) == (False, SubscriptionStatus.PAUSED)
    assert await billing.invoices(ordered.id) == []


async def test_the_end_of_a_trial_that_a_card_pays_or_not(billing: BillingFixture) -> None:
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription("trial")
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered, kind=PeriodKind.TRIAL_END)
    )
    outcome = await billing.assert_idempotent(
        billing.billing_activities.record_payment_failure, payment_failure_command(ordered, outcome)
    )
    assert (outcome.paid, outcome.state.status) == (False, SubscriptionStatus.PAUSED)
    resumed = billing.start_period_command(ordered, kind=PeriodKind.RESUMPTION, start=ordered.period.end + DAY)
    outcome = await billing.assert_idempotent(billing.billing_activities.start_period, resumed)
    outcome = await billing.assert_idempotent(
        billing.billing_activities.apply_card_payment, await card_payment_command(billing, ordered, outcome)
    )
    assert (outcome.paid, outcome.state.status) == (True, SubscriptionStatus.ACTIVE)
    assert [row["status"] for row in await billing.invoices(ordered.id)] == ["void", "paid"]


@pytest.mark.scenario("B27")
async def test_a_card_that_pays_after_the_cancellation(billing: BillingFixture) -> None:
    await top_up(billing, 600)
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription()
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered)
    )
    await billing.assert_idempotent(
        billing.subscription_activities.change_status, change_status_command(ordered, SubscriptionStatus.CANCELLED)
    )
    outcome = await billing.assert_idempotent(
        billing.billing_activities.apply_card_payment, await card_payment_command(billing, ordered, outcome)
    )
    assert (outcome.paid, outcome.state.status) == (False, SubscriptionStatus.CANCELLED)
    assert (await billing.balance(), await billing.balance("held")) == (500, 0)


async def test_a_card_that_declines_after_the_cancellation(billing: BillingFixture) -> None:
    await top_up(billing, 600)
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription()
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered)
    )
    await billing.assert_idempotent(
        billing.subscription_activities.change_status, change_status_command(ordered, SubscriptionStatus.CANCELLED)
    )
    await billing.assert_idempotent(
        billing.billing_activities.record_payment_failure, payment_failure_command(ordered, outcome)
    )
    assert (await billing.balance(), await billing.balance("held"), await billing.balance("receivable")) == (100, 0, 0)


async def test_a_draft_that_a_card_still_pays_after_the_cancellation_is_withdrawn(billing: BillingFixture) -> None:
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription("trial")
    outcome = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered, kind=PeriodKind.TRIAL_END)
    )
    await billing.assert_idempotent(
        billing.subscription_activities.change_status, change_status_command(ordered, SubscriptionStatus.CANCELLED)
    )
    await billing.assert_idempotent(
        billing.billing_activities.apply_card_payment, await card_payment_command(billing, ordered, outcome)
    )
    assert [(row["status"], row["number"]) for row in await billing.invoices(ordered.id)] == [("void", None)]
    assert (await billing.balance(), await billing.balance("held")) == (500, 0)


# Moves without money


async def test_moves_and_intents(billing: BillingFixture) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription()
    intent = SetCancelAtPeriodEnd(
        subscription_id=ordered.id,
        cancel_at_period_end=True,
        pending_plan_id=None,
        reason="leaving",
        actor=USER,
        now=TEN_DAYS_AFTER_ORDER,
    )
    await billing.assert_idempotent(billing.subscription_activities.set_cancel_at_period_end, intent)
    await billing.assert_idempotent(
        billing.subscription_activities.set_cancel_at_period_end, replace(intent, cancel_at_period_end=False)
    )
    for to in (SubscriptionStatus.PAUSED, SubscriptionStatus.CANCELLED, SubscriptionStatus.TERMINATED):
        await billing.assert_idempotent(
            billing.subscription_activities.change_status, change_status_command(ordered, to)
        )


async def test_a_suspension(billing: BillingFixture) -> None:
    debtor, _ = await billing.create_past_due_subscription()
    await billing.assert_idempotent(
        billing.subscription_activities.change_status, change_status_command(debtor, SubscriptionStatus.SUSPENDED)
    )
    await billing.assert_idempotent(
        billing.subscription_activities.change_status, change_status_command(debtor, SubscriptionStatus.CANCELLED)
    )
    assert [row["status"] for row in await billing.invoices(debtor.id)] == ["paid", "void"]


async def test_an_adjustment(billing: BillingFixture) -> None:
    command = AdjustWallet(
        adjustment_id="adj_1",
        organization_id=ORGANIZATION,
        amount=usd(250),
        reason="sorry",
        actor=USER,
        request_id="",
        now=TEN_DAYS_AFTER_ORDER,
    )
    await billing.assert_idempotent(billing.billing_activities.adjust_wallet, command)
    assert await billing.balance() == 250


async def test_a_coupon_of_a_trial_is_used_by_its_first_invoice_or_given_back(billing: BillingFixture) -> None:
    await insert_coupon(billing.sessions, "TWICE", 50, "periods", 2)
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription("trial", coupon="TWICE")
    await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered, kind=PeriodKind.TRIAL_END)
    )
    assert [row["status"] for row in await billing.query("SELECT status FROM coupon_redemptions")] == ["redeemed"]
    assert [row["total_minor"] for row in await billing.invoices(ordered.id)] == [250]
    await billing.execute("UPDATE subscriptions SET is_trial = false")
    other = await billing.create_active_subscription("trial", coupon="TWICE")
    await billing.assert_idempotent(
        billing.subscription_activities.change_status, change_status_command(other, SubscriptionStatus.CANCELLED)
    )
    assert (await billing.query("SELECT redemption_count FROM coupons"))[0]["redemption_count"] == 1


# Plan changes
