"""Payments on a real database and the card gateway's sandbox: charged once, settled once, whatever happens between."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from activities.gateways.protocol import GatewayUnavailable
from tests.support.inserts import NOW, insert_subscription
from tests.support.payment_fixture import FIVE_MINUTES_LATER, PaymentFixture, run_activity
from workflows.ports.payments import (
    ApplyGatewayEvent,
    CancelPayment,
    CapturePayment,
    ChargePayment,
    GatewayEvent,
    PaymentInput,
    PollPayment,
    Purpose,
    Requester,
)
from workflows.rules.errors import ErrorCode
from workflows.rules.payment import PaymentStatus

S = PaymentStatus


async def for_order(payments: PaymentFixture) -> PaymentInput:
    return payments.payment_input(
        purpose=Purpose.ORDER,
        subscription_id=await insert_subscription(payments.database.owner, payments.organization),
        manual_capture=True,
    )


async def test_a_top_up_is_money_in_the_wallet_with_a_receipt(payments: PaymentFixture) -> None:
    pay = payments.payment_input()
    first = await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    assert first.outcome.status is S.SUCCEEDED
    assert await payments.balances() == (1500, 0)
    (mail,) = await payments.notifications("top_up_receipt")
    assert mail["template_context"]["amount"] == {"amount_minor": 1500, "currency": "USD"}
    assert mail["template_context"]["balance"] == {"amount_minor": 1500, "currency": "USD"}
    assert mail["occurred_at"] == NOW
    (posted,) = await payments.rows("SELECT * FROM ledger_transactions")
    assert (posted["kind"], posted["customer_delta_minor"], posted["posted_at"]) == ("top_up", 1500, NOW)


@pytest.mark.scenario("B23")
async def test_the_activity_again_after_its_answer_was_lost_changes_nothing(payments: PaymentFixture) -> None:
    await insert_subscription(
        payments.database.owner, payments.organization, status="past_due", past_due_for=timedelta(days=1)
    )
    pay = payments.payment_input()
    first = await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    assert (
        await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=FIVE_MINUTES_LATER))
        == first
    )
    assert await payments.balances() == (1500, 0)
    assert len(payments.charges(pay)) == 1
    assert len(await payments.notifications("top_up_receipt")) == 1


@pytest.mark.scenario("B23")
@pytest.mark.parametrize("kind", ["lost_reply", "server_error", "reset"])
async def test_a_crash_between_the_gateway_and_our_commit_charges_once(payments: PaymentFixture, kind: str) -> None:
    pay = payments.payment_input()
    payments.inject_fault(kind)
    with pytest.raises(GatewayUnavailable):
        await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    assert (await payments.payment(pay.payment_id))["status"] == "pending", "recorded before the gateway heard of it"
    assert await payments.balances() == (0, 0)
    progress = await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=FIVE_MINUTES_LATER))
    assert progress.outcome.status is S.SUCCEEDED
    assert await payments.balances() == (1500, 0)
    assert len(payments.charges(pay)) == 1


@pytest.mark.scenario("B22")
async def test_unknown_is_resolved_by_asking_the_gateway(payments: PaymentFixture) -> None:
    pay = payments.payment_input()
    payments.inject_fault("lost_reply")
    with pytest.raises(GatewayUnavailable):
        await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    lost = await run_activity(
        payments.payment_activities.mark_unknown, ChargePayment(input=pay, now=FIVE_MINUTES_LATER)
    )
    assert lost.outcome.status is S.UNKNOWN
    progress = await run_activity(
        payments.payment_activities.poll, PollPayment(input=pay, requester=Requester.WAITING, now=FIVE_MINUTES_LATER)
    )
    assert progress.outcome.status is S.SUCCEEDED
    assert await payments.balances() == (1500, 0)
    assert len(payments.charges(pay)) == 1


@pytest.mark.scenario("B22")
async def test_unknown_that_never_reached_the_gateway_is_asked_again_with_its_key(payments: PaymentFixture) -> None:
    pay = payments.payment_input()
    await run_activity(payments.payment_activities.mark_unknown, ChargePayment(input=pay, now=NOW))
    repeated = await run_activity(
        payments.payment_activities.poll, PollPayment(input=pay, requester=Requester.WAITING, now=FIVE_MINUTES_LATER)
    )
    assert repeated.outcome.status is S.SUCCEEDED
    assert len(payments.charges(pay)) == 1


@pytest.mark.parametrize(
    ("fault", "status", "charges"), [("lost_reply", S.SUCCEEDED, 1), ("reset", S.FAILED, 0)], ids=["charged", "never"]
)
async def test_a_payment_that_is_started_again_after_its_key_was_forgotten_is_looked_up(
    payments: PaymentFixture, fault: str, status: PaymentStatus, charges: int
) -> None:
    pay = payments.payment_input()
    charge = ChargePayment(input=pay, now=NOW)
    payments.inject_fault(fault)
    with pytest.raises(GatewayUnavailable):
        await run_activity(payments.payment_activities.charge, charge)
    await payments.rows("UPDATE payments SET gateway_requested_at = now() - interval '23 hours 1 minute' RETURNING id")
    progress = await run_activity(payments.payment_activities.charge, charge, run_id="run-2")
    assert progress.outcome.status is status
    assert len(payments.charges(pay)) == charges


@pytest.mark.scenario("B22")
async def test_after_the_gateway_forgot_the_key_nothing_is_charged_blindly(payments: PaymentFixture) -> None:
    pay = payments.payment_input()
    await run_activity(payments.payment_activities.mark_unknown, ChargePayment(input=pay, now=NOW))
    await payments.rows("UPDATE payments SET gateway_requested_at = now() - interval '23 hours 1 minute' RETURNING id")
    over = await run_activity(
        payments.payment_activities.poll, PollPayment(input=pay, requester=Requester.WAITING, now=FIVE_MINUTES_LATER)
    )
    assert (over.outcome.status, over.outcome.decline_code) == (S.FAILED, "never_reached_gateway")
    assert payments.charges(pay) == []


async def test_an_abandoned_payment_that_never_reached_the_gateway_is_cancelled(payments: PaymentFixture) -> None:
    pay = await for_order(payments)
    await run_activity(payments.payment_activities.mark_unknown, ChargePayment(input=pay, now=NOW))
    over = await run_activity(
        payments.payment_activities.poll, PollPayment(input=pay, requester=Requester.ABSENT, now=FIVE_MINUTES_LATER)
    )
    assert over.outcome.status is S.CANCELLED
    assert payments.charges(pay) == []


async def test_a_decline_says_why_and_moves_no_money(payments: PaymentFixture) -> None:
    pay = payments.payment_input(gateway_token="pm_card_chargeDeclinedLostCard")
    progress = await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    assert (progress.outcome.status, progress.outcome.decline_code) == (S.FAILED, "lost_card")
    assert await payments.balances() == (0, 0)
    assert await payments.notifications("top_up_receipt") == []


@pytest.mark.scenario("B24")
async def test_resubmitting_while_the_customer_authenticates_is_one_payment(payments: PaymentFixture) -> None:
    pay = payments.payment_input(gateway_token="pm_card_threeDSecure2Required")
    first = await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    assert first.outcome.status is S.PENDING
    assert first.outcome.redirect_url
    assert (
        await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=FIVE_MINUTES_LATER))
        == first
    )
    references = await payments.rows("SELECT gateway_reference FROM payments")
    assert len(references) == 1


async def test_a_payment_that_was_not_completed_in_time_expires(payments: PaymentFixture) -> None:
    pay = payments.payment_input(gateway_token="pm_card_threeDSecure2Required")
    await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    over = await run_activity(
        payments.payment_activities.cancel,
        CancelPayment(
            payment_id=pay.payment_id, final_status=S.EXPIRED, requester=Requester.WAITING, now=FIVE_MINUTES_LATER
        ),
    )
    assert over.outcome.status is S.EXPIRED
    assert over.outcome.redirect_url is None


async def test_what_was_authorised_is_captured_into_held(payments: PaymentFixture) -> None:
    pay = await for_order(payments)
    held = await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    assert held.outcome.status is S.AUTHORIZED
    assert await payments.balances() == (0, 0)
    for _ in range(2):
        taken = await run_activity(
            payments.payment_activities.capture, CapturePayment(payment_id=pay.payment_id, now=FIVE_MINUTES_LATER)
        )
        assert taken.outcome.status is S.SUCCEEDED
    assert await payments.balances() == (0, 1500)
    assert [charge["captured"] for charge in payments.charges(pay)] == [True]


@pytest.mark.scenario("B18")
async def test_what_was_authorised_is_let_go_once(payments: PaymentFixture) -> None:
    pay = await for_order(payments)
    await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    for _ in range(2):
        gone = await run_activity(
            payments.payment_activities.cancel,
            CancelPayment(
                payment_id=pay.payment_id, final_status=S.CANCELLED, requester=Requester.WAITING, now=FIVE_MINUTES_LATER
            ),
        )
        assert gone.outcome.status is S.CANCELLED
    assert await payments.balances() == (0, 0)
    assert [charge["captured"] for charge in payments.charges(pay)] == [False]
    late = await run_activity(
        payments.payment_activities.capture, CapturePayment(payment_id=pay.payment_id, now=FIVE_MINUTES_LATER)
    )
    assert late.outcome.status is S.CANCELLED


async def test_a_lapsed_authorisation_is_a_card_that_did_not_pay(payments: PaymentFixture) -> None:
    pay = await for_order(payments)
    await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    reference = (await payments.payment(pay.payment_id))["gateway_reference"]
    await payments.payment_activities._gateways["stripe"].cancel_charge(reference, key=f"{pay.payment_id}:lapse")
    progress = await run_activity(
        payments.payment_activities.capture, CapturePayment(payment_id=pay.payment_id, now=FIVE_MINUTES_LATER)
    )
    assert (progress.outcome.status, progress.outcome.decline_code) == (S.FAILED, "authorization_expired")


@pytest.mark.scenario("B19", "B20")
async def test_the_same_fact_many_times_at_once_is_one_credit(payments: PaymentFixture) -> None:
    pay = payments.payment_input()
    await run_activity(payments.payment_activities.mark_unknown, ChargePayment(input=pay, now=NOW))
    command = await payments.gateway_event_command(pay, S.SUCCEEDED)
    results = await asyncio.gather(
        *(run_activity(payments.payment_activities.apply_gateway_event, command) for _ in range(6))
    )
    assert {progress.outcome.status for progress in results} == {S.SUCCEEDED}
    assert await payments.balances() == (1500, 0)
    assert len(await payments.notifications("top_up_receipt")) == 1


@pytest.mark.scenario("B20")
async def test_a_webhook_before_our_commit_is_applied_once(payments: PaymentFixture) -> None:
    pay = payments.payment_input()
    payments.inject_fault("lost_reply")
    with pytest.raises(GatewayUnavailable):
        await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    gateway_payment = await payments.payment_activities._gateways["stripe"].find_charge(
        pay.payment_id, (await payments.rows("SELECT gateway_reference FROM gateway_customers"))[0]["gateway_reference"]
    )
    assert gateway_payment is not None
    event = GatewayEvent(
        event_id="evt_early",
        gateway="stripe",
        gateway_reference=gateway_payment.reference,
        status=S.SUCCEEDED,
        amount=pay.amount,
    )
    await run_activity(
        payments.payment_activities.apply_gateway_event,
        ApplyGatewayEvent(payment_id=pay.payment_id, event=event, requester=Requester.WAITING, now=FIVE_MINUTES_LATER),
    )
    assert await payments.balances() == (1500, 0)
    assert (
        await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=FIVE_MINUTES_LATER))
    ).outcome.status is S.SUCCEEDED
    assert await payments.balances() == (1500, 0)


@pytest.mark.scenario("B21")
@pytest.mark.parametrize("order", [(S.SUCCEEDED, S.FAILED), (S.FAILED, S.SUCCEEDED)])
async def test_failed_and_succeeded_in_either_order_are_paid(
    payments: PaymentFixture, order: tuple[PaymentStatus, PaymentStatus]
) -> None:
    pay = payments.payment_input()
    await run_activity(payments.payment_activities.mark_unknown, ChargePayment(input=pay, now=NOW))
    await run_activity(
        payments.payment_activities.apply_gateway_event, await payments.gateway_event_command(pay, order[0], number=1)
    )
    progress = await run_activity(
        payments.payment_activities.apply_gateway_event, await payments.gateway_event_command(pay, order[1], number=2)
    )
    assert progress.outcome.status is S.SUCCEEDED
    assert await payments.balances() == (1500, 0)


@pytest.mark.scenario("B27")
@pytest.mark.parametrize("ended", [S.CANCELLED, S.EXPIRED, S.FAILED])
async def test_money_after_the_end_is_credit_once_and_nothing_is_revived(
    payments: PaymentFixture, ended: PaymentStatus
) -> None:
    older = await insert_subscription(
        payments.database.owner, payments.organization, status="suspended", past_due_for=timedelta(days=9)
    )
    newer = await insert_subscription(
        payments.database.owner, payments.organization, status="past_due", past_due_for=timedelta(days=1)
    )
    pay = await for_order(payments)
    await run_activity(payments.payment_activities.mark_unknown, ChargePayment(input=pay, now=NOW))
    await run_activity(
        payments.payment_activities.apply_gateway_event, await payments.gateway_event_command(pay, ended)
    )
    late = await run_activity(
        payments.payment_activities.apply_gateway_event,
        await payments.gateway_event_command(pay, S.SUCCEEDED, number=2),
        run_id="run-2",
    )
    assert late.received_after_close
    assert late.past_due_subscription_ids == [older, newer]
    repeated = await run_activity(
        payments.payment_activities.apply_gateway_event,
        await payments.gateway_event_command(pay, S.SUCCEEDED, number=3),
        run_id="run-3",
    )
    assert repeated.past_due_subscription_ids == [], "only the run that received the money returns them"
    assert await payments.balances() == (1500, 0)
    statuses = await payments.rows("SELECT status FROM subscriptions WHERE id = :id", id=pay.subscription_id)
    assert statuses == [{"status": "active"}], "a payment touches no subscription"


async def test_an_authorization_after_the_close_is_reported_as_unwanted(payments: PaymentFixture) -> None:
    pay = await for_order(payments)
    await run_activity(payments.payment_activities.mark_unknown, ChargePayment(input=pay, now=NOW))
    await run_activity(
        payments.payment_activities.apply_gateway_event, await payments.gateway_event_command(pay, S.CANCELLED)
    )
    stray = await run_activity(
        payments.payment_activities.apply_gateway_event,
        await payments.gateway_event_command(pay, S.AUTHORIZED, number=2),
    )
    assert stray.has_unwanted_authorization
    assert stray.outcome.status is S.CANCELLED


async def test_one_payment_of_an_invoice_is_in_flight(payments: PaymentFixture) -> None:
    first = await payments.invoice_payment_input()
    await run_activity(payments.payment_activities.mark_unknown, ChargePayment(input=first, now=NOW))
    second = replace(first, payment_id=payments.payment_input().payment_id)
    with pytest.raises(ApplicationError) as refused:
        await run_activity(payments.payment_activities.charge, ChargePayment(input=second, now=NOW))
    assert refused.value.type == ErrorCode.CONFLICT
    assert payments.charges(second) == []
    await run_activity(
        payments.payment_activities.apply_gateway_event, await payments.gateway_event_command(first, S.FAILED)
    )
    assert (
        await run_activity(payments.payment_activities.charge, ChargePayment(input=second, now=FIVE_MINUTES_LATER))
    ).outcome.status is S.SUCCEEDED
    assert await payments.balances() == (0, 1500)
