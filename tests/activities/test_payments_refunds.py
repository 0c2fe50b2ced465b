"""Refunds on a real database and the card gateway's sandbox."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.exceptions import ApplicationError

from activities.gateways.base import Unavailable
from db.queries import ledger
from tests.support.accounts import NOW, subscription
from tests.support.money import LATER, Till, money, run
from tests.support.temporal import Temporal
from workflows.ports.payments import Charge, GiveBack, Pay, Purpose, RefundOrder, RefundOutcome, RefundTo, Reserve
from workflows.rules import ledger as rules
from workflows.rules.errors import Refusal
from workflows.rules.money import zero


async def paid(till: Till, amount: int = 10_000, token: str = "pm_card_visa") -> Pay:
    pay = till.pay(amount, token=token)
    await run(till.payments.charge, Charge(pay=pay, now=NOW))
    return pay


async def paid_invoice(till: Till, amount: int = 10_000) -> Pay:
    """A card paid an invoice, and the invoice took the money."""
    owed = await subscription(till.database.owner, till.organization)
    pay = till.pay(amount, purpose=Purpose.INVOICE, invoice_id="inv_1", subscription_id=owed)
    await run(till.payments.charge, Charge(pay=pay, now=NOW))
    nothing = zero("USD")
    await post(till, rules.charge(promotional=nothing, wallet=nothing, held=money(amount), tax=nothing), "invoice")
    return pay


async def post(till: Till, posting: rules.Posting, key: str) -> None:
    async with till.sessions.begin() as session:
        await ledger.post(
            session,
            posting,
            transaction_id=f"tx_{key}",
            organization_id=till.organization,
            at=NOW,
            ref=None,
            description=key,
            idempotency_key=key,
        )


def order(till: Till, pay: Pay, amount: int | None, to: RefundTo = RefundTo.SOURCE) -> RefundOrder:
    return RefundOrder(
        refund_id=Temporal.unique("re"),
        payment_id=pay.payment_id,
        organization_id=till.organization,
        amount=money(amount) if amount is not None else None,
        to=to,
        reason="goodwill",
        actor="usr_admin",
    )


async def refund(till: Till, wish: RefundOrder) -> RefundOutcome:
    reserved = await run(till.refunds.reserve, Reserve(order=wish, now=LATER))
    if reserved.status != "pending":
        return reserved
    return await run(till.refunds.give_back, GiveBack(refund_id=wish.refund_id, now=LATER))


@pytest.mark.scenario("B34")
async def test_after_forty_of_a_hundred_one_of_two_sixties_succeeds(till: Till) -> None:
    pay = await paid_invoice(till)
    assert (await refund(till, order(till, pay, 4_000))).status == "succeeded"
    assert (await till.payment(pay.payment_id))["status"] == "partially_refunded"
    results = await asyncio.gather(*(refund(till, order(till, pay, 6_000)) for _ in range(2)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, ApplicationError)]
    assert [refusal.type for refusal in refused] == [Refusal.REFUND_EXCEEDS_PAYMENT]
    assert [result.status for result in results if isinstance(result, RefundOutcome)] == ["succeeded"]
    row = await till.payment(pay.payment_id)
    assert (row["status"], row["refunded_minor"]) == ("refunded", 10_000)
    assert [charge["refunded"] for charge in till.charges(pay)] == [10_000]
    assert await till.balances() == (0, 0)
    assert len(await till.mails("refund_succeeded")) == 2
    story = await till.rows("SELECT kind FROM timeline_events WHERE kind = 'refund.succeeded'")
    assert len(story) == 2


@pytest.mark.scenario("B35")
async def test_the_same_refund_again_is_the_same_refund(till: Till) -> None:
    pay = await paid(till)
    wish = order(till, pay, 4_000)
    await run(till.refunds.reserve, Reserve(order=wish, now=LATER))
    assert await till.balances() == (6_000, 4_000), "what is on its way back cannot be spent"
    till.fault("lost_reply")
    with pytest.raises(Unavailable):
        await run(till.refunds.give_back, GiveBack(refund_id=wish.refund_id, now=LATER))
    for _ in range(2):
        again = await refund(till, wish)
        assert (again.status, again.amount) == ("succeeded", money(4_000))
    assert [charge["refunded"] for charge in till.charges(pay)] == [4_000]
    assert await till.balances() == (6_000, 0)
    (shown,) = await till.rows("SELECT effect_minor FROM ledger_transactions WHERE kind = 'refund'")
    assert shown["effect_minor"] == -4_000


async def test_a_top_up_that_was_spent_is_not_refunded_to_its_source(till: Till) -> None:
    pay = await paid(till)
    nothing = zero("USD")
    await post(till, rules.charge(promotional=nothing, wallet=money(7_000), held=nothing, tax=nothing), "spent")
    with pytest.raises(ApplicationError) as refused:
        await refund(till, order(till, pay, None))
    assert refused.value.type == Refusal.INSUFFICIENT_FUNDS
    assert (await till.payment(pay.payment_id))["refunded_minor"] == 0
    assert (await refund(till, order(till, pay, 3_000))).status == "succeeded"
    assert await till.balances() == (0, 0)


async def test_a_charge_is_refunded_to_the_wallet_without_its_gateway(till: Till) -> None:
    pay = await paid_invoice(till)
    done = await run(till.refunds.reserve, Reserve(order=order(till, pay, None, RefundTo.WALLET), now=LATER))
    assert (done.status, done.amount) == ("succeeded", money(10_000))
    assert await till.balances() == (10_000, 0)
    assert [charge["refunded"] for charge in till.charges(pay)] == [0]


async def test_money_that_is_in_the_wallet_already_is_not_put_there_twice(till: Till) -> None:
    pay = await paid(till)
    with pytest.raises(ApplicationError) as refused:
        await refund(till, order(till, pay, None, RefundTo.WALLET))
    assert refused.value.type == Refusal.CONFLICT
    assert await till.balances() == (10_000, 0)


async def test_money_that_an_invoice_left_in_the_wallet_is_refunded_from_there(till: Till) -> None:
    owed = await subscription(till.database.owner, till.organization)
    pay = till.pay(10_000, purpose=Purpose.INVOICE, invoice_id="inv_1", subscription_id=owed)
    await run(till.payments.charge, Charge(pay=pay, now=NOW))
    await post(till, rules.release(promotional=zero("USD"), wallet=money(10_000)), f"applied/{pay.payment_id}")
    assert await till.balances() == (10_000, 0)
    assert (await refund(till, order(till, pay, None))).status == "succeeded"
    assert await till.balances() == (0, 0)


@pytest.mark.scenario("B35")
async def test_what_cannot_go_back_stays_and_becomes_a_task(till: Till) -> None:
    pay = await paid(till)
    await till.rows("UPDATE payments SET gateway_reference = 'pi_gone' WHERE id = :id RETURNING id", id=pay.payment_id)
    failed = await refund(till, order(till, pay, 4_000))
    assert failed.status == "failed"
    assert await till.balances() == (10_000, 0)
    row = await till.payment(pay.payment_id)
    assert (row["status"], row["refunded_minor"]) == ("succeeded", 0)
    assert len(await till.mails("operator_alert")) == 1


async def test_a_refund_on_its_way_is_pending_until_the_gateway_says_more(till: Till) -> None:
    pay = await paid(till, token="pm_card_pendingRefund")
    wish = order(till, pay, None)
    assert (await refund(till, wish)).status == "pending"
    assert await till.balances() == (0, 10_000)
    assert (await refund(till, wish)).status in ("pending", "succeeded")


@pytest.mark.parametrize(
    ("amount", "code"),
    [(10_001, Refusal.REFUND_EXCEEDS_PAYMENT), (-1, Refusal.VALIDATION_ERROR), (0, Refusal.VALIDATION_ERROR)],
)
async def test_an_impossible_amount_is_refused(till: Till, amount: int, code: Refusal) -> None:
    pay = await paid(till)
    with pytest.raises(ApplicationError) as refused:
        await refund(till, order(till, pay, amount))
    assert refused.value.type == code


async def test_what_was_not_received_is_not_refunded(till: Till) -> None:
    pay = await paid(till, token="pm_card_visa_chargeDeclined")
    with pytest.raises(ApplicationError) as refused:
        await refund(till, order(till, pay, None))
    assert refused.value.type == Refusal.CONFLICT
