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

from db.queries import webhooks
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.payment_fixture import PaymentFixture, create_payment_fixture
from tests.support.sandboxes import StripeEndpoint
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from tests.support.workers import build_worker
from workflows import names
from workflows.client import WorkflowClient
from workflows.payment import Payment
from workflows.ports.payments import PaymentInput, payment_input_from_record, to_gateway_event
from workflows.rules import webhook_events
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.payment import PaymentStatus
from workflows.rules.webhook_signatures import verify_stripe

S = PaymentStatus


class WebhookReceiver:
    """Receives webhooks as the API does, without HTTP."""

    def __init__(self, payments: PaymentFixture, workflows: WorkflowClient) -> None:
        self.payments = payments
        self.workflows = workflows
        self._api = session_factory(payments.database.api)

    async def receive(self, headers: dict[str, str], body: bytes) -> None:
        now, stripe = datetime.now(UTC), self.payments.stripe
        assert verify_stripe(body, headers["Stripe-Signature"], stripe.webhook_secret, now)
        message = webhook_events.parse_stripe_event(json.loads(body))
        async with self._api.begin() as session:
            received = await webhooks.record_webhook(session, message, body, at=now)
        if received.payment is None or received.needs_no_delivery:
            return
        assert isinstance(message, webhook_events.PaymentEvent)
        await self.workflows.deliver_gateway_event(
            to_gateway_event(message), payment_input_from_record(received.payment)
        )
        async with self._api.begin() as session:
            await webhooks.mark_delivered(session, message.gateway, message.event_id, at=now)

    def deliveries(self, pay: PaymentInput, kind: str) -> list[tuple[dict[str, str], bytes]]:
        """Return the webhooks that the gateway has sent about this payment."""
        deliveries = []
        for headers, body in list(self.payments.stripe.deliveries):
            event: dict[str, Any] = json.loads(body)
            metadata = event["data"]["object"].get("metadata") or {}
            if event["type"] == kind and metadata.get("berth_payment") == pay.payment_id:
                deliveries.append((headers, body))
        return deliveries

    async def wait_for_closed_payment(self, pay: PaymentInput, status: PaymentStatus) -> None:
        async def has_status() -> bool:
            rows = await self.payments.rows("SELECT status FROM payments WHERE id = :id", id=pay.payment_id)
            return rows == [{"status": status.value}]

        await wait_until(has_status, description=f"the payment is {status}")
        handle = self.workflows.client.get_workflow_handle(names.payment_workflow_id(pay.payment_id))
        await handle.result()


@asynccontextmanager
async def run_webhook_receiver(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> AsyncIterator[WebhookReceiver]:
    async with create_payment_fixture(database, stripe) as payments:
        async with build_worker(temporal, names.PLATFORM_QUEUE, payments.payment_activities, workflows=[Payment]):
            yield WebhookReceiver(payments, WorkflowClient(temporal.client))


@pytest.mark.scenario("B19", "B20", "B21")
async def test_webhooks_of_a_settled_top_up_come_twice_at_once_and_again(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with run_webhook_receiver(temporal, database, stripe) as receiver:
        pay = receiver.payments.payment_input()
        await receiver.workflows.start_top_up(pay)
        kind = "payment_intent.succeeded"
        (delivery,) = await wait_until(lambda: receiver.deliveries(pay, kind), description="the webhook")
        await asyncio.gather(*(receiver.receive(*delivery) for _ in range(4)))
        httpx.post(f"{stripe.url}/sandbox/redeliver", json={"reverse": True}, timeout=20).raise_for_status()
        for redelivery in receiver.deliveries(pay, kind):
            await receiver.receive(*redelivery)
        await receiver.wait_for_closed_payment(pay, S.SUCCEEDED)
        assert await receiver.payments.balances() == (1500, 0)
        events = await receiver.payments.rows("SELECT status FROM webhook_events WHERE payment_status IS NOT NULL")
        assert events == [{"status": "delivered"}]
        assert len(await receiver.payments.notifications("top_up_receipt")) == 1


@pytest.mark.scenario("B20", "B23")
@pytest.mark.parametrize("fault", ["lost_reply", "reset", "server_error"])
async def test_a_lost_answer_is_one_charge_and_one_credit(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint, fault: str
) -> None:
    async with run_webhook_receiver(temporal, database, stripe) as receiver:
        pay = receiver.payments.payment_input()
        receiver.payments.inject_fault(fault, count=2)
        await receiver.workflows.start_top_up(pay)
        await receiver.wait_for_closed_payment(pay, S.SUCCEEDED)
        assert len(receiver.payments.charges(pay)) == 1
        assert await receiver.payments.balances() == (1500, 0)


@pytest.mark.scenario("B24")
async def test_a_customer_authenticates_and_the_webhook_brings_the_money(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with run_webhook_receiver(temporal, database, stripe) as receiver:
        pay = receiver.payments.payment_input(gateway_token="pm_card_threeDSecure2Required")
        first = await receiver.workflows.start_top_up(pay)
        replayed = await receiver.workflows.start_top_up(pay)
        assert first == replayed
        assert first.result is not None
        assert first.result.redirect_url
        reference = (await receiver.payments.payment(pay.payment_id))["gateway_reference"]
        httpx.post(
            f"{stripe.url}/sandbox/payment_intents/{reference}/authenticate", json={"outcome": "succeed"}
        ).raise_for_status()
        kind = "payment_intent.succeeded"
        (delivery,) = await wait_until(lambda: receiver.deliveries(pay, kind), description="the webhook")
        await receiver.receive(*delivery)
        await receiver.wait_for_closed_payment(pay, S.SUCCEEDED)
        assert await receiver.payments.balances() == (1500, 0)
        assert len(receiver.payments.charges(pay)) <= 1


async def test_a_declined_card_is_refused_and_a_retry_is_refused_the_same(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with run_webhook_receiver(temporal, database, stripe) as receiver:
        pay = receiver.payments.payment_input(gateway_token="pm_card_visa_chargeDeclined")
        for _ in range(2):
            with pytest.raises(RuleViolation) as refused:
                await receiver.workflows.start_top_up(pay)
            assert refused.value.code is ErrorCode.PAYMENT_DECLINED
            assert refused.value.details["decline_code"] == "generic_decline"
            await receiver.wait_for_closed_payment(pay, S.FAILED)
        assert len(receiver.payments.charges(pay)) == 1
        assert await receiver.payments.balances() == (0, 0)
