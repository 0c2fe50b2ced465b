"""Refunds that the bank rejects after the gateway has sent them, on a real database and the card gateway's sandbox."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest
from sqlalchemy import text
from temporalio.exceptions import ApplicationError

from activities.gateways.protocol import GatewayUnavailable
from activities.refunds import GatewayRefundActivities
from tests.activities.test_payments_refunds import order, paid, paid_invoice, post, refund
from tests.support.payment_fixture import FIVE_MINUTES_LATER, PaymentFixture, money, run_activity
from workflows.ports.payments import PaymentInput
from workflows.ports.refunds import RecheckRefund, RefundDestination, RefundOutcome, ReserveRefund, SendRefund
from workflows.rules.errors import ErrorCode
from workflows.rules.ledger import hold_transaction
from workflows.rules.money import zero_money

DAYS_LATER = FIVE_MINUTES_LATER + timedelta(days=3)


async def recheck(payments: PaymentFixture, refund_id: str) -> RefundOutcome:
    return await run_activity(
        payments.refund_activities.recheck, RecheckRefund(refund_id=refund_id, now=DAYS_LATER), run_id="run-2"
    )


async def rejected(payments: PaymentFixture, pay: PaymentInput, amount: int | None) -> str:
    """Refund to the card, let the bank reject it, and recheck it; return the refund's id."""
    request = order(payments, pay, amount)
    assert (await refund(payments, request)).status == "succeeded"
    payments.fail_refund(payments.refunds_at_gateway(pay)[-1]["id"])
    assert (await recheck(payments, request.refund_id)).status == "failed"
    return request.refund_id


async def row(payments: PaymentFixture, refund_id: str) -> dict[str, Any]:
    (stored,) = await payments.rows("SELECT * FROM refunds WHERE id = :id", id=refund_id)
    return stored


@pytest.mark.scenario("B35")
async def test_a_refund_of_an_invoice_that_the_bank_rejects_is_in_the_wallet_once(payments: PaymentFixture) -> None:
    pay = await paid_invoice(payments)
    refund_id = await rejected(payments, pay, 4_000)
    for _ in range(2):
        assert (await recheck(payments, refund_id)).status == "failed"
    assert await payments.balances() == (4_000, 0)
    stored = await row(payments, refund_id)
    assert (stored["status"], stored["failure_code"], stored["updated_at"]) == (
        "failed", "lost_or_stolen_card", DAYS_LATER,
    )  # fmt: skip
    payment = await payments.payment(pay.payment_id)
    assert (payment["status"], payment["refunded_minor"]) == ("succeeded", 0)
    # The invoice stays refunded: what was owed is in the wallet.
    (invoice,) = await payments.rows("SELECT status, refunded_minor, amount_due_minor FROM invoices")
    assert (invoice["status"], invoice["refunded_minor"], invoice["amount_due_minor"]) == ("paid", 4_000, 0)
    assert [charge["refunded"] for charge in payments.charges(pay)] == [0]
    (clearing,) = await payments.rows(
        "SELECT sum(amount_minor)::int AS balance FROM ledger_entries WHERE account = 'clearing:stripe'"
    )
    assert clearing["balance"] == -10_000, "the gateway has all of the payment"


@pytest.mark.scenario("B35")
async def test_a_rejected_refund_is_reported_to_the_customer_and_the_operators_once(payments: PaymentFixture) -> None:
    pay = await paid_invoice(payments)
    refund_id = await rejected(payments, pay, None)
    await recheck(payments, refund_id)
    (mail,) = await payments.notifications("refund_failed")
    assert (mail["organization_id"], mail["template_context"]["amount"]["amount_minor"]) == (
        payments.organization, 10_000,
    )  # fmt: skip
    (alert,) = await payments.notifications("operator_alert")
    assert refund_id in alert["template_context"]["title"]
    assert "lost_or_stolen_card" in alert["template_context"]["details"]
    events = await payments.rows("SELECT kind, message FROM timeline_events WHERE reference_id = :id", id=refund_id)
    assert {event["kind"] for event in events} == {"refund.succeeded", "refund.failed"}
    assert any("wallet" in event["message"] for event in events if event["kind"] == "refund.failed")
    audited = await payments.rows("SELECT action, before, after FROM audit_log ORDER BY id")
    assert [entry["action"] for entry in audited] == [
        "billing.refund_created", "billing.refund_succeeded", "billing.refund_failed",
    ]  # fmt: skip
    before, after = audited[-1]["before"], audited[-1]["after"]
    assert (before["status"], before["payment_status"], before["refunded_minor"]) == ("succeeded", "refunded", 10_000)
    assert (after["status"], after["payment_status"], after["refunded_minor"]) == ("failed", "succeeded", 0)
    assert after["failure_code"] == "lost_or_stolen_card"


