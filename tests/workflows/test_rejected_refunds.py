"""Refunds that the bank rejects after their workflow has ended: the webhook starts it again and the wallet is credited.

The webhooks are those of the card gateway's sandbox; they pass the inbox and reach the workflow as from the API.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio
from temporalio.client import WorkflowHandle

from activities.reconciliation import PostgresReconciliationActivities
from db.queries import webhooks
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.fake_payments import PastDueSubscription
from tests.support.inserts import insert_subscription
from tests.support.payment_fixture import PaymentFixture, create_payment_fixture, money, run_activity
from tests.support.reconciliation import reconcile
from tests.support.sandboxes import StripeEndpoint
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from tests.support.workers import build_worker
from workflows import names
from workflows.client import WorkflowClient
from workflows.ports.payments import ChargePayment, PaymentInput
from workflows.ports.reconciliation import ReconciliationInput, ReconciliationOutcome
from workflows.ports.refunds import RefundDestination, RefundInput, RefundOutcome, refund_input_from_record
from workflows.ports.subscription import FundsArrived
from workflows.reconciliation import Reconciliation
from workflows.refund import Refund
from workflows.rules.dunning import FundsKind
from workflows.rules.webhook_events import parse_stripe_event

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass
class SentRefund:
    """A refund of 40.00 of a top-up of 100.00 that the gateway has sent, and whose workflow has ended."""

    temporal: TemporalFixture
    payments: PaymentFixture
    workflows: WorkflowClient
    top_up: PaymentInput
    refund_id: str

    def reject(self) -> None:
        self.payments.fail_refund(self.payments.refunds_at_gateway(self.top_up)[0]["id"])

    async def event_bodies(self, kind: str, *, status: str) -> list[bytes]:
        """Return the bodies of the gateway's webhooks of this type about the refund, as soon as there are any."""
        (refund,) = self.payments.refunds_at_gateway(self.top_up)

        def find() -> list[bytes]:
            bodies = list[bytes]()
            for _, body in self.payments.stripe.deliveries:
                event = json.loads(body)
                about = event["data"]["object"]
                if (event["type"], about["id"], about.get("status")) == (kind, refund["id"], status):
                    bodies.append(body)
            return bodies

        return await wait_until(find, description=f"the gateway's webhook {kind}")

    async def receive(self, body: bytes, *, at: datetime, delivers: bool = True) -> bool:
        """Record a webhook as the API does and deliver it to the workflow; return whether it needed a delivery."""
        event = parse_stripe_event(json.loads(body))
        async with session_factory(self.payments.database.api).begin() as session:
            received = await webhooks.record_webhook(session, event, body, at=at)
        assert received.refund is not None
        if received.needs_no_delivery:
            return False
        if delivers:
            await self.workflows.deliver_refund_event(event.event_id, refund_input_from_record(received.refund))
        return True

    async def reconcile(self) -> ReconciliationOutcome:
        return await reconcile(self.temporal, ReconciliationInput())

    async def outcome(self) -> RefundOutcome:
        handle: WorkflowHandle[Any, RefundOutcome] = self.temporal.client.get_workflow_handle(
            names.refund_workflow_id(self.refund_id), result_type=RefundOutcome
        )
        return await handle.result()


