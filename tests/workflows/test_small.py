"""The short processes: one activity, once, whoever asks how often."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from temporalio.worker import Worker

from activities.billing import BillingActivities
from activities.documents import DocumentActivities
from tests.support.accounts import NOW
from tests.support.databases import Database
from tests.support.post import Post
from tests.support.temporal import Temporal
from workflows import names
from workflows.adjustment import Adjustment
from workflows.client import Orchestrator
from workflows.document import InvoiceDocument
from workflows.ports.billing import AccountAdjustment
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.money import Money


@pytest.fixture
def post(database: Database) -> Post:
    return Post(database, smtp_port=9)


@pytest_asyncio.fixture
async def orchestrator(temporal: Temporal, post: Post) -> AsyncIterator[Orchestrator]:
    async with (
        Worker(
            temporal.client,
            task_queue=names.PLATFORM,
            workflows=[Adjustment, InvoiceDocument],
            activities=[BillingActivities(post.sessions).adjust],
        ),
        Worker(
            temporal.client,
            task_queue=names.NOTICES,
            activities=[DocumentActivities(post.sessions).render_invoice],
        ),
    ):
        yield Orchestrator(temporal.client)


def correction(post: Post, amount: int) -> AccountAdjustment:
    return AccountAdjustment(
        adjustment_id=Temporal.unique("adj"),
        organization_id=post.organization,
        amount=Money(amount_minor=amount, currency="USD"),
        reason="goodwill",
        actor="usr_1",
        request_id="req_1",
        now=NOW,
    )


async def test_a_correction_is_posted_once(orchestrator: Orchestrator, post: Post) -> None:
    order = correction(post, 500)
    assert await orchestrator.adjust(order) == await orchestrator.adjust(order)
    (posted,) = post.rows("SELECT kind, effect_minor FROM ledger_transactions")
    assert posted == {"kind": "adjustment", "effect_minor": 500}


async def test_a_correction_that_would_overdraw_is_refused(orchestrator: Orchestrator, post: Post) -> None:
    with pytest.raises(RuleBroken) as refused:
        await orchestrator.adjust(correction(post, -500))
    assert refused.value.code is Refusal.INSUFFICIENT_FUNDS
    assert post.rows("SELECT id FROM ledger_transactions") == []


async def test_a_document_is_rendered_and_the_same_again(orchestrator: Orchestrator, post: Post) -> None:
    invoice_id = post.invoice()
    first = await orchestrator.render_invoice(invoice_id, post.organization)
    assert await orchestrator.render_invoice(invoice_id, post.organization) == first
    (kept,) = post.rows("SELECT id, content_sha256 FROM documents")
    assert kept == {"id": first.document_id, "content_sha256": first.content_sha256}


@pytest.mark.scenario("S1")
async def test_another_accounts_document_is_not_found(orchestrator: Orchestrator, post: Post) -> None:
    with pytest.raises(RuleBroken) as refused:
        await orchestrator.render_invoice(post.invoice(), "org_other")
    assert refused.value.code is Refusal.NOT_FOUND
    assert post.rows("SELECT id FROM documents") == []
