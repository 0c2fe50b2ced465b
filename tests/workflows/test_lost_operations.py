"""Operations on instances whose workflow was lost: they are cancelled, and the administrators are alerted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest_asyncio
from sqlalchemy import text

from activities.reconciliation import PostgresReconciliationActivities
from db.session import session_factory
from tests.support.before_describe import BeforeDescribe
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import InstanceFixture, create_instance_fixture
from tests.support.payment_fixture import run_activity
from tests.support.sandboxes import ClusterEndpoint
from tests.support.temporal import TemporalFixture
from workflows import names
from workflows.ports.instances import OperationKind
from workflows.ports.reconciliation import RestartLostWorkflows, RestartOutcome

LONG_AGO = timedelta(hours=2)


@pytest_asyncio.fixture
async def instances(database: DatabaseFixture, cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with create_instance_fixture(database, cluster) as fixture:
        yield fixture


async def _insert_operation(
    instances: InstanceFixture, *, age: timedelta = LONG_AGO, kind: OperationKind = OperationKind.RESTART
) -> tuple[str, str]:
    """Record an operation without a workflow. Return the ids of its instance and of itself."""
    instance_id = await instances.insert_instance()
    operation = replace(instances.operate(instance_id, kind), business_time=datetime.now(UTC) - age)
    await run_activity(instances.instance_activities.create_operation, operation)
    return instance_id, operation.operation_id


async def _cancel_lost(instances: InstanceFixture, temporal: TemporalFixture, *, limit: int = 200) -> RestartOutcome:
    reconciliation = PostgresReconciliationActivities(session_factory(instances.database.worker), temporal.client)
    command = RestartLostWorkflows(after="", max_restarts=10, now=datetime.now(UTC), limit=limit)
    outcome: RestartOutcome = await run_activity(reconciliation.cancel_lost_operations, command)
    return outcome


async def test_an_operation_without_a_workflow_is_cancelled_with_an_alert(
    instances: InstanceFixture, temporal: TemporalFixture
) -> None:
    _, lost = await _insert_operation(instances)
    assert (await _cancel_lost(instances, temporal)).restarted == 1
    row = await instances.operation(lost)
    assert (row["status"], row["finished_at"] is not None) == ("cancelled", True)
    assert "Start it again" in row["message"]
    (alert,) = await instances.alerts()
    assert lost in alert["details"]
    assert (await _cancel_lost(instances, temporal)).restarted == 0


async def test_operations_that_are_young_or_running_and_deletions_are_left_alone(
    instances: InstanceFixture, temporal: TemporalFixture
) -> None:
    _, young = await _insert_operation(instances, age=timedelta(minutes=50))
    _, deletion = await _insert_operation(instances, kind=OperationKind.DELETE)
    instance_id, running = await _insert_operation(instances)
    handle = await temporal.client.start_workflow(
        names.INSTANCE_OPERATION,
        id=names.operation_workflow_id(instance_id, running),
        task_queue=TemporalFixture.unique_id("unserved"),
    )
    try:
        assert (await _cancel_lost(instances, temporal)).restarted == 0
    finally:
        await handle.terminate()
    assert {(await instances.operation(operation_id))["status"] for operation_id in (young, deletion, running)} == {
        "pending"
    }
    assert await instances.alerts() == []


async def test_each_page_begins_after_the_one_before(instances: InstanceFixture, temporal: TemporalFixture) -> None:
    ids = sorted([(await _insert_operation(instances))[1] for _ in range(2)])
    assert await _cancel_lost(instances, temporal, limit=1) == RestartOutcome(restarted=1, last_id=ids[0])
    assert await _cancel_lost(instances, temporal) == RestartOutcome(restarted=1, last_id=None)


async def test_an_operation_that_ends_while_its_workflow_is_looked_for_is_left_alone(
    instances: InstanceFixture, temporal: TemporalFixture
) -> None:
    _, ending = await _insert_operation(instances)

    async def end() -> None:
        async with instances.database.worker.begin() as connection:
            await connection.execute(
                text("UPDATE instance_operations SET status = 'succeeded', finished_at = now() WHERE id = :id"),
                {"id": ending},
            )

    client = await temporal.connect(interceptors=[BeforeDescribe(end)])
    reconciliation = PostgresReconciliationActivities(session_factory(instances.database.worker), client)
    command = RestartLostWorkflows(after="", max_restarts=10, now=datetime.now(UTC))
    assert (await run_activity(reconciliation.cancel_lost_operations, command)).restarted == 0
    row = await instances.operation(ending)
    assert (row["status"], row["message"]) == ("succeeded", None)
    assert await instances.alerts() == []