@pytest.mark.scenario("B35")
async def test_a_top_up_whose_refund_the_bank_rejects_can_be_refunded_again(payments: PaymentFixture) -> None:
    pay = await paid(payments)
    assert (await refund(payments, order(payments, pay, 1_000))).status == "succeeded"
    await rejected(payments, pay, 4_000)
    assert await payments.balances() == (9_000, 0)
    payment = await payments.payment(pay.payment_id)
    assert (payment["status"], payment["refunded_minor"]) == ("partially_refunded", 1_000)
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, order(payments, pay, 4_000, RefundDestination.WALLET))
    assert refused.value.type == ErrorCode.CONFLICT
    assert (await refund(payments, order(payments, pay, None))).status == "succeeded"
    assert await payments.balances() == (0, 0)
    assert (await payments.payment(pay.payment_id))["status"] == "refunded"
    assert [charge["refunded"] for charge in payments.charges(pay)] == [10_000]


async def test_the_money_of_an_invoice_that_came_back_is_refunded_from_the_wallet(payments: PaymentFixture) -> None:
    pay = await paid_invoice(payments)
    await rejected(payments, pay, 4_000)
    assert (await refund(payments, order(payments, pay, None))).status == "succeeded"
    assert await payments.balances() == (0, 0)
    assert [charge["refunded"] for charge in payments.charges(pay)] == [10_000]
    (invoice,) = await payments.rows("SELECT refunded_minor FROM invoices")
    assert invoice["refunded_minor"] == 10_000


@pytest.mark.scenario("B35")
async def test_a_rejected_refund_of_an_invoice_that_is_made_again_takes_what_the_wallet_received(
    payments: PaymentFixture,
) -> None:
    pay = await paid_invoice(payments)
    await rejected(payments, pay, 4_000)
    assert (await refund(payments, order(payments, pay, 4_000))).status == "succeeded"
    assert await payments.balances() == (0, 0)
    (invoice,) = await payments.rows("SELECT refunded_minor FROM invoices")
    assert invoice["refunded_minor"] == 4_000
    assert [charge["refunded"] for charge in payments.charges(pay)] == [4_000]
    assert (await refund(payments, order(payments, pay, 1_000))).status == "succeeded"
    (invoice,) = await payments.rows("SELECT refunded_minor FROM invoices")
    assert invoice["refunded_minor"] == 5_000


async def test_a_rejected_refund_that_was_spent_is_not_given_back_from_the_invoice(payments: PaymentFixture) -> None:
    pay = await paid_invoice(payments)
    await rejected(payments, pay, 4_000)
    await post(payments, hold_transaction(promotional=zero_money("USD"), wallet=money(4_000)), "spent")
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, order(payments, pay, 4_000))
    assert refused.value.type == ErrorCode.INSUFFICIENT_FUNDS
    assert [charge["refunded"] for charge in payments.charges(pay)] == [0]
    # More of the invoice than that can be given back to the wallet.
    assert (await refund(payments, order(payments, pay, 1_000, RefundDestination.WALLET))).status == "succeeded"
    (invoice,) = await payments.rows("SELECT refunded_minor FROM invoices")
    assert (invoice["refunded_minor"], await payments.balances()) == (5_000, (1_000, 4_000))


