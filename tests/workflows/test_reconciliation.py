"""The sweeps over real rows, a real cluster and real schedules: what they find, tell, and leave alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import pytest_asyncio
from temporalio.client import ScheduleState, ScheduleUpdate, ScheduleUpdateInput
from temporalio.worker import Worker

from activities.gateways.base import Unavailable
from activities.reconciliation import ReconciliationActivities
from db.queries import webhooks
from tests.support.accounts import sessions_of
from tests.support.databases import Database
from tests.support.instances import fleet_of
from tests.support.money import Till, open_till, run
from tests.support.sandboxes import Cluster, Stripe
from tests.support.temporal import Temporal
from tests.support.wait import eventually
from worker import schedules
from workflows import names
from workflows.payment import Payment
from workflows.ports.instances import Collected, CollectOrphans, InstanceRef
from workflows.ports.payments import Charge, Pay
from workflows.ports.reconciliation import Reconcile, Reconciled
from workflows.reconciliation import OrphanCollection, Reconciliation
from workflows.rules import gateway_events

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest_asyncio.fixture
async def till(database: Database, stripe: Stripe) -> AsyncIterator[Till]:
    async with open_till(database, stripe) as opened:
        yield opened


@asynccontextmanager
async def platform(temporal: Temporal, till: Till) -> AsyncIterator[None]:
    sweeps, payments = ReconciliationActivities(till.sessions), till.payments
    async with Worker(
        temporal.client,
        task_queue=names.PLATFORM,
        workflows=[Reconciliation, Payment],
        activities=[
            *(sweeps.audit_ledger, sweeps.tell_undelivered),
            *(payments.charge, payments.inquire, payments.hear, payments.capture),
            *(payments.withdraw, payments.lose_sight),
        ],
    ):
        yield


async def sweep(temporal: Temporal, order: Reconcile) -> Reconciled:
    result: Reconciled = await temporal.client.execute_workflow(
        names.RECONCILIATION,
        order,
        id=temporal.unique("reconciliation"),
        task_queue=names.PLATFORM,
        result_type=Reconciled,
        execution_timeout=timedelta(seconds=30),
    )
    return result


async def recorded(till: Till, pay: Pay, at: datetime) -> None:
    """Write the webhook of this payment down as the API does that dies right afterwards."""

    def heard() -> bytes:
        for _, body in till.stripe.deliveries:
            event = json.loads(body)
            mine = (event["data"]["object"].get("metadata") or {}).get("berth_payment") == pay.payment_id
            if mine and event["type"] == "payment_intent.succeeded":
                return body
        raise LookupError("not delivered yet")

    body = await eventually(heard, what="the gateway's webhook")
    async with sessions_of(till.database.api).begin() as session:
        received = await webhooks.receive(session, gateway_events.stripe(json.loads(body)), body, at=at)
    assert not received.settled


async def lost_sight_of(till: Till) -> Pay:
    """A charge that the gateway took while its answer was lost, and whose process has ended since."""
    pay = till.pay()
    charge = Charge(pay=pay, now=datetime.now(UTC))
    till.fault("lost_reply")
    with pytest.raises(Unavailable):
        await run(till.payments.charge, charge)
    await run(till.payments.lose_sight, charge)
    return pay


@pytest.mark.scenario("B20")
async def test_a_webhook_that_never_reached_its_payment_is_handed_on(till: Till, temporal: Temporal) -> None:
    pay = await lost_sight_of(till)
    await recorded(till, pay, LONG_AGO)
    async with platform(temporal, till):
        first = await sweep(temporal, Reconcile(ledger=False))

        async def in_the_wallet() -> bool:
            return (await till.balances())[0] == pay.amount.amount_minor

        await eventually(in_the_wallet)
        second = await sweep(temporal, Reconcile(ledger=False))
        await temporal.client.get_workflow_handle(names.payment_workflow(pay.payment_id)).result()
    assert (first.told, second.told) == (1, 0)
    (event,) = await till.rows("SELECT status FROM webhook_events")
    assert event["status"] == "delivered"
    assert len(till.charges(pay)) == 1
    assert await till.balances() == (pay.amount.amount_minor, 0)


async def test_a_webhook_that_came_just_now_is_left_to_its_own_delivery(till: Till, temporal: Temporal) -> None:
    pay = await lost_sight_of(till)
    await recorded(till, pay, datetime.now(UTC))
    async with platform(temporal, till):
        found = await sweep(temporal, Reconcile(ledger=False))
    assert found.told == 0


async def test_books_that_do_not_add_up_are_told_once_a_day_and_left_as_they_are(
    till: Till, temporal: Temporal
) -> None:
    await run(till.payments.charge, Charge(pay=till.pay(), now=datetime.now(UTC)))
    async with platform(temporal, till):
        assert await sweep(temporal, Reconcile()) == Reconciled()
        assert await till.mails("operator_alert") == []
        with psycopg.connect(till.database.superuser_dsn()) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("UPDATE ledger_accounts SET balance_minor = balance_minor + 7 WHERE account = 'wallet'")
        found = [await sweep(temporal, Reconcile()) for _ in range(2)]
    assert found == [Reconciled(drifts=1), Reconciled(drifts=1)]
    (mail,) = await till.mails("operator_alert")
    assert till.organization in mail["context"]["details"]
    (kept,) = await till.rows("SELECT balance_minor FROM ledger_accounts WHERE account = 'wallet'")
    assert kept["balance_minor"] == 1507


@pytest.mark.scenario("P20")
async def test_the_sweep_removes_what_no_instance_owns(
    database: Database, cluster: Cluster, temporal: Temporal
) -> None:
    async with fleet_of(database, cluster) as fleet:
        owned, orphan = await fleet.order(), await fleet.order()
        for instance_id in (owned, orphan):
            await fleet.persist(fleet.activities.apply, InstanceRef(instance_id=instance_id))
        with psycopg.connect(database.superuser_dsn()) as connection:
            connection.execute("DELETE FROM instances WHERE id = %s", (orphan,))
        async with (
            Worker(temporal.client, task_queue=names.PLATFORM, workflows=[OrphanCollection]),
            Worker(
                temporal.client,
                task_queue=names.INFRASTRUCTURE,
                activities=[fleet.activities.collect_orphans],
            ),
        ):
            collected: Collected = await temporal.client.execute_workflow(
                names.ORPHAN_COLLECTION,
                CollectOrphans(grace_seconds=0, limit=100),
                id=temporal.unique("orphans"),
                task_queue=names.PLATFORM,
                result_type=Collected,
                execution_timeout=timedelta(seconds=60),
            )
        assert fleet.namespace(orphan) in collected.removed
        assert fleet.namespace(owned) not in collected.removed
        assert await fleet.live("Namespace", owned, fleet.namespace(owned)) is not None


async def test_schedules_are_put_in_place_once_and_keep_what_operators_set(temporal: Temporal) -> None:
    wanted = tuple(
        schedules.Recurring(id=temporal.unique("schedule"), workflow=one.workflow, order=one.order, every=one.every)
        for one in schedules.RECURRING
    )

    async def pause(found: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule = found.description.schedule
        schedule.state = ScheduleState(paused=True, note="quiet, please")
        return ScheduleUpdate(schedule=schedule)

    await schedules.ensure(temporal.client, wanted)
    handle = temporal.client.get_schedule_handle(wanted[0].id)
    try:
        await handle.update(pause)
        slower = (
            schedules.Recurring(
                id=wanted[0].id, workflow=wanted[0].workflow, order=wanted[0].order, every=timedelta(hours=2)
            ),
            *wanted[1:],
        )
        await schedules.ensure(temporal.client, slower)
        found = (await handle.describe()).schedule
        assert (found.state.paused, found.state.note) == (True, "quiet, please")
        assert [interval.every for interval in found.spec.intervals] == [timedelta(hours=2)]
    finally:
        for one in wanted:
            await temporal.client.get_schedule_handle(one.id).delete()
