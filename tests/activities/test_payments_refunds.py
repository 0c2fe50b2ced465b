"""Refunds on a real database and the card gateway's sandbox."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from temporalio.exceptions import ApplicationError

from activities.gateways.protocol import GatewayRefund, GatewayRejected, GatewayUnavailable
from activities.gateways.stripe import StripeGateway
from activities.refunds import GatewayRefundActivities
from db.queries import invoices, ledger
from db.queries.change_set import ChangeSet
from tests.support.inserts import NOW, insert_organization
from tests.support.payment_fixture import FIVE_MINUTES_LATER, PaymentFixture, money, run_activity
from tests.support.temporal import TemporalFixture
from workflows.ports.payments import ChargePayment, PaymentInput
from workflows.ports.refunds import RefundDestination, RefundInput, RefundOutcome, ReserveRefund, SendRefund
from workflows.rules import ledger as rules
from workflows.rules.allocations import AllocationSource, SourcePart
from workflows.rules.errors import ErrorCode
from workflows.rules.money import Money, zero_money


async def paid(payments: PaymentFixture, amount: int = 10_000, token: str = "pm_card_visa") -> PaymentInput:
    pay = payments.payment_input(amount, gateway_token=token)
    await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    return pay


async def paid_invoice(payments: PaymentFixture, amount: int = 10_000) -> PaymentInput:
    """A card paid an invoice, and the invoice took the money."""
    pay = await payments.invoice_payment_input(amount)
    assert pay.invoice_id is not None
    assert pay.subscription_id is not None
    await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    zero = zero_money("USD")
    paid = rules.paid_invoice_transaction(promotional=zero, wallet=zero, held=money(amount), tax=zero)
    async with payments.sessions.begin() as session:
        await invoices.mark_paid(session, pay.invoice_id, NOW, None)
        changes = ChangeSet(
            organization_id=payments.organization,
            subscription_id=pay.subscription_id,
            occurred_at=NOW,
            keyed_at=NOW,
            actor="platform",
            run_id="run",
        )
        transaction_id = changes.add_ledger_transaction(paid, key="invoice", description="invoice", ref=pay.invoice_id)
        part = SourcePart(source=AllocationSource.PAYMENT, amount=money(amount), payment_id=pay.payment_id)
        changes.allocate(pay.invoice_id, [part], transaction_id=transaction_id)
        await changes.write(session)
    return pay


async def post(payments: PaymentFixture, posting: rules.LedgerTransaction, key: str) -> None:
    async with payments.sessions.begin() as session:
        await ledger.post_transaction(
            session,
            posting,
            transaction_id=f"tx_{key}",
            organization_id=payments.organization,
            at=NOW,
            ref=None,
            description=key,
            idempotency_key=key,
        )


def order(
    payments: PaymentFixture, pay: PaymentInput, amount: int | None, to: RefundDestination = RefundDestination.SOURCE
) -> RefundInput:
    return RefundInput(
        refund_id=TemporalFixture.unique_id("re"),
        payment_id=pay.payment_id,
        organization_id=payments.organization,
        amount=money(amount) if amount is not None else None,
        destination=to,
        reason="goodwill",
        actor="usr_admin",
    )


async def refund(payments: PaymentFixture, request: RefundInput) -> RefundOutcome:
    reserved = await run_activity(
        payments.refund_activities.reserve, ReserveRefund(command=request, now=FIVE_MINUTES_LATER)
    )
    if reserved.status != "pending":
        return reserved
    return await run_activity(
        payments.refund_activities.send, SendRefund(refund_id=request.refund_id, now=FIVE_MINUTES_LATER)
    )


@pytest.mark.scenario("S1")
async def test_a_payment_of_another_organisation_is_not_refunded(payments: PaymentFixture) -> None:
    pay = await paid(payments)
    other = await insert_organization(payments.database.owner)
    wallet = await payments.balances()
    for to in RefundDestination:
        request = replace(order(payments, pay, 4_000, to), organization_id=other)
        with pytest.raises(ApplicationError) as refused:
            await run_activity(
                payments.refund_activities.reserve, ReserveRefund(command=request, now=FIVE_MINUTES_LATER)
            )
        assert refused.value.type == ErrorCode.NOT_FOUND
    assert await payments.rows("SELECT id FROM refunds") == []
    assert (await payments.payment(pay.payment_id))["refunded_minor"] == 0
    assert await payments.balances() == wallet
    assert await payments.rows("SELECT id FROM ledger_accounts WHERE organization_id = :id", id=other) == []


@pytest.mark.scenario("B34")
async def test_after_forty_of_a_hundred_one_of_two_sixties_succeeds(payments: PaymentFixture) -> None:
    pay = await paid_invoice(payments)
    assert (await refund(payments, order(payments, pay, 4_000))).status == "succeeded"
    assert (await payments.payment(pay.payment_id))["status"] == "partially_refunded"
    results = await asyncio.gather(
        *(refund(payments, order(payments, pay, 6_000)) for _ in range(2)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, ApplicationError)]
    assert [violation.type for violation in refused] == [ErrorCode.REFUND_EXCEEDS_PAYMENT]
    assert [result.status for result in results if isinstance(result, RefundOutcome)] == ["succeeded"]
    row = await payments.payment(pay.payment_id)
    assert (row["status"], row["refunded_minor"]) == ("refunded", 10_000)
    assert [charge["refunded"] for charge in payments.charges(pay)] == [10_000]
    assert await payments.balances() == (0, 0)
    mails = await payments.notifications("refund_succeeded")
    assert [mail["template_context"]["reason"] for mail in mails] == ["goodwill"] * 2
    events = await payments.rows("SELECT kind FROM timeline_events WHERE kind = 'refund.succeeded'")
    assert len(events) == 2


@pytest.mark.scenario("B35")
async def test_the_same_refund_again_is_the_same_refund(payments: PaymentFixture) -> None:
    pay = await paid(payments)
    request = order(payments, pay, 4_000)
    await run_activity(payments.refund_activities.reserve, ReserveRefund(command=request, now=FIVE_MINUTES_LATER))
    assert await payments.balances() == (6_000, 4_000), "what is on its way back cannot be spent"
    payments.inject_fault("lost_reply")
    with pytest.raises(GatewayUnavailable):
        await run_activity(
            payments.refund_activities.send, SendRefund(refund_id=request.refund_id, now=FIVE_MINUTES_LATER)
        )
    for _ in range(2):
        repeated = await refund(payments, request)
        assert (repeated.status, repeated.amount) == ("succeeded", money(4_000))
    assert [charge["refunded"] for charge in payments.charges(pay)] == [4_000]
    assert await payments.balances() == (6_000, 0)
    (transaction,) = await payments.rows("SELECT customer_delta_minor FROM ledger_transactions WHERE kind = 'refund'")
    assert transaction["customer_delta_minor"] == -4_000


class ForgetfulStripeGateway(StripeGateway):
    """Stripe a day later: no request is the repetition of an earlier one."""

    async def refund(self, reference: str, amount: Money, *, refund_id: str, key: str) -> GatewayRefund:
        return await super().refund(reference, amount, refund_id=refund_id, key=TemporalFixture.unique_id(key))


@pytest.mark.scenario("B35")
@pytest.mark.parametrize(
    ("fault", "gateway_requested_at"),
    [
        ("lost_reply", "now() - interval '23 hours 1 minute'"),
        ("server_error", "now() - interval '23 hours 1 minute'"),
        # Reserved before the time was recorded.
        ("lost_reply", "NULL"),
    ],
)
async def test_a_refund_is_given_back_once_after_its_gateway_has_forgotten_the_key(
    payments: PaymentFixture, fault: str, gateway_requested_at: str
) -> None:
    pay = await paid(payments)
    assert (await refund(payments, order(payments, pay, 1_000))).status == "succeeded"
    request = order(payments, pay, 4_000)
    await run_activity(payments.refund_activities.reserve, ReserveRefund(command=request, now=FIVE_MINUTES_LATER))
    payments.inject_fault(fault)
    with pytest.raises(GatewayUnavailable):
        await run_activity(
            payments.refund_activities.send, SendRefund(refund_id=request.refund_id, now=FIVE_MINUTES_LATER)
        )
    await payments.rows(f"UPDATE refunds SET gateway_requested_at = {gateway_requested_at} RETURNING id")
    gateway = ForgetfulStripeGateway(api_key=payments.stripe.api_key, base_url=payments.stripe.url)
    refunds = GatewayRefundActivities(payments.sessions, {gateway.name: gateway})
    sent = await run_activity(refunds.send, SendRefund(refund_id=request.refund_id, now=FIVE_MINUTES_LATER))
    await gateway.close()
    assert sent.status == "succeeded"
    assert [charge["refunded"] for charge in payments.charges(pay)] == [5_000]
    assert await payments.balances() == (5_000, 0)


async def test_a_top_up_that_was_spent_is_not_refunded_to_its_source(payments: PaymentFixture) -> None:
    pay = await paid(payments)
    zero = zero_money("USD")
    await post(
        payments,
        rules.paid_invoice_transaction(promotional=zero, wallet=money(7_000), held=zero, tax=zero),
        "spent",
    )
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, order(payments, pay, None))
    assert refused.value.type == ErrorCode.INSUFFICIENT_FUNDS
    assert (await payments.payment(pay.payment_id))["refunded_minor"] == 0
    assert (await refund(payments, order(payments, pay, 3_000))).status == "succeeded"
    assert await payments.balances() == (0, 0)


async def test_a_charge_is_refunded_to_the_wallet_without_its_gateway(payments: PaymentFixture) -> None:
    pay = await paid_invoice(payments)
    done = await run_activity(
        payments.refund_activities.reserve,
        ReserveRefund(command=order(payments, pay, None, RefundDestination.WALLET), now=FIVE_MINUTES_LATER),
    )
    assert (done.status, done.amount) == ("succeeded", money(10_000))
    assert await payments.balances() == (10_000, 0)
    assert [charge["refunded"] for charge in payments.charges(pay)] == [0]


async def test_money_that_is_in_the_wallet_already_is_not_put_there_twice(payments: PaymentFixture) -> None:
    pay = await paid(payments)
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, order(payments, pay, None, RefundDestination.WALLET))
    assert refused.value.type == ErrorCode.CONFLICT
    assert await payments.balances() == (10_000, 0)


async def test_money_that_an_invoice_left_in_the_wallet_is_refunded_from_there(payments: PaymentFixture) -> None:
    pay = await payments.invoice_payment_input(10_000)
    await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    await post(
        payments,
        rules.release_transaction(promotional=zero_money("USD"), wallet=money(10_000)),
        "applied",
    )
    await payments.rows("UPDATE payments SET credited_to_wallet = true WHERE id = :id RETURNING id", id=pay.payment_id)
    assert await payments.balances() == (10_000, 0)
    assert (await refund(payments, order(payments, pay, None))).status == "succeeded"
    assert await payments.balances() == (0, 0)


@pytest.mark.scenario("B34")
async def test_a_refund_of_money_that_waits_for_its_invoice_is_refused(payments: PaymentFixture) -> None:
    pay = await payments.invoice_payment_input(10_000)
    await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, order(payments, pay, None))
    assert refused.value.type == ErrorCode.CONFLICT
    assert await payments.balances() == (0, 10_000)


@pytest.mark.scenario("B34")
@pytest.mark.parametrize("succeeds", [True, False])
async def test_a_refund_is_completed_from_the_sources_that_were_decided_when_it_was_reserved(
    payments: PaymentFixture, succeeds: bool
) -> None:
    pay = await paid_invoice(payments)
    request = order(payments, pay, 4_000)
    await run_activity(payments.refund_activities.reserve, ReserveRefund(command=request, now=FIVE_MINUTES_LATER))
    await payments.rows("UPDATE payments SET credited_to_wallet = true WHERE id = :id RETURNING id", id=pay.payment_id)
    refunds = payments.refund_activities if succeeds else GatewayRefundActivities(payments.sessions, {})
    done = await run_activity(refunds.send, SendRefund(refund_id=request.refund_id, now=FIVE_MINUTES_LATER))
    assert done.status == ("succeeded" if succeeds else "failed")
    assert await payments.balances() == (0, 0)
    (invoice,) = await payments.rows("SELECT refunded_minor FROM invoices")
    assert invoice["refunded_minor"] == (4_000 if succeeds else 0)


@pytest.mark.scenario("B35")
async def test_what_cannot_go_back_stays_and_becomes_a_task(payments: PaymentFixture) -> None:
    pay = await paid(payments)
    reference = (await payments.payment(pay.payment_id))["gateway_reference"]
    by_hand = StripeGateway(api_key=payments.stripe.api_key, base_url=payments.stripe.url)
    await by_hand.refund(reference, money(10_000), refund_id="re_by_hand", key="by_hand")
    await by_hand.close()
    failed = await refund(payments, order(payments, pay, 4_000))
    assert (failed.status, failed.failure_code) == ("failed", "charge_already_refunded")
    assert await payments.balances() == (10_000, 0)
    row = await payments.payment(pay.payment_id)
    assert (row["status"], row["refunded_minor"]) == ("succeeded", 0)
    assert len(await payments.notifications("operator_alert")) == 1


async def test_a_refund_on_its_way_is_pending_until_the_gateway_says_more(payments: PaymentFixture) -> None:
    pay = await paid(payments, token="pm_card_pendingRefund")
    request = order(payments, pay, None)
    assert (await refund(payments, request)).status == "pending"
    assert await payments.balances() == (0, 10_000)
    # The next poll asks the gateway for this refund instead of making another one.
    (row,) = await payments.rows("SELECT gateway_reference FROM refunds")
    assert row["gateway_reference"]


class OtherAccountStripeGateway(StripeGateway):
    """Stripe with the API key of another account, which knows none of the refunds."""

    async def retrieve_refund(self, reference: str) -> GatewayRefund:
        raise GatewayRejected("resource_missing")

    async def find_refund(self, reference: str, refund_id: str) -> GatewayRefund | None:
        raise GatewayRejected("resource_missing")


@pytest.mark.scenario("B35")
@pytest.mark.parametrize("is_reference_known", [True, False])
async def test_a_refund_on_its_way_that_cannot_be_read_is_not_given_back_a_second_time(
    payments: PaymentFixture, is_reference_known: bool
) -> None:
    pay = await paid(payments, token="pm_card_pendingRefund")
    request = order(payments, pay, None)
    if is_reference_known:
        assert (await refund(payments, request)).status == "pending"
    else:
        await run_activity(payments.refund_activities.reserve, ReserveRefund(command=request, now=FIVE_MINUTES_LATER))
        await payments.rows("UPDATE refunds SET gateway_requested_at = now() - interval '2 days' RETURNING id")
    (before,) = await payments.rows("SELECT * FROM refunds")
    gateway = OtherAccountStripeGateway(api_key=payments.stripe.api_key, base_url=payments.stripe.url)
    refunds = GatewayRefundActivities(payments.sessions, {gateway.name: gateway})
    sent = await run_activity(refunds.send, SendRefund(refund_id=request.refund_id, now=FIVE_MINUTES_LATER))
    await gateway.close()
    assert sent.status == "pending"
    assert await payments.balances() == (0, 10_000), "held until the gateway has decided"
    assert await payments.rows("SELECT * FROM refunds") == [before]


@pytest.mark.parametrize(
    ("amount", "code"),
    [(10_001, ErrorCode.REFUND_EXCEEDS_PAYMENT), (-1, ErrorCode.VALIDATION_ERROR), (0, ErrorCode.VALIDATION_ERROR)],
)
async def test_an_impossible_amount_is_refused(payments: PaymentFixture, amount: int, code: ErrorCode) -> None:
    pay = await paid(payments)
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, order(payments, pay, amount))
    assert refused.value.type == code


async def test_an_amount_in_another_currency_is_refused(payments: PaymentFixture) -> None:
    pay = await paid(payments)
    command = replace(order(payments, pay, 1), amount=replace(pay.amount, amount_minor=1, currency="EUR"))
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, command)
    assert refused.value.type == ErrorCode.CURRENCY_MISMATCH


async def test_what_was_not_received_is_not_refunded(payments: PaymentFixture) -> None:
    pay = await paid(payments, token="pm_card_visa_chargeDeclined")
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, order(payments, pay, None))
    assert refused.value.type == ErrorCode.CONFLICT


async def test_a_refund_of_a_payment_that_is_not_captured_yet_may_be_tried_again(payments: PaymentFixture) -> None:
    pay = await payments.invoice_payment_input(10_000)
    await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    with pytest.raises(ApplicationError) as refused:
        await refund(payments, order(payments, pay, None))
    assert refused.value.type == ErrorCode.CONFLICT
    assert refused.value.details[0]["retryable"]


async def test_a_refund_audits_its_order_and_its_outcome_with_the_money(payments: PaymentFixture) -> None:
    audited = "SELECT actor, action, object_id, before, after, reason, request_id FROM audit_log ORDER BY id"
    pay = await paid(payments)
    request = replace(order(payments, pay, 4_000), request_id="req_1")
    assert (await refund(payments, request)).status == "succeeded"
    await refund(payments, request)
    created, succeeded = await payments.rows(audited)
    for row in (created, succeeded):
        assert (row["actor"], row["object_id"], row["reason"], row["request_id"]) == (
            "usr_admin", request.refund_id, "goodwill", "req_1",
        )  # fmt: skip
    assert (created["action"], succeeded["action"]) == ("billing.refund_created", "billing.refund_succeeded")
    assert (succeeded["before"]["status"], succeeded["before"]["payment_status"]) == ("pending", "succeeded")
    assert (succeeded["after"]["status"], succeeded["after"]["payment_status"]) == ("succeeded", "partially_refunded")


async def test_a_refund_that_its_gateway_refuses_audits_the_money_that_came_back(payments: PaymentFixture) -> None:
    pay = await paid(payments)
    request = order(payments, pay, 4_000)
    await run_activity(payments.refund_activities.reserve, ReserveRefund(command=request, now=FIVE_MINUTES_LATER))
    refunds = GatewayRefundActivities(payments.sessions, {})
    assert (
        await run_activity(refunds.send, SendRefund(refund_id=request.refund_id, now=FIVE_MINUTES_LATER))
    ).status == "failed"
    _, failed = await payments.rows("SELECT action, before, after FROM audit_log ORDER BY id")
    assert failed["action"] == "billing.refund_failed"
    assert (failed["before"]["refunded_minor"], failed["after"]["refunded_minor"]) == (4_000, 0)
    assert failed["after"]["failure_code"] == "not_refundable"
    assert await payments.balances() == (10_000, 0)
