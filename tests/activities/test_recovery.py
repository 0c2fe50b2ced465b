"""What a restarted workflow reads and settles, from rows that a lost run left in the middle of a step."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from db.queries import workflow_recovery
from tests.support.billing_commands import (
    DAY,
    TEN_DAYS_AFTER_ORDER,
    change_status_command,
    collect_command,
    create_past_due_subscriptions,
    plan_change_command,
    start_first_period_with_card,
    top_up,
    usd,
)
from tests.support.billing_fixture import (
    ORDERED_AT,
    BillingFixture,
    insert_card_payment,
    insert_payment_method,
)
from tests.support.recovery_rows import insert_payment, recovery_activities
from workflows.ports.billing import ApplyCardPayment
from workflows.ports.recovery import LoadRecovery, Recovery, ResumeCollection
from workflows.ports.subscription import AbortOrder
from workflows.rules.money import Money
from workflows.rules.order_payments import is_needed_by_order
from workflows.rules.renewal import PeriodKind, PeriodOutcome
from workflows.rules.subscription import SubscriptionStatus


async def _hold_statuses(billing: BillingFixture) -> list[str]:
    return [row["status"] for row in await billing.query("SELECT status FROM holds ORDER BY id")]


async def test_a_subscription_at_rest_leaves_nothing_to_settle(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    recovery = recovery_activities(billing)
    assert await recovery.load(LoadRecovery(subscription_id=ordered.id)) == Recovery()
    outcome = await billing.assert_idempotent(
        recovery.resume_collection, ResumeCollection(subscription_id=ordered.id, now=TEN_DAYS_AFTER_ORDER)
    )
    assert (outcome.card_charge, outcome.state.status) == (None, SubscriptionStatus.ACTIVE)


async def test_a_renewal_that_waited_for_its_card_is_charged_the_same_amount(billing: BillingFixture) -> None:
    await top_up(billing, 600)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    opened = await billing.billing_activities.start_period(billing.start_period_command(ordered))
    assert opened.card_charge is not None
    outcome = await billing.assert_idempotent(
        recovery_activities(billing).resume_collection,
        ResumeCollection(subscription_id=ordered.id, now=ordered.period.end),
    )
    assert (outcome.result, outcome.invoice_id) == (PeriodOutcome.OPEN, opened.invoice_id)
    assert outcome.card_charge == opened.card_charge
    assert await billing.balance("held") == 100


async def test_a_resumption_that_was_not_paid_returns_its_hold(billing: BillingFixture) -> None:
    await top_up(billing, 600)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    await billing.subscription_activities.change_status(change_status_command(ordered, SubscriptionStatus.PAUSED))
    resumption = billing.start_period_command(ordered, kind=PeriodKind.RESUMPTION, start=TEN_DAYS_AFTER_ORDER)
    drafted = await billing.billing_activities.start_period(resumption)
    assert drafted.result is PeriodOutcome.DRAFT
    outcome = await billing.assert_idempotent(
        recovery_activities(billing).resume_collection,
        ResumeCollection(subscription_id=ordered.id, now=TEN_DAYS_AFTER_ORDER),
    )
    assert (outcome.card_charge, outcome.state.status) == (None, SubscriptionStatus.PAUSED)
    assert [row["status"] for row in await billing.invoices(ordered.id)] == ["paid", "void"]
    assert (await billing.balance(), await billing.balance("held")) == (100, 0)


async def test_a_released_hold_is_offered_to_the_debts_of_the_account(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    debtor = await billing.create_active_subscription()
    await top_up(billing, 600)
    paused = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    await billing.subscription_activities.change_status(change_status_command(paused, SubscriptionStatus.PAUSED))
    resumption = billing.start_period_command(paused, kind=PeriodKind.RESUMPTION, start=TEN_DAYS_AFTER_ORDER)
    assert (await billing.billing_activities.start_period(resumption)).result is PeriodOutcome.DRAFT
    assert await billing.balance("held") == 100
    await billing.execute("UPDATE payment_methods SET is_default = false, detached_at = now()")
    unpaid = await billing.billing_activities.start_period(billing.start_period_command(debtor))
    assert unpaid.state.status is SubscriptionStatus.PAST_DUE
    outcome = await billing.assert_idempotent(
        recovery_activities(billing).resume_collection,
        ResumeCollection(subscription_id=paused.id, now=debtor.period.end),
    )
    assert outcome.past_due_subscription_ids == [debtor.id]
    assert await billing.balance("held") == 0


async def test_the_end_of_a_trial_keeps_its_draft_and_hold_for_the_schedule(billing: BillingFixture) -> None:
    await top_up(billing, 100)
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription("trial")
    command = billing.start_period_command(ordered, kind=PeriodKind.TRIAL_END)
    drafted = await billing.billing_activities.start_period(command)
    assert drafted.result is PeriodOutcome.DRAFT
    outcome = await billing.assert_idempotent(
        recovery_activities(billing).resume_collection,
        ResumeCollection(subscription_id=ordered.id, now=ordered.period.end),
    )
    assert outcome.card_charge is None
    assert await billing.billing_activities.start_period(command) == drafted
    assert await billing.balance("held") == 100


async def test_a_hold_beside_a_debt_is_released_and_the_schedule_collects_again(billing: BillingFixture) -> None:
    ordered, opened = await billing.create_past_due_subscription()
    await insert_payment_method(billing.sessions)
    await top_up(billing, 100)
    collect = collect_command(ordered, opened)
    collected = await billing.billing_activities.collect_invoice(collect)
    assert collected.card_charge is not None
    assert await billing.balance("held") == 100
    outcome = await billing.assert_idempotent(
        recovery_activities(billing).resume_collection, ResumeCollection(subscription_id=ordered.id, now=collect.now)
    )
    assert (outcome.card_charge, outcome.state.status) == (None, SubscriptionStatus.PAST_DUE)
    assert await billing.balance("held") == 0
    later = replace(collect, now=collect.now + 2 * DAY)
    assert (await billing.billing_activities.collect_invoice(later)).card_charge == collected.card_charge


async def test_a_plan_change_that_was_not_paid_is_dropped(billing: BillingFixture) -> None:
    await top_up(billing, 600)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    assert changed.card_charge is not None
    await billing.assert_idempotent(
        recovery_activities(billing).resume_collection,
        ResumeCollection(subscription_id=ordered.id, now=TEN_DAYS_AFTER_ORDER),
    )
    assert [row["status"] for row in await billing.invoices(ordered.id)] == ["paid", "void"]
    assert (await billing.balance(), await _hold_statuses(billing)) == (100, ["captured", "released"])


@pytest.mark.scenario("B27")
@pytest.mark.parametrize("plan", ["pro", "pro-yearly"])
async def test_a_card_that_paid_for_a_plan_change_that_was_lost_is_credited(billing: BillingFixture, plan: str) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, plan))
    assert changed.card_charge is not None
    await insert_card_payment(billing.sessions, "pay_1", ordered.id, changed.card_charge.amount)
    command = ApplyCardPayment(
        subscription_id=ordered.id, invoice_id=changed.invoice_id, payment_id="pay_1", now=TEN_DAYS_AFTER_ORDER
    )
    outcome = await billing.assert_idempotent(billing.billing_activities.apply_card_payment, command)
    assert (outcome.state.plan_id, outcome.state.period_end) == ("pln_starter", ordered.period.end)
    assert await billing.balance() == changed.card_charge.amount.amount_minor
    await billing.assert_idempotent(
        recovery_activities(billing).resume_collection,
        ResumeCollection(subscription_id=ordered.id, now=TEN_DAYS_AFTER_ORDER),
    )
    assert [row["status"] for row in await billing.invoices(ordered.id)] == ["paid", "void"]


@pytest.mark.scenario("B23")
async def test_a_payment_that_succeeded_and_was_not_applied_is_found_with_its_invoice(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    opened = await billing.billing_activities.start_period(billing.start_period_command(ordered))
    await insert_card_payment(billing.sessions, "pay_1", ordered.id, usd(500))
    recovery = recovery_activities(billing)
    (unsettled,) = (await recovery.load(LoadRecovery(subscription_id=ordered.id))).payments
    assert (unsettled.payment.payment_id, unsettled.invoice_id) == ("pay_1", opened.invoice_id)
    command = ApplyCardPayment(
        subscription_id=ordered.id, invoice_id=opened.invoice_id, payment_id="pay_1", now=ordered.period.end
    )
    await billing.billing_activities.apply_card_payment(command)
    assert (await recovery.load(LoadRecovery(subscription_id=ordered.id))).payments == []


@pytest.mark.parametrize(
    ("decline_code", "charged_first", "hard_declined"),
    [("stolen_card", True, True), ("stolen_card", False, True), ("insufficient_funds", True, False)],
)
async def test_a_debt_remembers_its_attempts_and_whether_its_card_was_declined_for_good(
    billing: BillingFixture, decline_code: str, charged_first: bool, hard_declined: bool
) -> None:
    ordered, opened = await billing.create_past_due_subscription()
    collect = collect_command(ordered, opened)
    await billing.billing_activities.collect_invoice(collect)
    declined = await insert_payment_method(billing.sessions)
    await insert_payment(
        billing,
        ordered.id,
        500,
        invoice_id=opened.invoice_id,
        status="failed",
        decline_code=decline_code,
        payment_method_id=declined,
    )
    if not charged_first:
        await billing.execute("UPDATE payment_methods SET is_default = false")
        await insert_payment_method(billing.sessions)
    loaded = await recovery_activities(billing).load(LoadRecovery(subscription_id=ordered.id))
    assert (loaded.failed_attempts, loaded.last_attempt_at) == (2, collect.now)
    assert loaded.hard_declined is hard_declined


@pytest.mark.parametrize(("first", "last", "hard_declined"), [(0, 1, False), (1, 0, True)])
async def test_the_last_declined_card_decides_whether_fraud_is_suspected(
    billing: BillingFixture, first: int, last: int, hard_declined: bool
) -> None:
    ordered, opened = await billing.create_past_due_subscription()
    await billing.billing_activities.collect_invoice(collect_command(ordered, opened))
    stolen = await insert_payment_method(billing.sessions, default=False)
    other = await insert_payment_method(billing.sessions)
    for place, (method, code) in ((first, (stolen, "stolen_card")), (last, (other, "insufficient_funds"))):
        await insert_payment(
            billing,
            ordered.id,
            500,
            id=f"pay_{place}",
            idempotency_key=f"pay_{place}:1",
            invoice_id=opened.invoice_id,
            status="failed",
            decline_code=code,
            payment_method_id=method,
            created_at=ordered.period.end + place * DAY,
        )
    loaded = await recovery_activities(billing).load(LoadRecovery(subscription_id=ordered.id))
    assert loaded.hard_declined is hard_declined


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("ready", Recovery()),
        ("stopped", Recovery(is_instance_running=False, is_stopped_by_customer=True)),
        ("suspended", Recovery(is_instance_running=False)),
    ],
)
async def test_the_instance_is_as_its_row_says(billing: BillingFixture, status: str, expected: Recovery) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await billing.execute(f"UPDATE instances SET status = '{status}'")
    recovery = recovery_activities(billing)
    assert await recovery.load(LoadRecovery(subscription_id=ordered.id)) == expected
    await billing.execute("UPDATE instances SET storage_gib = 6")
    loaded = await recovery.load(LoadRecovery(subscription_id=ordered.id))
    assert loaded == replace(expected, has_plan_resources=False)


@pytest.mark.scenario("B20", "B23")
async def test_the_end_of_a_trial_whose_payment_a_webhook_completed_charges_no_card(billing: BillingFixture) -> None:
    await top_up(billing, 100)
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription("trial")
    command = billing.start_period_command(ordered, kind=PeriodKind.TRIAL_END)
    drafted = await billing.billing_activities.start_period(command)
    assert drafted.card_charge is not None
    # A webhook has completed the payment while nothing awaited it: it is wallet credit.
    amount = drafted.card_charge.amount.amount_minor
    await top_up(billing, amount)
    await insert_payment(
        billing,
        ordered.id,
        amount,
        invoice_id=drafted.invoice_id,
        status="succeeded",
        captured_minor=amount,
        credited_to_wallet=True,
    )
    resume = ResumeCollection(subscription_id=ordered.id, now=ordered.period.end)
    assert (await recovery_activities(billing).resume_collection(resume)).card_charge is None
    paid = await billing.billing_activities.start_period(command)
    assert (paid.result, paid.card_charge, paid.state.status) == (PeriodOutcome.PAID, None, SubscriptionStatus.ACTIVE)
    assert (await billing.balance(), await billing.balance("held")) == (0, 0)
    await billing.assert_ledger_balanced()
    await billing.assert_allocations_match_invoices()


async def test_credit_that_arrived_while_the_workflow_was_lost_is_left_to_the_older_debt(
    billing: BillingFixture,
) -> None:
    older, younger = await create_past_due_subscriptions(billing, "starter", "starter")
    await top_up(billing, 500)
    for ordered, status in ((younger, SubscriptionStatus.PAST_DUE), (older, SubscriptionStatus.ACTIVE)):
        outcome = await recovery_activities(billing).resume_collection(
            ResumeCollection(subscription_id=ordered.id, now=ordered.period.end + 2 * DAY)
        )
        assert outcome.state.status is status
    assert await billing.balance() == 0


@pytest.mark.scenario("B30")
@pytest.mark.parametrize("held", [0, 100])
async def test_a_debt_is_paid_by_credit_that_arrived_while_the_workflow_was_lost(
    billing: BillingFixture, held: int
) -> None:
    ordered, opened = await billing.create_past_due_subscription()
    if held:
        await insert_payment_method(billing.sessions)
        await top_up(billing, held)
        assert (await billing.billing_activities.collect_invoice(collect_command(ordered, opened))).card_charge
    await top_up(billing, 500 - held)
    outcome = await recovery_activities(billing).resume_collection(
        ResumeCollection(subscription_id=ordered.id, now=ordered.period.end + DAY)
    )
    assert (outcome.card_charge, outcome.state.status) == (None, SubscriptionStatus.ACTIVE)
    assert [row["status"] for row in await billing.invoices(ordered.id)] == ["paid", "paid"]
    assert (await billing.balance(), await billing.balance("held")) == (0, 0)
    await billing.assert_ledger_balanced()
    await billing.assert_allocations_match_invoices()


@pytest.mark.parametrize("is_paid", [False, True])
async def test_an_order_needs_its_authorization_until_its_first_invoice_is_paid(
    billing: BillingFixture, is_paid: bool
) -> None:
    if is_paid:
        await top_up(billing, 500)
        ordered = await billing.create_active_subscription()
    else:
        await insert_payment_method(billing.sessions)
        ordered, _ = await start_first_period_with_card(billing)
    await insert_payment(billing, ordered.id, 500, purpose="order", status="authorized")
    async with billing.sessions() as session:
        facts = await workflow_recovery.get_purpose_facts(session, "pay_1")
        ((payment, listed),) = await workflow_recovery.list_in_flight_payments(
            session, after="", limit=10, minimum_age=timedelta()
        )
    assert (payment.payment_id, listed) == ("pay_1", facts)
    assert is_needed_by_order(facts) is not is_paid


async def test_an_order_is_not_judged_by_an_invoice_of_a_later_period(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription("trial")
    end = billing.start_period_command(ordered, kind=PeriodKind.TRIAL_END)
    assert (await billing.billing_activities.start_period(end)).paid
    assert [row["billing_reason"] for row in await billing.invoices(ordered.id)] == ["trial_end"]
    await insert_payment(billing, ordered.id, 500, purpose="order", status="authorized")
    async with billing.sessions() as session:
        facts = await workflow_recovery.get_purpose_facts(session, "pay_1")
    assert facts.first_invoice_status is None


async def test_a_top_up_tries_no_payment_method_for_the_open_invoice(billing: BillingFixture) -> None:
    ordered, _ = await billing.create_past_due_subscription()
    await insert_payment_method(billing.sessions)
    await billing.execute("UPDATE payment_methods SET offered_at = now() - interval '1 hour'")
    await insert_payment(
        billing, ordered.id, 500, purpose="top_up", status="failed", gateway_requested_at=datetime.now(UTC)
    )
    loaded = await recovery_activities(billing).load(LoadRecovery(subscription_id=ordered.id))
    assert loaded.has_untried_payment_method


@pytest.mark.parametrize("status", ["created", "pending", "unknown", "authorized"])
async def test_an_order_that_ends_credits_nothing_that_was_not_captured(billing: BillingFixture, status: str) -> None:
    """The payment's workflow was terminated, so that the order did not wait for its end."""
    await insert_payment_method(billing.sessions)
    ordered = billing.create_command("starter")
    await billing.subscription_activities.record_order(ordered)
    subscription_id = ordered.order.subscription_id
    await insert_payment(billing, subscription_id, 500, purpose="order", status=status)
    await _abort_order(billing, subscription_id)
    assert (await billing.balance(), await billing.balance("held")) == (0, 0)
    await billing.assert_ledger_balanced()


async def test_the_mail_of_an_order_that_ends_carries_what_was_captured(billing: BillingFixture) -> None:
    await insert_payment_method(billing.sessions)
    ordered = billing.create_command("starter")
    await billing.subscription_activities.record_order(ordered)
    subscription_id = ordered.order.subscription_id
    await insert_card_payment(billing.sessions, "pay_1", subscription_id, Money(amount_minor=500, currency="USD"))
    await _abort_order(billing, subscription_id)
    (mail,) = await billing.query(
        "SELECT template_context FROM notifications WHERE kind = 'subscription_cancelled' AND subscription_id = :id",
        id=subscription_id,
    )
    assert mail["template_context"]["credited"] == {"amount_minor": 500, "currency": "USD"}


async def _abort_order(billing: BillingFixture, subscription_id: str) -> None:
    await billing.subscription_activities.abort_order(
        AbortOrder(
            subscription_id=subscription_id,
            status=SubscriptionStatus.CANCELLED,
            reason="",
            actor="usr_1",
            now=ORDERED_AT,
        )
    )
