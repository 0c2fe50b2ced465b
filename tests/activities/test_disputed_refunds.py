"""Refunds of payments that the customer disputes at the bank: the bank pays the customer, nothing else does as well."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import httpx
import pytest
from temporalio.exceptions import ApplicationError

from activities.gateways.protocol import GatewayUnavailable
from activities.gateways.stripe import may_take_money_back
from tests.activities.test_payments_refunds import order, paid, paid_invoice, refund
from tests.activities.test_rejected_refunds import DAYS_LATER, recheck
from tests.support.inserts import insert_organization
from tests.support.payment_fixture import PaymentFixture, run_activity
from workflows.ports.payments import PaymentInput
from workflows.ports.refunds import RecheckRefund, RefundDestination, ReserveRefund, SendRefund
from workflows.rules.errors import ErrorCode


def dispute(payments: PaymentFixture, pay: PaymentInput, status: str = "needs_response") -> None:
    """Open a dispute of the payment's charge at the gateway, or bring it to this status."""
    (charge,) = payments.charges(pay)
    body = {"charge": charge["id"], "status": status}
    httpx.post(f"{payments.stripe.url}/sandbox/disputes", json=body).raise_for_status()


@pytest.mark.parametrize(
    ("status", "is_taken"),
    [
        ("needs_response", True),
        ("under_review", True),
        ("lost", True),
        ("prevented", True),
        ("appeal_needs_response", True),
        ("appeal_under_review", True),
        ("a_status_of_the_future", True),
        ("warning_needs_response", True),
        ("warning_under_review", True),
        ("warning_closed", False),
        ("won", False),
    ],
)
def test_only_a_closed_inquiry_and_a_dispute_that_was_won_leave_the_money_with_the_platform(
    status: str, is_taken: bool
) -> None:
    assert may_take_money_back(status) is is_taken


@pytest.mark.parametrize("status", ["needs_response", "under_review", "lost"])
async def test_a_disputed_payment_is_not_refunded_to_the_wallet(payments: PaymentFixture, status: str) -> None:
    pay = await paid_invoice(payments)
    dispute(payments, pay, status)
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, order(payments, pay, 4_000, RefundDestination.WALLET))
    assert (refused.value.type, refused.value.non_retryable) == (ErrorCode.CONFLICT, True)
    assert refused.value.details[0]["gateway_code"] == "charge_disputed"
    assert await payments.balances() == (0, 0)
    assert await payments.rows("SELECT 1 FROM refunds") == []
    assert (await payments.payment(pay.payment_id))["refunded_minor"] == 0


async def test_another_organization_does_not_learn_of_a_dispute(payments: PaymentFixture) -> None:
    pay = await paid_invoice(payments)
    dispute(payments, pay)
    stranger = await insert_organization(payments.database.owner)
    request = replace(order(payments, pay, None, RefundDestination.WALLET), organization_id=stranger)
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, request)
    assert refused.value.type == ErrorCode.NOT_FOUND


async def test_a_payment_whose_dispute_was_won_is_refunded_to_the_wallet(payments: PaymentFixture) -> None:
    pay = await paid_invoice(payments)
    dispute(payments, pay)
    dispute(payments, pay, "won")
    assert (await refund(payments, order(payments, pay, None, RefundDestination.WALLET))).status == "succeeded"
    assert await payments.balances() == (10_000, 0)


async def test_a_refund_to_the_wallet_waits_until_the_gateway_says_whether_the_payment_is_disputed(
    payments: PaymentFixture,
) -> None:
    request = order(payments, await paid_invoice(payments), None, RefundDestination.WALLET)
    payments.inject_fault("server_error", path="/v1/disputes", method="GET", count=2)
    reserve = ReserveRefund(command=request, now=DAYS_LATER)
    for _ in range(2):
        with pytest.raises(GatewayUnavailable):
            await run_activity(payments.refund_activities.reserve, reserve)
    assert await payments.balances() == (0, 0)
    assert (await run_activity(payments.refund_activities.reserve, reserve)).status == "succeeded"
    # What is recorded is returned without another question.
    payments.inject_fault("server_error", path="/v1/disputes", method="GET", count=1)
    assert (await run_activity(payments.refund_activities.reserve, reserve)).status == "succeeded"
    assert await payments.balances() == (10_000, 0)


