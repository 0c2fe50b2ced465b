"""Short workflows: each runs its activity once, however often it is requested."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from temporalio.worker import Worker

from activities.billing import PostgresBillingActivities
from activities.invoice_documents import PdfDocumentActivities
from tests.support.databases import DatabaseFixture
from tests.support.inserts import NOW
from tests.support.notification_fixture import NotificationFixture
from tests.support.temporal import TemporalFixture
from worker.workflow_runner import sandboxed_runner
from workflows import names
from workflows.client import WorkflowClient
from workflows.invoice_rendering import InvoiceRendering
from workflows.policies import operation_backoff
from workflows.ports.billing import AdjustWallet
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.funding import GatewayTerms
from workflows.rules.money import Money
from workflows.wallet_adjustment import WalletAdjustment


@pytest.fixture
def notifications(database: DatabaseFixture) -> NotificationFixture:
    return NotificationFixture(database, smtp_port=9)


@pytest_asyncio.fixture
async def workflow_client(
    temporal: TemporalFixture, notifications: NotificationFixture
) -> AsyncIterator[WorkflowClient]:
    async with (
        Worker(
            temporal.client,
            task_queue=names.PLATFORM_QUEUE,
            workflows=[WalletAdjustment, InvoiceRendering],
            workflow_runner=sandboxed_runner("tests"),
            activities=[
                PostgresBillingActivities(notifications.sessions, {"stripe": GatewayTerms(name="stripe")}).adjust_wallet
            ],
        ),
        Worker(
            temporal.client,
            task_queue=names.NOTIFICATIONS_QUEUE,
            activities=[PdfDocumentActivities(notifications.sessions).render_invoice],
        ),
    ):
        yield WorkflowClient(temporal.client)


def adjustment(notifications: NotificationFixture, amount: int) -> AdjustWallet:
    return AdjustWallet(
        adjustment_id=TemporalFixture.unique_id("adj"),
        organization_id=notifications.organization,
        amount=Money(amount_minor=amount, currency="USD"),
        reason="goodwill",
        actor="usr_1",
        request_id="req_1",
        now=NOW,
    )


async def test_an_adjustment_is_posted_once(
    workflow_client: WorkflowClient, notifications: NotificationFixture
) -> None:
    order = adjustment(notifications, 500)
    assert await workflow_client.adjust_wallet(order) == await workflow_client.adjust_wallet(order)
    (posted,) = notifications.rows("SELECT kind, customer_delta_minor FROM ledger_transactions")
    assert posted == {"kind": "adjustment", "customer_delta_minor": 500}


async def test_an_adjustment_below_zero_is_rejected(
    workflow_client: WorkflowClient, notifications: NotificationFixture
) -> None:
    with pytest.raises(RuleViolation) as refused:
        await workflow_client.adjust_wallet(adjustment(notifications, -500))
    assert refused.value.code is ErrorCode.INSUFFICIENT_FUNDS
    assert notifications.rows("SELECT id FROM ledger_transactions") == []


async def test_a_document_is_rendered_once(workflow_client: WorkflowClient, notifications: NotificationFixture) -> None:
    invoice_id = notifications.insert_invoice()
    first = await workflow_client.render_invoice(invoice_id, notifications.organization)
    assert await workflow_client.render_invoice(invoice_id, notifications.organization) == first
    (document,) = notifications.rows("SELECT id, content_sha256 FROM documents")
    assert document == {"id": first.document_id, "content_sha256": first.content_sha256}


@pytest.mark.scenario("S1")
async def test_the_invoice_of_another_organization_is_not_found(
    workflow_client: WorkflowClient, notifications: NotificationFixture
) -> None:
    with pytest.raises(RuleViolation) as refused:
        await workflow_client.render_invoice(notifications.insert_invoice(), "org_other")
    assert refused.value.code is ErrorCode.NOT_FOUND
    assert notifications.rows("SELECT id FROM documents") == []


def test_the_wait_before_a_failed_operation_is_repeated_doubles_up_to_an_hour() -> None:
    assert [operation_backoff(count) / timedelta(minutes=1) for count in (1, 2, 3, 4, 5, 6, 50)] == [
        2,
        4,
        8,
        16,
        32,
        60,
        60,
    ]
