"""Reconciliation and orphan cleanup on real rows, a simulated cluster and real schedules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import pytest_asyncio
from temporalio.client import (
    ScheduleOverlapPolicy,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
    WorkflowExecutionStatus,
)
from temporalio.service import RPCError

from activities.gateways.protocol import GatewayUnavailable
from activities.reconciliation import PostgresReconciliationActivities
from db.queries import webhooks
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import create_instance_fixture
from tests.support.payment_fixture import PaymentFixture, create_payment_fixture, run_activity
from tests.support.reconciliation import reconcile
from tests.support.sandboxes import ClusterEndpoint, StripeEndpoint
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from tests.support.workers import build_worker
from worker import schedules
from worker.main import keep_dispatchers_and_schedules
from workflows import names
from workflows.payment import Payment
from workflows.ports.instances import CleanUpOrphans, InstanceId, OrphanCleanupOutcome
from workflows.ports.payments import ChargePayment, PaymentInput
from workflows.ports.reconciliation import ReconciliationInput, ReconciliationOutcome
from workflows.reconciliation import OrphanCleanup, Reconciliation
from workflows.rules import webhook_events
from workflows.rules.notifications import CHANNEL_EMAIL

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest_asyncio.fixture
async def payments(database: DatabaseFixture, stripe: StripeEndpoint) -> AsyncIterator[PaymentFixture]:
    async with create_payment_fixture(database, stripe) as opened:
        yield opened


@asynccontextmanager
async def run_platform_worker(temporal: TemporalFixture, payments: PaymentFixture) -> AsyncIterator[None]:
    async with build_worker(
        temporal,
        names.PLATFORM_QUEUE,
        PostgresReconciliationActivities(payments.sessions),
        payments.payment_activities,
        workflows=[Reconciliation, Payment],
    ):
        yield


async def insert_undelivered_webhook(payments: PaymentFixture, pay: PaymentInput, at: datetime) -> None:
    """Record the webhook of the payment without its delivery, as an API that is killed after recording it."""

    def succeeded_webhook() -> bytes:
        for _, body in payments.stripe.deliveries:
            event = json.loads(body)
            mine = (event["data"]["object"].get("metadata") or {}).get("berth_payment") == pay.payment_id
            if mine and event["type"] == "payment_intent.succeeded":
                return body
        raise LookupError("not delivered yet")

    body = await wait_until(succeeded_webhook, description="the gateway's webhook")
    async with session_factory(payments.database.api).begin() as session:
        received = await webhooks.record_webhook(
            session, webhook_events.parse_stripe_event(json.loads(body)), body, at=at
        )
    assert not received.needs_no_delivery


async def charge_with_lost_response(payments: PaymentFixture) -> PaymentInput:
    """Charge a payment whose response is lost, and leave it unknown. Return its input."""
    pay = payments.payment_input()
    charge = ChargePayment(input=pay, now=datetime.now(UTC))
    payments.inject_fault("lost_reply")
    with pytest.raises(GatewayUnavailable):
        await run_activity(payments.payment_activities.charge, charge)
    await run_activity(payments.payment_activities.mark_unknown, charge)
    return pay


@pytest.mark.scenario("B20")
async def test_an_undelivered_webhook_is_delivered_to_its_payment(
    payments: PaymentFixture, temporal: TemporalFixture
) -> None:
    pay = await charge_with_lost_response(payments)
    await insert_undelivered_webhook(payments, pay, LONG_AGO)
    async with run_platform_worker(temporal, payments):
        first = await reconcile(temporal, ReconciliationInput(audit_ledger=False))

        async def in_the_wallet() -> bool:
            return (await payments.balances())[0] == pay.amount.amount_minor

        await wait_until(in_the_wallet)
        second = await reconcile(temporal, ReconciliationInput(audit_ledger=False))
        await temporal.client.get_workflow_handle(names.payment_workflow_id(pay.payment_id)).result()
    assert (first.webhooks_delivered, second.webhooks_delivered) == (1, 0)
    (event,) = await payments.rows("SELECT status FROM webhook_events")
    assert event["status"] == "delivered"
    assert len(payments.charges(pay)) == 1
    assert await payments.balances() == (pay.amount.amount_minor, 0)


async def test_a_recent_webhook_is_not_delivered_again(payments: PaymentFixture, temporal: TemporalFixture) -> None:
    pay = await charge_with_lost_response(payments)
    await insert_undelivered_webhook(payments, pay, datetime.now(UTC))
    async with run_platform_worker(temporal, payments):
        outcome = await reconcile(temporal, ReconciliationInput(audit_ledger=False))
    assert outcome.webhooks_delivered == 0


async def test_a_balance_mismatch_is_alerted_once_a_day_and_not_corrected(
    payments: PaymentFixture, temporal: TemporalFixture
) -> None:
    await run_activity(
        payments.payment_activities.charge, ChargePayment(input=payments.payment_input(), now=datetime.now(UTC))
    )
    async with run_platform_worker(temporal, payments):
        assert await reconcile(temporal, ReconciliationInput()) == ReconciliationOutcome()
        assert await payments.notifications("operator_alert") == []
        with psycopg.connect(payments.database.superuser_dsn()) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("UPDATE ledger_accounts SET balance_minor = balance_minor + 7 WHERE account = 'wallet'")
        outcomes = [await reconcile(temporal, ReconciliationInput()) for _ in range(2)]
    assert outcomes == [ReconciliationOutcome(balance_mismatches=1), ReconciliationOutcome(balance_mismatches=1)]
    (mail,) = await payments.notifications("operator_alert")
    expected = f"wallet of {payments.organization} (1507 stored, 1500 posted, in minor units of USD)"
    assert expected in mail["template_context"]["details"]
    (account,) = await payments.rows("SELECT balance_minor FROM ledger_accounts WHERE account = 'wallet'")
    assert account["balance_minor"] == 1507


@pytest.mark.scenario("P20")
async def test_the_cleanup_deletes_failed_instances_and_reports_unknown_ones(
    database: DatabaseFixture, cluster: ClusterEndpoint, temporal: TemporalFixture
) -> None:
    async with create_instance_fixture(database, cluster) as instances:
        owned, orphan, unknown = [await instances.insert_instance() for _ in range(3)]
        for instance_id in (owned, orphan, unknown):
            await instances.run_activity_with_retries(
                instances.cluster_activities.apply, InstanceId(instance_id=instance_id)
            )
        await instances.update_instance(orphan, status="failed")
        await instances.forget(unknown)
        async with (
            build_worker(temporal, names.PLATFORM_QUEUE, workflows=[OrphanCleanup]),
            build_worker(temporal, names.INFRASTRUCTURE_QUEUE, instances.cluster_activities),
        ):
            handle = await temporal.client.start_workflow(
                names.ORPHAN_CLEANUP,
                CleanUpOrphans(grace_seconds=0),
                id=temporal.unique_id("orphans"),
                task_queue=names.PLATFORM_QUEUE,
                result_type=OrphanCleanupOutcome,
                execution_timeout=timedelta(seconds=60),
            )
            collected: OrphanCleanupOutcome = await handle.result()
            attributes = (await handle.describe()).typed_search_attributes
        assert collected.removed == (instances.namespace(orphan),)
        assert instances.namespace(unknown) in collected.unknown
        assert await instances.get_live_object("Namespace", owned, instances.namespace(owned)) is not None
        assert await instances.get_live_object("Namespace", unknown, instances.namespace(unknown)) is not None
        assert attributes[names.NEEDS_ATTENTION_KEY] is True


async def test_schedules_are_created_once_and_keep_the_operators_state(temporal: TemporalFixture) -> None:
    definitions = tuple(
        schedules.ScheduleDefinition(
            id=temporal.unique_id("schedule"),
            workflow=definition.workflow,
            input=definition.input,
            every=definition.every,
        )
        for definition in schedules.SCHEDULES
    )

    async def pause(update: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule = update.description.schedule
        schedule.state = ScheduleState(paused=True, note="quiet, please")
        return ScheduleUpdate(schedule=schedule)

    await schedules.upsert_schedules(temporal.client, definitions)
    handle = temporal.client.get_schedule_handle(definitions[0].id)
    try:
        await handle.update(pause)
        slower = (
            schedules.ScheduleDefinition(
                id=definitions[0].id,
                workflow=definitions[0].workflow,
                input=definitions[0].input,
                every=timedelta(hours=2),
            ),
            *definitions[1:],
        )
        await schedules.upsert_schedules(temporal.client, slower)
        stored = (await handle.describe()).schedule
        assert (stored.state.paused, stored.state.note) == (True, "quiet, please")
        assert [interval.every for interval in stored.spec.intervals] == [timedelta(hours=2)]
    finally:
        for definition in definitions:
            await temporal.client.get_schedule_handle(definition.id).delete()


async def test_an_outage_delays_a_scheduled_run_but_does_not_drop_it(temporal: TemporalFixture) -> None:
    """The server starts what fell due within the catch-up window. After any outage the last run that fell due, at most
    one interval ago, has to be in it, and not a second one."""
    definitions = tuple(replace(definition, id=temporal.unique_id("schedule")) for definition in schedules.SCHEDULES)
    await schedules.upsert_schedules(temporal.client, definitions)
    for definition in definitions:
        handle = temporal.client.get_schedule_handle(definition.id)
        policy = (await handle.describe()).schedule.policy
        await handle.delete()
        assert policy.catchup_window == definition.every
        assert policy.overlap is ScheduleOverlapPolicy.SKIP


async def test_a_worker_puts_a_terminated_dispatcher_and_deleted_schedules_in_place_again(
    temporal: TemporalFixture,
) -> None:
    dispatcher = temporal.client.get_workflow_handle(names.notification_dispatch_workflow_id(CHANNEL_EMAIL))
    daily = temporal.client.get_schedule_handle(schedules.SCHEDULES[-1].id)

    async def in_place() -> bool:
        await daily.describe()
        return (await dispatcher.describe()).status is WorkflowExecutionStatus.RUNNING

    async def put_in_place() -> bool:
        with suppress(RPCError):
            return await in_place()
        return False

    keeping = asyncio.create_task(keep_dispatchers_and_schedules(temporal.client, timedelta(milliseconds=20)))
    try:
        await wait_until(put_in_place, description="both are in place")
        await dispatcher.terminate()
        await daily.delete()
        await wait_until(put_in_place, description="both are in place again")
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
        await dispatcher.terminate()
        for definition in schedules.SCHEDULES:
            await temporal.client.get_schedule_handle(definition.id).delete()
