"""Payments on a real database and the card gateway's sandbox: charged once, settled once, whatever happens between."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from activities.gateways.base import Unavailable
from tests.support.accounts import NOW, subscription
from tests.support.money import LATER, Till, run
from workflows.ports.payments import (
    Capture,
    Charge,
    GatewayEvent,
    Hear,
    Inquire,
    Pay,
    Purpose,
    Withdraw,
)
from workflows.rules.errors import Refusal
from workflows.rules.payment import PaymentStatus

S = PaymentStatus


async def for_order(till: Till) -> Pay:
    return till.pay(
        purpose=Purpose.ORDER,
        subscription_id=await subscription(till.database.owner, till.organization),
        manual_capture=True,
    )


async def test_a_top_up_is_money_in_the_wallet_with_a_receipt(till: Till) -> None:
    pay = till.pay()
    first = await run(till.payments.charge, Charge(pay=pay, now=NOW))
    assert first.outcome.status is S.SUCCEEDED
    assert await till.balances() == (1500, 0)
    (mail,) = await till.mails("top_up_receipt")
    assert mail["context"]["amount"] == {"amount_minor": 1500, "currency": "USD"}
    assert mail["context"]["balance"] == {"amount_minor": 1500, "currency": "USD"}
    assert mail["business_at"] == NOW
    (posted,) = await till.rows("SELECT * FROM ledger_transactions")
    assert (posted["kind"], posted["effect_minor"], posted["at"]) == ("top_up", 1500, NOW)


@pytest.mark.scenario("B23")
async def test_the_activity_again_after_its_answer_was_lost_changes_nothing(till: Till) -> None:
    await subscription(till.database.owner, till.organization, status="past_due", behind=timedelta(days=1))
    pay = till.pay()
    first = await run(till.payments.charge, Charge(pay=pay, now=NOW))
    assert await run(till.payments.charge, Charge(pay=pay, now=LATER)) == first
    assert await till.balances() == (1500, 0)
    assert len(till.charges(pay)) == 1
    assert len(await till.mails("top_up_receipt")) == 1


@pytest.mark.scenario("B23")
@pytest.mark.parametrize("kind", ["lost_reply", "server_error", "reset"])
async def test_a_crash_between_the_gateway_and_our_commit_charges_once(till: Till, kind: str) -> None:
    pay = till.pay()
    till.fault(kind)
    with pytest.raises(Unavailable):
        await run(till.payments.charge, Charge(pay=pay, now=NOW))
    assert (await till.payment(pay.payment_id))["status"] == "pending", "recorded before the gateway heard of it"
    assert await till.balances() == (0, 0)
    progress = await run(till.payments.charge, Charge(pay=pay, now=LATER))
    assert progress.outcome.status is S.SUCCEEDED
    assert await till.balances() == (1500, 0)
    assert len(till.charges(pay)) == 1


@pytest.mark.scenario("B22")
async def test_unknown_is_resolved_by_asking_the_gateway(till: Till) -> None:
    pay = till.pay()
    till.fault("lost_reply")
    with pytest.raises(Unavailable):
        await run(till.payments.charge, Charge(pay=pay, now=NOW))
    lost = await run(till.payments.lose_sight, Charge(pay=pay, now=LATER))
    assert lost.outcome.status is S.UNKNOWN
    found = await run(till.payments.inquire, Inquire(pay=pay, abandoned=False, now=LATER))
    assert found.outcome.status is S.SUCCEEDED
    assert await till.balances() == (1500, 0)
    assert len(till.charges(pay)) == 1


@pytest.mark.scenario("B22")
async def test_unknown_that_never_reached_the_gateway_is_asked_again_with_its_key(till: Till) -> None:
    pay = till.pay()
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    again = await run(till.payments.inquire, Inquire(pay=pay, abandoned=False, now=LATER))
    assert again.outcome.status is S.SUCCEEDED
    assert len(till.charges(pay)) == 1


@pytest.mark.scenario("B22")
async def test_after_the_gateway_forgot_the_key_nothing_is_charged_blindly(till: Till) -> None:
    pay = till.pay()
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    await till.rows("UPDATE payments SET requested_at = now() - interval '23 hours 1 minute' RETURNING id")
    over = await run(till.payments.inquire, Inquire(pay=pay, abandoned=False, now=LATER))
    assert (over.outcome.status, over.outcome.decline_code) == (S.FAILED, "never_reached_gateway")
    assert till.charges(pay) == []


async def test_an_abandoned_payment_that_never_reached_the_gateway_is_cancelled(till: Till) -> None:
    pay = await for_order(till)
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    over = await run(till.payments.inquire, Inquire(pay=pay, abandoned=True, now=LATER))
    assert over.outcome.status is S.CANCELLED
    assert till.charges(pay) == []


async def test_a_decline_says_why_and_moves_no_money(till: Till) -> None:
    pay = till.pay(token="pm_card_chargeDeclinedLostCard")
    progress = await run(till.payments.charge, Charge(pay=pay, now=NOW))
    assert (progress.outcome.status, progress.outcome.decline_code) == (S.FAILED, "lost_card")
    assert await till.balances() == (0, 0)
    assert await till.mails("top_up_receipt") == []


@pytest.mark.scenario("B24")
async def test_resubmitting_while_the_customer_authenticates_is_one_payment(till: Till) -> None:
    pay = till.pay(token="pm_card_threeDSecure2Required")
    first = await run(till.payments.charge, Charge(pay=pay, now=NOW))
    assert first.outcome.status is S.PENDING
    assert first.outcome.redirect_url
    assert await run(till.payments.charge, Charge(pay=pay, now=LATER)) == first
    references = await till.rows("SELECT gateway_reference FROM payments")
    assert len(references) == 1


async def test_a_payment_that_was_not_completed_in_time_expires(till: Till) -> None:
    pay = till.pay(token="pm_card_threeDSecure2Required")
    await run(till.payments.charge, Charge(pay=pay, now=NOW))
    over = await run(till.payments.withdraw, Withdraw(payment_id=pay.payment_id, ends_as=S.EXPIRED, now=LATER))
    assert over.outcome.status is S.EXPIRED
    assert over.outcome.redirect_url is None


async def test_what_was_authorised_is_captured_into_held(till: Till) -> None:
    pay = await for_order(till)
    held = await run(till.payments.charge, Charge(pay=pay, now=NOW))
    assert held.outcome.status is S.AUTHORIZED
    assert await till.balances() == (0, 0)
    for _ in range(2):
        taken = await run(till.payments.capture, Capture(payment_id=pay.payment_id, now=LATER))
        assert taken.outcome.status is S.SUCCEEDED
    assert await till.balances() == (0, 1500)
    assert [charge["captured"] for charge in till.charges(pay)] == [True]


@pytest.mark.scenario("B18")
async def test_what_was_authorised_is_let_go_once(till: Till) -> None:
    pay = await for_order(till)
    await run(till.payments.charge, Charge(pay=pay, now=NOW))
    for _ in range(2):
        gone = await run(till.payments.withdraw, Withdraw(payment_id=pay.payment_id, ends_as=S.CANCELLED, now=LATER))
        assert gone.outcome.status is S.CANCELLED
    assert await till.balances() == (0, 0)
    assert [charge["captured"] for charge in till.charges(pay)] == [False]
    late = await run(till.payments.capture, Capture(payment_id=pay.payment_id, now=LATER))
    assert late.outcome.status is S.CANCELLED


async def test_a_lapsed_authorisation_is_a_card_that_did_not_pay(till: Till) -> None:
    pay = await for_order(till)
    await run(till.payments.charge, Charge(pay=pay, now=NOW))
    reference = (await till.payment(pay.payment_id))["gateway_reference"]
    await till.payments._gateways["stripe"].cancel(reference, key=f"{pay.payment_id}:lapse")
    progress = await run(till.payments.capture, Capture(payment_id=pay.payment_id, now=LATER))
    assert (progress.outcome.status, progress.outcome.decline_code) == (S.FAILED, "authorization_expired")


@pytest.mark.scenario("B19", "B20")
async def test_the_same_fact_many_times_at_once_is_one_credit(till: Till) -> None:
    pay = till.pay()
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    hear = await till.said(pay, S.SUCCEEDED)
    heard = await asyncio.gather(*(run(till.payments.hear, hear) for _ in range(6)))
    assert {progress.outcome.status for progress in heard} == {S.SUCCEEDED}
    assert await till.balances() == (1500, 0)
    assert len(await till.mails("top_up_receipt")) == 1


@pytest.mark.scenario("B20")
async def test_a_webhook_before_our_commit_is_applied_once(till: Till) -> None:
    pay = till.pay()
    till.fault("lost_reply")
    with pytest.raises(Unavailable):
        await run(till.payments.charge, Charge(pay=pay, now=NOW))
    found = await till.payments._gateways["stripe"].find(
        pay.payment_id, (await till.rows("SELECT reference FROM gateway_customers"))[0]["reference"]
    )
    assert found is not None
    event = GatewayEvent(
        event_id="evt_early", gateway="stripe", reference=found.reference, status=S.SUCCEEDED, amount=pay.amount
    )
    await run(till.payments.hear, Hear(payment_id=pay.payment_id, event=event, abandoned=False, now=LATER))
    assert await till.balances() == (1500, 0)
    assert (await run(till.payments.charge, Charge(pay=pay, now=LATER))).outcome.status is S.SUCCEEDED
    assert await till.balances() == (1500, 0)


@pytest.mark.scenario("B21")
@pytest.mark.parametrize("order", [(S.SUCCEEDED, S.FAILED), (S.FAILED, S.SUCCEEDED)])
async def test_failed_and_succeeded_in_either_order_are_paid(
    till: Till, order: tuple[PaymentStatus, PaymentStatus]
) -> None:
    pay = till.pay()
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    await run(till.payments.hear, await till.said(pay, order[0], number=1))
    progress = await run(till.payments.hear, await till.said(pay, order[1], number=2))
    assert progress.outcome.status is S.SUCCEEDED
    assert await till.balances() == (1500, 0)


@pytest.mark.scenario("B27")
@pytest.mark.parametrize("ended", [S.CANCELLED, S.EXPIRED, S.FAILED])
async def test_money_after_the_end_is_credit_once_and_nothing_is_revived(till: Till, ended: PaymentStatus) -> None:
    older = await subscription(till.database.owner, till.organization, status="suspended", behind=timedelta(days=9))
    newer = await subscription(till.database.owner, till.organization, status="past_due", behind=timedelta(days=1))
    pay = await for_order(till)
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    await run(till.payments.hear, await till.said(pay, ended))
    late = await run(till.payments.hear, await till.said(pay, S.SUCCEEDED, number=2), run_id="run-2")
    assert late.late
    assert late.indebted == [older, newer]
    again = await run(till.payments.hear, await till.said(pay, S.SUCCEEDED, number=3), run_id="run-3")
    assert again.indebted == [], "only the run that saw the money tells of it"
    assert await till.balances() == (1500, 0)
    statuses = await till.rows("SELECT status FROM subscriptions WHERE id = :id", id=pay.subscription_id)
    assert statuses == [{"status": "active"}], "a payment touches no subscription"


async def test_an_authorisation_that_nobody_wants_any_more_is_reported_as_stray(till: Till) -> None:
    pay = await for_order(till)
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    await run(till.payments.hear, await till.said(pay, S.CANCELLED))
    stray = await run(till.payments.hear, await till.said(pay, S.AUTHORIZED, number=2))
    assert stray.stray
    assert stray.outcome.status is S.CANCELLED


async def test_one_payment_of_an_invoice_is_in_flight(till: Till) -> None:
    owed = await subscription(till.database.owner, till.organization)
    first = till.pay(purpose=Purpose.INVOICE, invoice_id="inv_1", subscription_id=owed)
    await run(till.payments.lose_sight, Charge(pay=first, now=NOW))
    second = till.pay(purpose=Purpose.INVOICE, invoice_id="inv_1", subscription_id=owed)
    with pytest.raises(ApplicationError) as refused:
        await run(till.payments.charge, Charge(pay=second, now=NOW))
    assert refused.value.type == Refusal.CONFLICT
    assert till.charges(second) == []
    await run(till.payments.hear, await till.said(first, S.FAILED))
    assert (await run(till.payments.charge, Charge(pay=second, now=LATER))).outcome.status is S.SUCCEEDED
    assert await till.balances() == (0, 1500)
