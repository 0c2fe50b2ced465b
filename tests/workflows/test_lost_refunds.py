"""Refunds whose workflow was lost: reconciliation starts it again, and the money is given back once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import text
from temporalio.client import Client

from activities.reconciliation import PostgresReconciliationActivities
from tests.support.before_describe import BeforeDescribe
from tests.support.databases import DatabaseFixture
from tests.support.payment_fixture import PaymentFixture, create_payment_fixture, money, run_activity
from tests.support.reconciliation import reconcile
from tests.support.sandboxes import StripeEndpoint
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from tests.support.workers import build_worker
from workflows import names
from workflows.client import WorkflowClient
from workflows.lost_workflows import find_lost
from workflows.ports.payments import ChargePayment, PaymentInput
from workflows.ports.reconciliation import (
    ReconciliationOutcome,
    RestartLostWorkflows,
    RestartOutcome,
)
from workflows.ports.refunds import RefundDestination, RefundInput, ReserveRefund
from workflows.reconciliation import Reconciliation
from workflows.refund import Refund


@dataclass
class LostRefunds:
    temporal: TemporalFixture
    payments: PaymentFixture
    workflows: WorkflowClient

    async def top_up(self, token: str) -> PaymentInput:
        top_up = self.payments.payment_input(10_000, gateway_token=token)
        await run_activity(self.payments.payment_activities.charge, ChargePayment(input=top_up, now=datetime.now(UTC)))
        return top_up

    def command(self, top_up: PaymentInput) -> RefundInput:
        return RefundInput(
            refund_id=TemporalFixture.unique_id("re"),
            payment_id=top_up.payment_id,
            organization_id=self.payments.organization,
            amount=money(4_000),
            destination=RefundDestination.SOURCE,
            reason="goodwill",
            actor="usr_admin",
        )

    async def lose(self, refund_id: str) -> None:
        """Terminate the workflow, as an operator does, and wait until the server's list shows it."""
        workflow_id = names.refund_workflow_id(refund_id)
        await self.temporal.client.get_workflow_handle(workflow_id).terminate()

        async def listed() -> bool:
            return await find_lost(self.workflows, [workflow_id]) == [workflow_id]

        await wait_until(listed, description="the server's list shows the termination")

    async def reconcile(self) -> ReconciliationOutcome:
        return await reconcile(self.temporal)

    async def restart(self, client: Client, *, max_restarts: int) -> int:
        """Check the first page, and return how many workflows were started again."""
        reconciliation = PostgresReconciliationActivities(self.payments.sessions, client)
        command = RestartLostWorkflows(after="", max_restarts=max_restarts, now=datetime.now(UTC))
        outcome: RestartOutcome = await run_activity(reconciliation.restart_refunds, command)
        return outcome.restarted

    async def status(self, refund_id: str) -> str:
        (row,) = await self.payments.rows("SELECT status FROM refunds WHERE id = :id", id=refund_id)
        return str(row["status"])

    async def assert_given_back_once(self, top_up: PaymentInput, refund_id: str) -> None:
        handle = self.temporal.client.get_workflow_handle(names.refund_workflow_id(refund_id))
        await handle.result()
        assert await self.status(refund_id) == "succeeded"
        assert [charge["refunded"] for charge in self.payments.charges(top_up)] == [4_000]
        assert await self.payments.balances() == (6_000, 0)


@asynccontextmanager
async def lost_refunds(temporal: TemporalFixture, payments: PaymentFixture) -> AsyncIterator[LostRefunds]:
    reconciliation = PostgresReconciliationActivities(payments.sessions)
    async with build_worker(
        temporal,
        names.PLATFORM_QUEUE,
        reconciliation,
        payments.refund_activities,
        workflows=[Reconciliation, Refund],
        graceful_shutdown_timeout=timedelta(seconds=1),
    ):
        yield LostRefunds(temporal, payments, WorkflowClient(temporal.client))