async def test_a_disputed_payment_is_not_paid_out_manually_either(payments: PaymentFixture) -> None:
    pay = await paid(payments)
    dispute(payments, pay)
    outcome = await refund(payments, order(payments, pay, None))
    assert (outcome.status, outcome.failure_code) == ("failed", "charge_disputed")
    assert await payments.balances() == (10_000, 0)
    (alert,) = await payments.notifications("operator_alert")
    details = alert["template_context"]["details"]
    assert "contest the dispute" in details
    assert "Pay the amount out manually" not in details
    assert "refund it to the wallet" not in details


@pytest.mark.parametrize(
    ("failure_reason", "is_disputed", "is_paid_manually"),
    [
        ("charge_for_pending_refund_disputed", True, False),
        ("charge_for_pending_refund_disputed", False, False),
        ("expired_or_canceled_card", True, False),
        ("expired_or_canceled_card", False, True),
    ],
)
async def test_a_pending_refund_that_fails_is_not_paid_out_manually_while_the_payment_is_disputed(
    payments: PaymentFixture, failure_reason: str, is_disputed: bool, is_paid_manually: bool
) -> None:
    pay = await paid(payments, token="pm_card_pendingRefund")
    request = order(payments, pay, None)
    assert (await refund(payments, request)).status == "pending"
    if is_disputed:
        dispute(payments, pay)
    payments.fail_refund(payments.refunds_at_gateway(pay)[0]["id"], failure_reason)
    command = SendRefund(refund_id=request.refund_id, now=DAYS_LATER)
    outcome = await run_activity(payments.refund_activities.send, command)
    assert (outcome.status, outcome.failure_code) == ("failed", failure_reason)
    assert await payments.balances() == (10_000, 0)
    (alert,) = await payments.notifications("operator_alert")
    details = alert["template_context"]["details"]
    assert ("Pay the amount out manually" in details) is is_paid_manually
    assert ("contest the dispute" in details) is not is_paid_manually


async def test_a_rejected_refund_of_a_payment_that_is_disputed_meanwhile_is_not_credited(
    payments: PaymentFixture,
) -> None:
    pay = await paid_invoice(payments)
    request = order(payments, pay, 4_000)
    assert (await refund(payments, request)).status == "succeeded"
    dispute(payments, pay)
    payments.fail_refund(payments.refunds_at_gateway(pay)[0]["id"])
    for days in range(2):
        command = RecheckRefund(refund_id=request.refund_id, now=DAYS_LATER + timedelta(days=days))
        assert (await run_activity(payments.refund_activities.recheck, command)).status == "succeeded"
    assert await payments.balances() == (0, 0)
    assert await payments.notifications("refund_failed") == []
    (alert,) = await payments.notifications("operator_alert")
    assert request.refund_id in alert["template_context"]["title"]
    assert "nothing was credited" in alert["template_context"]["details"]
    dispute(payments, pay, "won")
    assert (await recheck(payments, request.refund_id)).status == "failed"
    assert await payments.balances() == (4_000, 0)


async def test_a_rejected_refund_waits_until_the_gateway_says_whether_the_payment_is_disputed(
    payments: PaymentFixture,
) -> None:
    pay = await paid_invoice(payments)
    request = order(payments, pay, 4_000)
    await refund(payments, request)
    payments.fail_refund(payments.refunds_at_gateway(pay)[0]["id"])
    payments.inject_fault("server_error", path="/v1/disputes", method="GET")
    with pytest.raises(GatewayUnavailable):
        await recheck(payments, request.refund_id)
    assert await payments.balances() == (0, 0)
    assert (await recheck(payments, request.refund_id)).status == "failed"
    assert await payments.balances() == (4_000, 0)
