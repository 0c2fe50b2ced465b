"""Removals of cards whose workflow was lost before the gateway forgot the card: reconciliation finishes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio

from activities.reconciliation import PostgresReconciliationActivities
from tests.support.databases import DatabaseFixture
from tests.support.payment_fixture import PaymentFixture, create_payment_fixture, run_activity
from tests.support.reconciliation import reconcile
from tests.support.sandboxes import StripeEndpoint
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from tests.support.workers import build_worker
from workflows import names
from workflows.client import WorkflowClient
from workflows.lost_workflows import find_lost
from workflows.payment_methods import PaymentMethodRemoval
from workflows.ports.payments import AddPaymentMethod, AttachPaymentMethod, DetachPaymentMethod, RemovePaymentMethod
from workflows.ports.reconciliation import ReconciliationOutcome
from workflows.reconciliation import Reconciliation
from workflows.rpc_errors import TemporalUnavailable

DETACH = "/v1/payment_methods/*/detach"


@dataclass
class LostRemovals:
    temporal: TemporalFixture
    payments: PaymentFixture
    workflows: WorkflowClient

    async def add_card(self, token: str = "pm_card_visa") -> str:
        command = AddPaymentMethod(
            payment_method_id=TemporalFixture.unique_id("pm"),
            organization_id=self.payments.organization,
            gateway="stripe",
            token=token,
            default=False,
            actor="usr_1",
        )
        attach = AttachPaymentMethod(command=command, now=datetime.now(UTC))
        return (await run_activity(self.payments.method_activities.attach, attach)).added.payment_method_id

    def command(self, card: str, **more: Any) -> RemovePaymentMethod:
        return RemovePaymentMethod(
            payment_method_id=card, organization_id=self.payments.organization, actor="usr_1", **more
        )

    async def row(self, card: str) -> dict[str, Any]:
        (row,) = await self.payments.rows("SELECT * FROM payment_methods WHERE id = :id", id=card)
        return row

    async def is_attached(self, card: str) -> bool:
        """Return whether the gateway would charge the card."""
        reference = (await self.row(card))["gateway_reference"]
        response = httpx.get(
            f"{self.payments.stripe.url}/v1/payment_methods/{reference}", auth=(self.payments.stripe.api_key, "")
        )
        return response.raise_for_status().json()["customer"] is not None

    async def lose_removal(self, card: str) -> None:
        """Remove a card while the gateway does not respond, and terminate the workflow."""
        self.payments.inject_fault("reset", count=None, path=DETACH)
        removing = asyncio.create_task(self.workflows.remove_payment_method(self.command(card)))

        workflow_id = names.payment_method_removal_workflow_id(card)
        handle = self.temporal.client.get_workflow_handle(workflow_id)

        async def was_refused() -> bool:
            """Whether the gateway has reset a request: an attempt that begins later could reach it."""
            if (await self.row(card))["detached_at"] is None:
                return False
            pending = (await handle.describe()).raw_description.pending_activities
            return any(activity.attempt > 1 for activity in pending)

        await wait_until(was_refused)
        await handle.terminate()
        await asyncio.gather(removing, return_exceptions=True)

        async def is_listed() -> bool:
            return await find_lost(self.workflows, [workflow_id]) == [workflow_id]

        await wait_until(is_listed)
        httpx.delete(f"{self.payments.stripe.url}/sandbox/faults").raise_for_status()

    async def reconcile(self) -> ReconciliationOutcome:
        return await reconcile(self.temporal)


@pytest_asyncio.fixture
async def removals(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> AsyncIterator[LostRemovals]:
    async with (
        create_payment_fixture(database, stripe) as payments,
        build_worker(
            temporal,
            names.PLATFORM_QUEUE,
            PostgresReconciliationActivities(payments.sessions),
            payments.method_activities,
            workflows=[Reconciliation, PaymentMethodRemoval],
            graceful_shutdown_timeout=timedelta(seconds=1),
        ),
    ):
        yield LostRemovals(temporal, payments, WorkflowClient(temporal.client))


@pytest.mark.scenario("B35")
async def test_a_removal_that_is_lost_before_the_gateway_forgets_the_card_is_finished(removals: LostRemovals) -> None:
    card = await removals.add_card()
    await removals.lose_removal(card)
    assert await removals.is_attached(card)
    assert await removals.reconcile() == ReconciliationOutcome(payment_method_removals_restarted=1)
    workflow_id = names.payment_method_removal_workflow_id(card)
    await removals.temporal.client.get_workflow_handle(workflow_id).result()
    assert not await removals.is_attached(card)
    assert (await removals.row(card))["gateway_detached_at"] is not None
    (alert,) = await removals.payments.notifications("operator_alert")
    assert card in alert["template_context"]["details"]
    assert await removals.reconcile() == ReconciliationOutcome()


@pytest.mark.scenario("B35")
async def test_a_finished_removal_is_left_alone(removals: LostRemovals) -> None:
    card = await removals.add_card()
    await removals.workflows.remove_payment_method(removals.command(card))
    assert not await removals.is_attached(card)
    assert await removals.reconcile() == ReconciliationOutcome()
    assert await removals.payments.notifications("operator_alert") == []


async def test_a_card_that_was_saved_again_is_not_removed_by_a_lost_removal(removals: LostRemovals) -> None:
    card = await removals.add_card()
    await removals.lose_removal(card)
    assert await removals.add_card((await removals.row(card))["gateway_reference"]) == card
    finish = DetachPaymentMethod(command=removals.command(card, only_at_gateway=True), now=datetime.now(UTC))
    await run_activity(removals.payments.method_activities.detach, finish)
    assert await removals.is_attached(card)
    assert (await removals.row(card))["detached_at"] is None
    assert await removals.reconcile() == ReconciliationOutcome()


async def test_a_card_that_is_saved_again_while_its_removal_is_retried_stays_on_file(removals: LostRemovals) -> None:
    card = await removals.add_card()
    removals.payments.inject_fault("reset", count=None, path=DETACH)
    with pytest.raises(TemporalUnavailable):
        await removals.workflows.remove_payment_method(removals.command(card))
    removed = await removals.row(card)
    assert removed["detached_at"] is not None
    assert await removals.add_card(removed["gateway_reference"]) == card
    httpx.delete(f"{removals.payments.stripe.url}/sandbox/faults").raise_for_status()
    workflow_id = names.payment_method_removal_workflow_id(card)
    await removals.temporal.client.get_workflow_handle(workflow_id).result()
    assert (await removals.row(card))["detached_at"] is None
    assert await removals.is_attached(card)
    assert await removals.reconcile() == ReconciliationOutcome()
