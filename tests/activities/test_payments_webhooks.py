"""The inbox of webhooks: once each, as the account they are about, and nothing that contradicts."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from db.queries import webhooks
from db.session import session_factory, set_rls_context
from tests.support.inserts import NOW
from tests.support.payment_fixture import FIVE_MINUTES_LATER, PaymentFixture, money, run_activity
from workflows.ports.payments import (
    ChargePayment,
    GatewayEvent,
    PaymentInput,
    payment_input_from_record,
    to_gateway_event,
)
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus
from workflows.rules.webhook_events import PaymentEvent

S = PaymentStatus


@pytest.mark.scenario("B28")
@pytest.mark.parametrize("amount", [money(1), money(150000), money(1500, "EUR")])
async def test_a_webhook_that_contradicts_the_payment_moves_nothing_and_alerts(
    payments: PaymentFixture, amount: Money
) -> None:
    pay = payments.payment_input()
    await run_activity(payments.payment_activities.mark_unknown, ChargePayment(input=pay, now=NOW))
    command = await payments.gateway_event_command(pay, S.SUCCEEDED, amount=amount)
    fact = _fact(command.event, pay)
    async with session_factory(payments.database.api).begin() as session:
        await webhooks.record_webhook(session, fact, b"{}", at=NOW)
    progress = await run_activity(payments.payment_activities.apply_gateway_event, command)
    assert progress.outcome.status is S.UNKNOWN
    assert await payments.balances() == (0, 0)
    (event,) = await payments.rows("SELECT status, mismatch_reason FROM webhook_events")
    assert event["status"] == "mismatch"
    (mail,) = await payments.notifications("operator_alert")
    assert mail["organization_id"] is None
    assert pay.payment_id in mail["template_context"]["title"]


def _fact(event: GatewayEvent, pay: PaymentInput) -> PaymentEvent:
    return PaymentEvent(
        gateway=event.gateway,
        event_id=event.event_id,
        event_type="payment_intent.succeeded",
        gateway_reference=event.gateway_reference,
        status=event.status,
        amount=event.amount,
        payment_id=pay.payment_id,
        organization_id=pay.organization_id,
    )


@pytest.mark.scenario("B19", "S5")
async def test_a_webhook_is_recorded_once_and_finds_its_payment_as_its_own_account(payments: PaymentFixture) -> None:
    pay = payments.payment_input()
    await run_activity(payments.payment_activities.mark_unknown, ChargePayment(input=pay, now=NOW))
    fact = _fact((await payments.gateway_event_command(pay, S.SUCCEEDED)).event, pay)
    api = session_factory(payments.database.api)
    for settled in (False, False):
        async with api.begin() as session:
            received = await webhooks.record_webhook(session, fact, b"{}", at=NOW)
        assert received.needs_no_delivery is settled
        assert received.payment is not None
        assert payment_input_from_record(received.payment).amount == pay.amount
        assert to_gateway_event(fact).event_id == fact.event_id
    async with api.begin() as session:
        await set_rls_context(session, organization_id=None, user_id=None, role="GATEWAY")
        await webhooks.mark_delivered(session, fact.gateway, fact.event_id, at=FIVE_MINUTES_LATER)
    async with api.begin() as session:
        assert (await webhooks.record_webhook(session, fact, b"{}", at=FIVE_MINUTES_LATER)).needs_no_delivery
        assert await webhooks.list_undelivered(session, before=FIVE_MINUTES_LATER) == []
    async with api.begin() as session:
        await set_rls_context(session, organization_id=None, user_id=None, role=None)
        assert (await session.execute(text("SELECT count(*) FROM payments"))).scalar_one() == 0
    assert len(await payments.rows("SELECT event_id FROM webhook_events")) == 1


@pytest.mark.scenario("B19", "B28")
async def test_what_an_ended_payment_knows_needs_no_telling(payments: PaymentFixture) -> None:
    pay = payments.payment_input()
    await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    api = session_factory(payments.database.api)

    async def settled(number: int, status: PaymentStatus, amount: Money | None = None) -> bool:
        command = await payments.gateway_event_command(pay, status, number=number, amount=amount)
        async with api.begin() as session:
            return (
                await webhooks.record_webhook(session, _fact(command.event, pay), b"{}", at=FIVE_MINUTES_LATER)
            ).needs_no_delivery

    assert await settled(1, S.SUCCEEDED)
    assert await settled(2, S.FAILED)
    assert not await settled(3, S.SUCCEEDED, money(1)), "a contradiction is for the payment to refuse"
    recorded = await payments.rows("SELECT status FROM webhook_events ORDER BY event_id")
    assert [row["status"] for row in recorded] == ["delivered", "delivered", "received"]
