"""Refunds that the bank rejects after their workflow has ended: the webhook starts it again and the wallet is credited.

The webhooks are those of the card gateway's sandbox; they pass the inbox and reach the workflow as from the API.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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
from worker import schedules
from workflows import names
from workflows.client import WorkflowClient
from workflows.ports.payments import ChargePayment, PaymentInput
from workflows.ports.reconciliation import RecheckOutcome, RecheckRefunds, ReconciliationInput, ReconciliationOutcome
from workflows.ports.refunds import RefundDestination, RefundInput, RefundOutcome, refund_input_from_record
from workflows.ports.subscription import FundsArrived
from workflows.reconciliation import Reconciliation
from workflows.refund import Refund
from workflows.rules.dunning import FundsKind
from workflows.rules.webhook_events import parse_stripe_event

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def refund_input(payments: PaymentFixture, top_up: PaymentInput, amount: int) -> RefundInput:
    return RefundInput(
        refund_id=TemporalFixture.unique_id("re"),
        payment_id=top_up.payment_id,
        organization_id=payments.organization,
        amount=money(amount),
        destination=RefundDestination.SOURCE,
        reason="goodwill",
        actor="usr_admin",
    )


@dataclass
class SentRefund:
    """A refund of 40.00 of a top-up of 100.00 that the gateway has sent, and whose workflow has ended."""

    temporal: TemporalFixture
    payments: PaymentFixture
    workflows: WorkflowClient
    top_up: PaymentInput
    refund_id: str = ""

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

    async def is_failed(self) -> bool:
        (row,) = await self.payments.rows("SELECT status FROM refunds WHERE id = :id", id=self.refund_id)
        return bool(row["status"] == "failed")

    async def refund(self, amount: int) -> str:
        """Refund this much more of the top-up, and return the refund's id."""
        command = refund_input(self.payments, self.top_up, amount)
        answered = await self.workflows.refund_payment(command)
        assert answered.result is not None
        assert answered.result.status == "succeeded"
        return command.refund_id

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
            PostgresReconciliationActivities(payments.sessions, gateways=payments.gateways),
            payments.refund_activities,
            workflows=[Reconciliation, Refund, PastDueSubscription],
        ),
    ):
        top_up = payments.payment_input(10_000)
        await run_activity(payments.payment_activities.charge, ChargePayment(input=top_up, now=datetime.now(UTC)))
        fixture = SentRefund(temporal, payments, WorkflowClient(temporal.client), top_up)
        fixture.refund_id = await fixture.refund(4_000)
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


@pytest.mark.scenario("B35")
async def test_a_rejection_whose_webhook_never_arrives_is_found_by_the_daily_reconciliation(sent: SentRefund) -> None:
    (daily,) = [
        definition.input
        for definition in schedules.SCHEDULES
        if isinstance(definition.input, ReconciliationInput) and definition.every == timedelta(days=1)
    ]
    assert isinstance(daily, ReconciliationInput)
    assert (await reconcile(sent.temporal, daily)).refunds_rejected == 0
    sent.reject()
    assert (await reconcile(sent.temporal, ReconciliationInput())).refunds_rejected == 0
    assert (await reconcile(sent.temporal, daily)).refunds_rejected == 1
    await wait_until(sent.is_failed, description="the refund is read again")
    assert await sent.payments.balances() == (10_000, 0)
    assert (await reconcile(sent.temporal, daily)).refunds_rejected == 0


async def test_refunds_that_cannot_be_read_today_are_read_the_next_day(sent: SentRefund) -> None:
    daily = ReconciliationInput(recheck_refunds=True)
    sent.reject()
    sent.payments.inject_fault("server_error", path="/v1/refunds/*", method="GET")
    assert (await reconcile(sent.temporal, daily)).refunds_rejected == 0
    assert (await reconcile(sent.temporal, daily)).refunds_rejected == 1


@pytest.mark.parametrize(("days", "rejected"), [(29, 1), (31, 0)])
async def test_refunds_are_read_again_for_thirty_days(sent: SentRefund, days: int, rejected: int) -> None:
    sent.reject()
    command = RecheckRefunds(after="", now=datetime.now(UTC) + timedelta(days=days))
    activities = PostgresReconciliationActivities(
        sent.payments.sessions, sent.temporal.client, gateways=sent.payments.gateways
    )
    assert await activities.recheck_refunds(command) == RecheckOutcome(rejected=rejected, last_id=None)


async def test_each_page_of_refunds_begins_after_the_one_before(sent: SentRefund) -> None:
    others = [await sent.refund(100) for _ in range(3)]
    activities = PostgresReconciliationActivities(
        sent.payments.sessions, sent.temporal.client, gateways=sent.payments.gateways
    )
    last, pages = "", list[str | None]()
    while len(pages) < 10:
        page = await activities.recheck_refunds(RecheckRefunds(after=last, now=datetime.now(UTC), limit=2))
        pages.append(page.last_id)
        if page.last_id is None:
            break
        last = page.last_id
    ids = sorted([sent.refund_id, *others])
    assert pages == [ids[1], ids[3], None]