@pytest_asyncio.fixture
async def refunds(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> AsyncIterator[LostRefunds]:
    async with (
        create_payment_fixture(database, stripe) as payments,
        lost_refunds(temporal, payments) as fixture,
    ):
        yield fixture


@pytest.mark.scenario("B35")
async def test_a_refund_that_is_lost_while_the_gateway_calls_it_pending_is_followed_to_its_end(
    refunds: LostRefunds,
) -> None:
    top_up = await refunds.top_up("pm_card_pendingRefund")
    command = refunds.command(top_up)
    answered = await refunds.workflows.refund_payment(command)
    assert answered.result is not None
    assert answered.result.status == "pending"
    assert (await refunds.reconcile()).refunds_restarted == 0, "its workflow runs"
    await refunds.lose(command.refund_id)
    assert await refunds.reconcile() == ReconciliationOutcome(refunds_restarted=1)
    await refunds.assert_given_back_once(top_up, command.refund_id)
    (alert,) = await refunds.payments.notifications("operator_alert")
    assert command.refund_id in alert["template_context"]["details"]
    assert await refunds.reconcile() == ReconciliationOutcome()


@pytest.mark.scenario("B35")
async def test_a_refund_that_is_lost_while_the_gateway_is_asked_is_given_back_once(refunds: LostRefunds) -> None:
    top_up = await refunds.top_up("pm_card_visa")
    command = refunds.command(top_up)
    refunds.payments.inject_fault("stall", seconds=3, path="/v1/refunds")
    ordering = asyncio.ensure_future(refunds.workflows.refund_payment(command))
    await wait_until(lambda: [charge["refunded"] for charge in refunds.payments.charges(top_up)] == [4_000])
    await refunds.lose(command.refund_id)
    await asyncio.gather(ordering, return_exceptions=True)
    assert await refunds.status(command.refund_id) == "pending"
    assert await refunds.reconcile() == ReconciliationOutcome(refunds_restarted=1)
    await refunds.assert_given_back_once(top_up, command.refund_id)


@pytest.mark.scenario("B35")
async def test_a_refund_that_is_answered_while_its_workflow_is_looked_for_is_left_alone(refunds: LostRefunds) -> None:
    command = refunds.command(await refunds.top_up("pm_card_pendingRefund"))
    await refunds.workflows.refund_payment(command)
    await refunds.lose(command.refund_id)

    async def complete() -> None:
        async with refunds.payments.database.worker.begin() as connection:
            await connection.execute(
                text("UPDATE refunds SET status = 'succeeded' WHERE id = :id"), {"id": command.refund_id}
            )

    client = await refunds.temporal.connect(interceptors=[BeforeDescribe(complete)])
    assert await refunds.restart(client, max_restarts=10) == 0
    assert await refunds.payments.notifications("operator_alert") == []


@pytest.mark.scenario("B35")
async def test_lost_refunds_are_started_again_up_to_the_limit(refunds: LostRefunds) -> None:
    top_up = await refunds.top_up("pm_card_pendingRefund")
    commands = [refunds.command(top_up) for _ in range(2)]
    for command in commands:
        await refunds.workflows.refund_payment(command)
        await refunds.lose(command.refund_id)
    assert await refunds.restart(refunds.temporal.client, max_restarts=1) == 1
    assert await refunds.restart(refunds.temporal.client, max_restarts=1) == 1
    for command in commands:
        await refunds.temporal.client.get_workflow_handle(names.refund_workflow_id(command.refund_id)).result()
        assert await refunds.status(command.refund_id) == "succeeded"
    assert await refunds.payments.balances() == (2_000, 0)


@pytest.mark.scenario("B35")
async def test_each_page_of_refunds_begins_after_the_one_before(refunds: LostRefunds) -> None:
    top_up = await refunds.top_up("pm_card_visa")
    commands = sorted((refunds.command(top_up) for _ in range(2)), key=lambda command: command.refund_id)
    for command in commands:
        reserve = ReserveRefund(command=command, now=datetime.now(UTC))
        await run_activity(refunds.payments.refund_activities.reserve, reserve)
    first, second = (command.refund_id for command in commands)
    reconciliation = PostgresReconciliationActivities(refunds.payments.sessions, refunds.temporal.client)
    page = RestartLostWorkflows(after="", max_restarts=0, now=datetime.now(UTC), limit=1)
    outcome = await run_activity(reconciliation.restart_refunds, page)
    assert outcome == RestartOutcome(restarted=0, last_id=first)
    second_page = replace(page, after=first, max_restarts=1, limit=200)
    assert await run_activity(reconciliation.restart_refunds, second_page) == RestartOutcome(restarted=1, last_id=None)
    await refunds.temporal.client.get_workflow_handle(names.refund_workflow_id(second)).result()
    assert [await refunds.status(refund_id) for refund_id in (first, second)] == ["pending", "succeeded"]