@pytest_asyncio.fixture
async def sent(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> AsyncIterator[SentRefund]:
    async with (
        create_payment_fixture(database, stripe) as payments,
        build_worker(
            temporal,
            names.PLATFORM_QUEUE,
            PostgresReconciliationActivities(payments.sessions),
            payments.refund_activities,
            workflows=[Reconciliation, Refund, PastDueSubscription],
        ),
    ):
        top_up = payments.payment_input(10_000)
        await run_activity(payments.payment_activities.charge, ChargePayment(input=top_up, now=datetime.now(UTC)))
        command = RefundInput(
            refund_id=TemporalFixture.unique_id("re"),
            payment_id=top_up.payment_id,
            organization_id=payments.organization,
            amount=money(4_000),
            destination=RefundDestination.SOURCE,
            reason="goodwill",
            actor="usr_admin",
        )
        workflows = WorkflowClient(temporal.client)
        answered = await workflows.refund_payment(command)
        assert answered.result is not None
        assert answered.result.status == "succeeded"
        fixture = SentRefund(temporal, payments, workflows, top_up, command.refund_id)
        await fixture.outcome()
        yield fixture


@pytest.mark.scenario("B35")
async def test_a_rejected_refund_credits_the_wallet_once_and_collects_what_is_owed(sent: SentRefund) -> None:
    debtor = await insert_subscription(sent.payments.database.owner, sent.payments.organization)
    await sent.payments.rows(
        "UPDATE subscriptions SET status = 'past_due', past_due_since = now() WHERE id = :id RETURNING id", id=debtor
    )
    subscription = await sent.temporal.client.start_workflow(
        PastDueSubscription.run, id=names.subscription_workflow_id(debtor), task_queue=names.PLATFORM_QUEUE
    )
    assert await sent.payments.balances() == (6_000, 0)
    sent.reject()
    (failed,) = await sent.event_bodies("refund.failed", status="failed")
    (updated,) = await sent.event_bodies("refund.updated", status="failed")
    (charge_event,) = await sent.event_bodies("charge.refund.updated", status="failed")
    now = datetime.now(UTC)
    await asyncio.gather(*(sent.receive(body, at=now) for body in (charge_event, failed, updated, failed)))
    assert (await sent.outcome()).status == "failed"
    assert await subscription.result() == FundsArrived(source=sent.refund_id, kind=FundsKind.CREDIT)
    assert await sent.payments.balances() == (10_000, 0)
    for body in (updated, failed, charge_event):
        assert not await sent.receive(body, at=now), "the refund has applied it"
    assert await sent.payments.balances() == (10_000, 0)
    assert len(await sent.payments.notifications("refund_failed")) == 1
    assert (await sent.reconcile()).balance_mismatches == 0


@pytest.mark.scenario("B35")
async def test_an_event_that_the_gateway_does_not_confirm_moves_nothing(sent: SentRefund) -> None:
    (refund,) = sent.payments.refunds_at_gateway(sent.top_up)
    body = json.dumps({"id": "evt_early", "type": "refund.failed", "data": {"object": {**refund, "status": "failed"}}})
    assert await sent.receive(body.encode(), at=datetime.now(UTC))
    assert (await sent.outcome()).status == "succeeded"
    assert await sent.payments.balances() == (6_000, 0)


@pytest.mark.scenario("B20", "B35")
async def test_an_event_that_was_recorded_and_not_delivered_is_delivered_by_reconciliation(sent: SentRefund) -> None:
    sent.reject()
    (body,) = await sent.event_bodies("refund.failed", status="failed")
    assert await sent.receive(body, at=LONG_AGO, delivers=False)
    assert (await sent.reconcile()).webhooks_delivered == 1
    assert (await sent.outcome()).status == "failed"
    assert (await sent.reconcile()).webhooks_delivered == 0
    assert await sent.payments.balances() == (10_000, 0)
    (event,) = await sent.payments.rows("SELECT status, refund_id FROM webhook_events")
    assert (event["status"], event["refund_id"]) == ("delivered", sent.refund_id)


@pytest.mark.scenario("B35")
async def test_the_gateway_is_asked_again_after_an_outage(sent: SentRefund) -> None:
    sent.reject()
    (body,) = await sent.event_bodies("refund.failed", status="failed")
    sent.payments.inject_fault("server_error", count=2, path="/v1/refunds/*", method="GET")
    assert await sent.receive(body, at=datetime.now(UTC))
    assert (await sent.outcome()).status == "failed"
    assert await sent.payments.balances() == (10_000, 0)


async def test_a_rejection_whose_workflow_was_lost_after_the_delivery_is_taken_up_when_it_is_resent(
    sent: SentRefund,
) -> None:
    sent.reject()
    (body, *_) = await sent.event_bodies("refund.failed", status="failed")
    sent.payments.inject_fault("server_error", count=None, path="/v1/refunds/*", method="GET")
    assert await sent.receive(body, at=LONG_AGO)
    async with sent.payments.sessions.begin() as session:
        await webhooks.mark_delivered(session, "stripe", json.loads(body)["id"], at=datetime.now(UTC))
    await sent.temporal.client.get_workflow_handle(names.refund_workflow_id(sent.refund_id)).terminate()
    httpx.delete(f"{sent.payments.stripe.url}/sandbox/faults").raise_for_status()
    assert await sent.receive(body, at=datetime.now(UTC))
    assert (await sent.outcome()).status == "failed"
    assert await sent.payments.balances() == (10_000, 0)
    assert not await sent.receive(body, at=datetime.now(UTC))


async def test_an_event_that_cannot_be_delivered_does_not_stop_the_others(sent: SentRefund) -> None:
    sent.reject()
    (body, *_) = await sent.event_bodies("refund.failed", status="failed")
    await sent.payments.rows(
        "INSERT INTO webhook_events (gateway, event_id, event_type, payment_id, gateway_reference, payload_sha256,"
        " status, received_at) VALUES ('stripe', 'evt_1', 'refund.failed', :id, 're_1', 'x', 'received', '2019-01-01')"
        " RETURNING event_id",
        id=sent.top_up.payment_id,
    )
    assert await sent.receive(body, at=LONG_AGO, delivers=False)
    assert (await sent.reconcile()).webhooks_delivered == 1
    assert (await sent.outcome()).status == "failed"
