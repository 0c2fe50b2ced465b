"""Payments on a real database and the card gateway's sandbox: charged once, settled once, whatever happens between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from sqlalchemy import text
from temporalio.exceptions import ApplicationError

from activities.gateways.base import Unavailable
from db.queries import webhooks
from db.session import act_as
from tests.support.accounts import NOW, account, sessions_of, subscription
from tests.support.databases import Database
from tests.support.money import LATER, Till, money, open_till, run
from tests.support.sandboxes import Stripe
from tests.support.temporal import Temporal
from workflows.ports.payments import (
    AddPaymentMethod,
    Attach,
    Capture,
    Charge,
    Detach,
    GatewayEvent,
    Hear,
    Inquire,
    Pay,
    Purpose,
    RemovePaymentMethod,
    Withdraw,
    event_of,
    pay_of,
)
from workflows.rules.errors import Refusal
from workflows.rules.gateway_events import PaymentFact
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus

S = PaymentStatus


@pytest_asyncio.fixture
async def till(database: Database, stripe: Stripe) -> AsyncIterator[Till]:
    async with open_till(database, stripe) as opened:
        yield opened


async def said(till: Till, pay: Pay, status: PaymentStatus, *, number: int = 1, amount: Money | None = None) -> Hear:
    reference = (await till.payment(pay.payment_id))["gateway_reference"] or "pi_unheard"
    event = GatewayEvent(
        event_id=f"evt_{pay.payment_id}_{number}",
        gateway="stripe",
        reference=reference,
        status=status,
        amount=amount or pay.amount,
    )
    return Hear(payment_id=pay.payment_id, event=event, abandoned=False, now=LATER)


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
    kinds = await till.rows("SELECT kind FROM timeline_events")
    assert [row["kind"] for row in kinds] == ["payment.authorized"]


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
    hear = await said(till, pay, S.SUCCEEDED)
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
    await run(till.payments.hear, await said(till, pay, order[0], number=1))
    progress = await run(till.payments.hear, await said(till, pay, order[1], number=2))
    assert progress.outcome.status is S.SUCCEEDED
    assert await till.balances() == (1500, 0)


@pytest.mark.scenario("B27")
@pytest.mark.parametrize("ended", [S.CANCELLED, S.EXPIRED, S.FAILED])
async def test_money_after_the_end_is_credit_once_and_nothing_is_revived(till: Till, ended: PaymentStatus) -> None:
    older = await subscription(till.database.owner, till.organization, status="suspended", behind=timedelta(days=9))
    newer = await subscription(till.database.owner, till.organization, status="past_due", behind=timedelta(days=1))
    pay = await for_order(till)
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    await run(till.payments.hear, await said(till, pay, ended))
    late = await run(till.payments.hear, await said(till, pay, S.SUCCEEDED, number=2), run_id="run-2")
    assert late.late
    assert late.indebted == [older, newer]
    again = await run(till.payments.hear, await said(till, pay, S.SUCCEEDED, number=3), run_id="run-3")
    assert again.indebted == [], "only the run that saw the money tells of it"
    assert await till.balances() == (1500, 0)
    statuses = await till.rows("SELECT status FROM subscriptions WHERE id = :id", id=pay.subscription_id)
    assert statuses == [{"status": "active"}], "a payment touches no subscription"


async def test_an_authorisation_that_nobody_wants_any_more_is_reported_as_stray(till: Till) -> None:
    pay = await for_order(till)
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    await run(till.payments.hear, await said(till, pay, S.CANCELLED))
    stray = await run(till.payments.hear, await said(till, pay, S.AUTHORIZED, number=2))
    assert stray.stray
    assert stray.outcome.status is S.CANCELLED


@pytest.mark.scenario("B28")
@pytest.mark.parametrize("amount", [money(1), money(150000), money(1500, "EUR")])
async def test_a_webhook_that_contradicts_the_payment_moves_nothing_and_alerts(till: Till, amount: Money) -> None:
    pay = till.pay()
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    hear = await said(till, pay, S.SUCCEEDED, amount=amount)
    fact = _fact(hear.event, pay)
    async with sessions_of(till.database.api).begin() as session:
        await webhooks.receive(session, fact, b"{}", at=NOW)
    progress = await run(till.payments.hear, hear)
    assert progress.outcome.status is S.UNKNOWN
    assert await till.balances() == (0, 0)
    (event,) = await till.rows("SELECT status, note FROM webhook_events")
    assert event["status"] == "mismatch"
    (mail,) = await till.mails("operator_alert")
    assert mail["organization_id"] is None
    assert pay.payment_id in mail["context"]["title"]


async def test_another_accounts_card_is_not_found(till: Till) -> None:
    other = await account(till.database.owner)
    added = await run(till.methods.attach, Attach(order=_card(other), now=NOW))
    pay = till.pay(token=None, payment_method_id=added.added.payment_method_id)
    with pytest.raises(ApplicationError) as refused:
        await run(till.payments.charge, Charge(pay=pay, now=NOW))
    assert refused.value.type == Refusal.NOT_FOUND
    assert await till.rows("SELECT id FROM payments") == []


async def test_one_payment_of_an_invoice_is_in_flight(till: Till) -> None:
    owed = await subscription(till.database.owner, till.organization)
    first = till.pay(purpose=Purpose.INVOICE, invoice_id="inv_1", subscription_id=owed)
    await run(till.payments.lose_sight, Charge(pay=first, now=NOW))
    second = till.pay(purpose=Purpose.INVOICE, invoice_id="inv_1", subscription_id=owed)
    with pytest.raises(ApplicationError) as refused:
        await run(till.payments.charge, Charge(pay=second, now=NOW))
    assert refused.value.type == Refusal.CONFLICT
    assert till.charges(second) == []
    await run(till.payments.hear, await said(till, first, S.FAILED))
    assert (await run(till.payments.charge, Charge(pay=second, now=LATER))).outcome.status is S.SUCCEEDED
    assert await till.balances() == (0, 1500)


def _card(organization_id: str, token: str = "pm_card_visa", *, default: bool = False) -> AddPaymentMethod:
    return AddPaymentMethod(
        payment_method_id=Temporal.unique("pm"),
        organization_id=organization_id,
        gateway="stripe",
        token=token,
        default=default,
        actor="usr_1",
    )


@pytest.mark.scenario("B42")
async def test_a_new_card_is_kept_and_names_the_debts_that_it_may_pay(till: Till) -> None:
    owed = await subscription(till.database.owner, till.organization, status="past_due", behind=timedelta(days=1))
    order = _card(till.organization)
    first = await run(till.methods.attach, Attach(order=order, now=NOW))
    assert (first.added.brand, first.added.last4, first.added.default) == ("visa", "4242", True)
    assert first.indebted == [owed]
    assert await run(till.methods.attach, Attach(order=order, now=LATER)) == first
    second = await run(till.methods.attach, Attach(order=_card(till.organization), now=NOW))
    assert not second.added.default
    third = await run(till.methods.attach, Attach(order=_card(till.organization, default=True), now=NOW))
    assert third.added.default
    defaults = await till.rows("SELECT id FROM payment_methods WHERE is_default")
    assert defaults == [{"id": third.added.payment_method_id}]


async def test_a_card_on_file_pays_without_its_holder(till: Till) -> None:
    added = await run(till.methods.attach, Attach(order=_card(till.organization), now=NOW))
    owed = await subscription(till.database.owner, till.organization)
    pay = till.pay(
        token=None,
        payment_method_id=added.added.payment_method_id,
        purpose=Purpose.INVOICE,
        invoice_id="inv_1",
        subscription_id=owed,
    )
    assert (await run(till.payments.charge, Charge(pay=pay, now=NOW))).outcome.status is S.SUCCEEDED
    assert await till.balances() == (0, 1500)


async def test_a_refused_card_is_not_kept(till: Till) -> None:
    order = _card(till.organization, "pm_card_chargeDeclinedStolenCard")
    with pytest.raises(ApplicationError) as refused:
        await run(till.methods.attach, Attach(order=order, now=NOW))
    assert (refused.value.type, refused.value.non_retryable) == (Refusal.PAYMENT_DECLINED, True)
    assert refused.value.details[0]["decline_code"] == "stolen_card"
    with pytest.raises(ApplicationError) as unknown:
        await run(till.methods.attach, Attach(order=_card(till.organization, "pm_no_such"), now=NOW))
    assert unknown.value.type == Refusal.VALIDATION_ERROR
    assert await till.rows("SELECT id FROM payment_methods") == []


@pytest.mark.scenario("B45")
async def test_the_last_card_stays_while_a_debt_is_open(till: Till) -> None:
    first = (await run(till.methods.attach, Attach(order=_card(till.organization), now=NOW))).added
    second = (await run(till.methods.attach, Attach(order=_card(till.organization), now=NOW))).added
    await subscription(till.database.owner, till.organization, status="past_due", behind=timedelta(days=1))
    await run(till.methods.detach, _removal(till, first.payment_method_id))
    await run(till.methods.detach, _removal(till, first.payment_method_id))
    assert await till.rows("SELECT id FROM payment_methods WHERE is_default") == [{"id": second.payment_method_id}]
    with pytest.raises(ApplicationError) as refused:
        await run(till.methods.detach, _removal(till, second.payment_method_id))
    assert refused.value.type == Refusal.PAYMENT_METHOD_IN_USE


def _removal(till: Till, payment_method_id: str) -> Detach:
    order = RemovePaymentMethod(payment_method_id=payment_method_id, organization_id=till.organization, actor="usr_1")
    return Detach(order=order, now=LATER)


def _fact(event: GatewayEvent, pay: Pay) -> PaymentFact:
    return PaymentFact(
        gateway=event.gateway,
        event_id=event.event_id,
        kind="payment_intent.succeeded",
        reference=event.reference,
        status=event.status,
        amount=event.amount,
        payment_id=pay.payment_id,
        organization_id=pay.organization_id,
    )


@pytest.mark.scenario("B19", "S5")
async def test_a_webhook_is_recorded_once_and_finds_its_payment_as_its_own_account(till: Till) -> None:
    pay = till.pay()
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    fact = _fact((await said(till, pay, S.SUCCEEDED)).event, pay)
    api = sessions_of(till.database.api)
    for settled in (False, False):
        async with api.begin() as session:
            received = await webhooks.receive(session, fact, b"{}", at=NOW)
        assert received.settled is settled
        assert received.payment is not None
        assert pay_of(received.payment).amount == pay.amount
        assert event_of(fact).event_id == fact.event_id
    async with api.begin() as session:
        await webhooks.delivered(session, fact.gateway, fact.event_id, at=LATER)
    async with api.begin() as session:
        assert (await webhooks.receive(session, fact, b"{}", at=LATER)).settled
        assert await webhooks.undelivered(session, before=LATER) == []
    async with api.begin() as session:
        await act_as(session, organization_id=None, user_id=None, role=None)
        assert (await session.execute(text("SELECT count(*) FROM payments"))).scalar_one() == 0
    assert len(await till.rows("SELECT event_id FROM webhook_events")) == 1


@pytest.mark.scenario("B19", "B28")
async def test_what_an_ended_payment_knows_needs_no_telling(till: Till) -> None:
    pay = till.pay()
    await run(till.payments.charge, Charge(pay=pay, now=NOW))
    api = sessions_of(till.database.api)

    async def settled(number: int, status: PaymentStatus, amount: Money | None = None) -> bool:
        hear = await said(till, pay, status, number=number, amount=amount)
        async with api.begin() as session:
            return (await webhooks.receive(session, _fact(hear.event, pay), b"{}", at=LATER)).settled

    assert await settled(1, S.SUCCEEDED)
    assert await settled(2, S.FAILED)
    assert not await settled(3, S.SUCCEEDED, money(1)), "a contradiction is for the payment to refuse"
    recorded = await till.rows("SELECT status FROM webhook_events ORDER BY event_id")
    assert [row["status"] for row in recorded] == ["delivered", "delivered", "received"]