async def test_rechecks_at_the_same_time_credit_once(payments: PaymentFixture) -> None:
    pay = await paid_invoice(payments)
    request = order(payments, pay, None)
    await refund(payments, request)
    payments.fail_refund(payments.refunds_at_gateway(pay)[0]["id"])
    outcomes = await asyncio.gather(*(recheck(payments, request.refund_id) for _ in range(4)))
    assert {outcome.status for outcome in outcomes} == {"failed"}
    assert await payments.balances() == (10_000, 0)


async def test_a_refund_that_the_gateway_still_calls_sent_stays(payments: PaymentFixture) -> None:
    pay = await paid_invoice(payments)
    request = order(payments, pay, None)
    await refund(payments, request)
    assert (await recheck(payments, request.refund_id)).status == "succeeded"
    assert await payments.balances() == (0, 0)
    assert await payments.notifications("refund_failed") == []


async def test_what_went_to_the_wallet_and_what_is_pending_is_not_rechecked(payments: PaymentFixture) -> None:
    to_wallet = order(payments, await paid_invoice(payments), None, RefundDestination.WALLET)
    assert (await refund(payments, to_wallet)).status == "succeeded"
    assert (await recheck(payments, to_wallet.refund_id)).status == "succeeded"
    pending = order(payments, await paid(payments, token="pm_card_pendingRefund"), None)
    assert (await refund(payments, pending)).status == "pending"
    assert (await recheck(payments, pending.refund_id)).status == "pending"
    assert await payments.balances() == (10_000, 10_000)


async def test_a_gateway_that_does_not_answer_or_does_not_know_the_refund_has_not_rejected_it(
    payments: PaymentFixture,
) -> None:
    pay = await paid_invoice(payments)
    request = order(payments, pay, None)
    await refund(payments, request)
    payments.fail_refund(payments.refunds_at_gateway(pay)[0]["id"])
    payments.inject_fault("server_error", path="/v1/refunds/*", method="GET")
    with pytest.raises(GatewayUnavailable):
        await recheck(payments, request.refund_id)
    without_gateway = GatewayRefundActivities(payments.sessions, {})
    command = RecheckRefund(refund_id=request.refund_id, now=DAYS_LATER)
    assert (await run_activity(without_gateway.recheck, command)).status == "succeeded"
    assert await payments.balances() == (0, 0)
    assert (await recheck(payments, request.refund_id)).status == "failed"
    other = order(payments, await paid(payments), 1_000)
    await refund(payments, other)
    async with payments.database.owner.begin() as connection:
        # As with the API key of another account.
        await connection.execute(text("ALTER TABLE refunds DISABLE TRIGGER reference_is_final"))
        await connection.execute(
            text("UPDATE refunds SET gateway_reference = 're_unknown' WHERE id = :id"), {"id": other.refund_id}
        )
    assert (await recheck(payments, other.refund_id)).status == "succeeded"


@pytest.mark.scenario("B35")
@pytest.mark.parametrize("order_of_steps", sorted(set(permutations(("send", "reject", "recheck", "recheck")))))
async def test_in_any_order_of_events_the_customer_has_the_amount_once(
    payments: PaymentFixture, order_of_steps: tuple[str, ...]
) -> None:
    """The gateway sends the refund with its first request; its response is lost and repeated by ``send``."""
    pay = await paid(payments)
    request = order(payments, pay, 4_000)
    await run_activity(payments.refund_activities.reserve, ReserveRefund(command=request, now=FIVE_MINUTES_LATER))
    send = SendRefund(refund_id=request.refund_id, now=FIVE_MINUTES_LATER)
    payments.inject_fault("lost_reply", path="/v1/refunds")
    with pytest.raises(GatewayUnavailable):
        await run_activity(payments.refund_activities.send, send)
    for step in order_of_steps:
        if step == "send":
            await run_activity(payments.refund_activities.send, send)
        elif step == "reject":
            payments.fail_refund(payments.refunds_at_gateway(pay)[0]["id"])
        else:
            await recheck(payments, request.refund_id)
    # The workflow rechecks after the send each event that came before.
    outcome = await recheck(payments, request.refund_id)
    assert outcome.status == "failed"
    assert await payments.balances() == (10_000, 0)
    assert [charge["refunded"] for charge in payments.charges(pay)] == [0]
    assert len(await payments.notifications("refund_failed")) == 1
