"""The inbox of webhooks: once each, as the account they are about, and nothing that contradicts."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from db.queries import webhooks
from db.session import act_as
from tests.support.accounts import NOW, sessions_of
from tests.support.money import LATER, Till, money, run
from workflows.ports.payments import (
    Charge,
    GatewayEvent,
    Pay,
    event_of,
    pay_of,
)
from workflows.rules.gateway_events import PaymentFact
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus

S = PaymentStatus


@pytest.mark.scenario("B28")
@pytest.mark.parametrize("amount", [money(1), money(150000), money(1500, "EUR")])
async def test_a_webhook_that_contradicts_the_payment_moves_nothing_and_alerts(till: Till, amount: Money) -> None:
    pay = till.pay()
    await run(till.payments.lose_sight, Charge(pay=pay, now=NOW))
    hear = await till.said(pay, S.SUCCEEDED, amount=amount)
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
    fact = _fact((await till.said(pay, S.SUCCEEDED)).event, pay)
    api = sessions_of(till.database.api)
    for settled in (False, False):
        async with api.begin() as session:
            received = await webhooks.receive(session, fact, b"{}", at=NOW)
        assert received.settled is settled
        assert received.payment is not None
        assert pay_of(received.payment).amount == pay.amount
        assert event_of(fact).event_id == fact.event_id
    async with api.begin() as session:
        await act_as(session, organization_id=None, user_id=None, role="GATEWAY")
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
        hear = await till.said(pay, status, number=number, amount=amount)
        async with api.begin() as session:
            return (await webhooks.receive(session, _fact(hear.event, pay), b"{}", at=LATER)).settled

    assert await settled(1, S.SUCCEEDED)
    assert await settled(2, S.FAILED)
    assert not await settled(3, S.SUCCEEDED, money(1)), "a contradiction is for the payment to refuse"
    recorded = await till.rows("SELECT status FROM webhook_events ORDER BY event_id")
    assert [row["status"] for row in recorded] == ["delivered", "delivered", "received"]
