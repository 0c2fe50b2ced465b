"""One operation at a time per instance, also after a workflow was lost in the middle of one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from activities.instances import record_operation_start
from db.queries.locked_instances import begin_with_locked_instance, write_and_commit
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import InstanceFixture, create_instance_fixture
from tests.support.sandboxes import ClusterEndpoint
from workflows.ports.instances import FinishOperation, OperationKind, OperationStatus
from workflows.rules.errors import RuleViolation
from workflows.rules.instance import InstanceStatus


@pytest_asyncio.fixture
async def instances(database: DatabaseFixture, cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with create_instance_fixture(database, cluster) as fixture:
        yield fixture


async def test_an_operation_that_a_crash_left_running_is_cancelled_by_the_next(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance(status="ready")
    queued, interrupted, following = (
        instances.operate(instance_id, kind)
        for kind in (OperationKind.BACKUP, OperationKind.RESTART, OperationKind.STOP)
    )
    await instances.run_activity(instances.instance_activities.create_operation, queued)
    sessions = session_factory(instances.database.worker)
    for operation in (interrupted, following):
        async with sessions.begin() as session:
            await record_operation_start(session, operation)
    statuses = [
        (await instances.operation(operation.operation_id))["status"] for operation in (queued, interrupted, following)
    ]
    assert statuses == ["cancelled", "cancelled", "running"]
    ended = await instances.operation(interrupted.operation_id)
    assert (ended["finished_at"], ended["failure_reason"]) == (following.business_time, None)
    # What remains of the first workflow changes nothing any more.
    async with sessions.begin() as session:
        with pytest.raises(RuleViolation, match="later operation"):
            await record_operation_start(session, interrupted)
    finish = FinishOperation(
        operation=interrupted,
        status=OperationStatus.SUCCEEDED,
        instance_status=InstanceStatus.DEGRADED,
        now=following.business_time,
    )
    await instances.run_activity(instances.instance_activities.finish_operation, finish)
    assert await instances.operation(interrupted.operation_id) == ended
    assert (await instances.row(instance_id))["status"] == "ready"


async def test_the_database_admits_one_running_operation_per_instance(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance(status="ready")
    operations = [instances.operate(instance_id, OperationKind.RESTART) for _ in range(2)]
    for operation in operations:
        await instances.run_activity(instances.instance_activities.create_operation, operation)
    with pytest.raises(IntegrityError, match="one_running_per_instance"):
        async with instances.database.worker.begin() as connection:
            await connection.execute(text("UPDATE instance_operations SET status = 'running'"))


async def test_provisioning_locks_the_instance_until_it_is_written(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    with psycopg.connect(instances.database.superuser_dsn()) as other:
        async with session_factory(instances.database.worker)() as session:
            await begin_with_locked_instance(session, instance_id)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("SELECT 1 FROM instances WHERE id = %s FOR UPDATE NOWAIT", (instance_id,))
            other.rollback()
            await write_and_commit(session, instance_id, status="provisioning")
            assert other.execute("SELECT status FROM instances FOR UPDATE NOWAIT").fetchone() == ("provisioning",)


async def test_an_operation_that_ends_ready_takes_back_what_failed_before(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance(status="ready")
    finish = instances.instance_activities.finish_operation
    for status, instance_status, reason in (
        (OperationStatus.FAILED, InstanceStatus.DEGRADED, "ProbeFailed"),
        (OperationStatus.SUCCEEDED, InstanceStatus.READY, None),
    ):
        operation = instances.operate(instance_id, OperationKind.RESTART)
        end = FinishOperation(
            operation=operation,
            status=status,
            instance_status=instance_status,
            reason=reason,
            now=operation.business_time,
        )
        await instances.run_activity(finish, end)
        row = await instances.row(instance_id)
        (ready,) = (condition for condition in row["conditions"] if condition["type"] == "Ready")
        assert (row["failure_reason"], ready["status"]) == (reason, "False" if reason else "True")
