"""A top-up from the order to the wallet: real workflow, activities, database and gateway, webhooks over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from temporalio.worker import Worker

from db.queries import webhooks
from tests.support.accounts import sessions_of
from tests.support.databases import Database
from tests.support.money import Till, open_till
from tests.support.sandboxes import Stripe
from tests.support.temporal import Temporal
from tests.support.wait import eventually
from workflows import names
from workflows.client import Orchestrator
from workflows.payment import Payment
from workflows.ports.payments import Pay, event_of, pay_of
from workflows.rules import gateway_events
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.payment import PaymentStatus
from workflows.rules.signatures import verify_stripe

S = PaymentStatus


class Shop:
    """What the API does with an order and with a webhook, without HTTP in between."""

    def __init__(self, till: Till, orchestrator: Orchestrator) -> None:
        self.till = till
        self.orchestrator = orchestrator
        self._api = sessions_of(till.database.api)

    async def hear(self, headers: dict[str, str], body: bytes) -> None:
        now, stripe = datetime.now(UTC), self.till.stripe
        assert verify_stripe(body, headers["Stripe-Signature"], stripe.webhook_secret, now)
        message = gateway_events.stripe(json.loads(body))
        async with self._api.begin() as session:
            received = await webhooks.receive(session, message, body, at=now)
        if received.payment is None or received.settled:
            return
        assert isinstance(message, gateway_events.PaymentFact)
        await self.orchestrator.payment_event(event_of(message), pay_of(received.payment))
        async with self._api.begin() as session:
            await webhooks.delivered(session, message.gateway, message.event_id, at=now)

    def deliveries(self, pay: Pay, kind: str) -> list[tuple[dict[str, str], bytes]]:
        """Return what the gateway has sent about this payment so far."""
        found = []
        for headers, body in list(self.till.stripe.deliveries):
            event: dict[str, Any] = json.loads(body)
            metadata = event["data"]["object"].get("metadata") or {}
            if event["type"] == kind and metadata.get("berth_payment") == pay.payment_id:
                found.append((headers, body))
        return found

    async def settled(self, pay: Pay, status: PaymentStatus) -> None:
        async def look() -> bool:
            rows = await self.till.rows("SELECT status FROM payments WHERE id = :id", id=pay.payment_id)
            return rows == [{"status": status.value}]

        await eventually(look, what=f"the payment is {status}")
        handle = self.orchestrator.client.get_workflow_handle(names.payment_workflow(pay.payment_id))
        await handle.result()


@asynccontextmanager
async def shop(temporal: Temporal, database: Database, stripe: Stripe) -> AsyncIterator[Shop]:
    async with open_till(database, stripe) as till:
        activities = till.payments
        async with Worker(
            temporal.client,
            task_queue=names.PLATFORM,
            workflows=[Payment],
            activities=[
                activities.charge,
                activities.inquire,
                activities.hear,
                activities.capture,
                activities.withdraw,
                activities.lose_sight,
            ],
        ):
            yield Shop(till, Orchestrator(temporal.client))


@pytest.mark.scenario("B19", "B20", "B21")
async def test_webhooks_of_a_settled_top_up_come_twice_at_once_and_again(
    temporal: Temporal, database: Database, stripe: Stripe
) -> None:
    async with shop(temporal, database, stripe) as on:
        pay = on.till.pay()
        accepted = await on.orchestrator.top_up(pay)
        assert accepted.outcome is not None
        assert accepted.outcome.status is S.SUCCEEDED
        kind = "payment_intent.succeeded"
        (delivery,) = await eventually(lambda: on.deliveries(pay, kind), what="the webhook")
        await asyncio.gather(*(on.hear(*delivery) for _ in range(4)))
        httpx.post(f"{stripe.url}/sandbox/redeliver", json={"reverse": True}, timeout=20).raise_for_status()
        for again in on.deliveries(pay, kind):
            await on.hear(*again)
        await on.settled(pay, S.SUCCEEDED)
        assert await on.till.balances() == (1500, 0)
        events = await on.till.rows("SELECT status FROM webhook_events WHERE fact IS NOT NULL")
        assert events == [{"status": "delivered"}]
        assert len(await on.till.mails("top_up_receipt")) == 1


@pytest.mark.scenario("B20", "B23")
@pytest.mark.parametrize("fault", ["lost_reply", "reset", "server_error"])
async def test_a_lost_answer_is_one_charge_and_one_credit(
    temporal: Temporal, database: Database, stripe: Stripe, fault: str
) -> None:
    async with shop(temporal, database, stripe) as on:
        pay = on.till.pay()
        on.till.fault(fault, count=2)
        await on.orchestrator.top_up(pay)
        await on.settled(pay, S.SUCCEEDED)
        assert len(on.till.charges(pay)) == 1
        assert await on.till.balances() == (1500, 0)


@pytest.mark.scenario("B24")
async def test_a_customer_authenticates_and_the_webhook_brings_the_money(
    temporal: Temporal, database: Database, stripe: Stripe
) -> None:
    async with shop(temporal, database, stripe) as on:
        pay = on.till.pay(token="pm_card_threeDSecure2Required")
        first = await on.orchestrator.top_up(pay)
        again = await on.orchestrator.top_up(pay)
        assert first == again
        assert first.outcome is not None
        assert first.outcome.redirect_url
        reference = (await on.till.payment(pay.payment_id))["gateway_reference"]
        httpx.post(
            f"{stripe.url}/sandbox/payment_intents/{reference}/authenticate", json={"outcome": "succeed"}
        ).raise_for_status()
        kind = "payment_intent.succeeded"
        (delivery,) = await eventually(lambda: on.deliveries(pay, kind), what="the webhook")
        await on.hear(*delivery)
        await on.settled(pay, S.SUCCEEDED)
        assert await on.till.balances() == (1500, 0)
        assert len(on.till.charges(pay)) <= 1


async def test_a_declined_card_is_refused_and_a_retry_is_refused_the_same(
    temporal: Temporal, database: Database, stripe: Stripe
) -> None:
    async with shop(temporal, database, stripe) as on:
        pay = on.till.pay(token="pm_card_visa_chargeDeclined")
        for _ in range(2):
            with pytest.raises(RuleBroken) as refused:
                await on.orchestrator.top_up(pay)
            assert refused.value.code is Refusal.PAYMENT_DECLINED
            assert refused.value.details["decline_code"] == "generic_decline"
            await on.settled(pay, S.FAILED)
        assert len(on.till.charges(pay)) == 1
        assert await on.till.balances() == (0, 0)
