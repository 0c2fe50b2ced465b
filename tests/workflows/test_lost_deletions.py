"""Deletions of instances whose workflow was lost: reconciliation finishes them, with an alert."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from activities.reconciliation import PostgresReconciliationActivities
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import InstanceFixture, create_instance_fixture
from tests.support.instance_workers import infrastructure_worker, start_provisioning
from tests.support.payment_fixture import run_activity
from tests.support.reconciliation import reconcile
from tests.support.sandboxes import ClusterEndpoint
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from tests.support.workers import build_worker
from workflows import names
from workflows.instance_operation import InstanceOperation
from workflows.ports.instances import OperationKind, RecordProvisioningRollback
from workflows.ports.reconciliation import (
    ReconciliationOutcome,
    RestartLostWorkflows,
    RestartOutcome,
)
from workflows.provisioning import Provisioning
from workflows.reconciliation import Reconciliation

LONG_AGO = timedelta(hours=2)


@pytest_asyncio.fixture
async def instances(
    temporal: TemporalFixture, database: DatabaseFixture, cluster: ClusterEndpoint
) -> AsyncIterator[InstanceFixture]:
    short = timedelta(seconds=2)
    async with (
        create_instance_fixture(database, cluster, failure_threshold=short, deletion_timeout=short) as fixture,
        build_worker(
            temporal,
            names.PLATFORM_QUEUE,
            fixture.instance_activities,
            PostgresReconciliationActivities(session_factory(database.worker)),
            workflows=[Provisioning, InstanceOperation, Reconciliation],
        ),
        infrastructure_worker(temporal, fixture),
    ):
        yield fixture


async def _insert_failed_order(instances: InstanceFixture, **columns: Any) -> str:
    """Insert an instance whose subscription has ended. Return the instance's id."""
    instance_id = await instances.insert_instance(**columns)
    async with instances.database.worker.begin() as connection:
        await connection.execute(
            text("UPDATE subscriptions SET status = 'failed' WHERE id = :id"),
            {"id": instances.provisioning_inputs[instance_id].subscription_id},
        )
    return instance_id


async def _make_old(instances: InstanceFixture, instance_id: str) -> None:
    """Let the operations of an instance be so old that their workflows have to run."""
    async with instances.database.worker.begin() as connection:
        await connection.execute(
            text("UPDATE instance_operations SET created_at = :at WHERE instance_id = :id"),
            {"id": instance_id, "at": datetime.now(UTC) - LONG_AGO},
        )


@pytest.mark.scenario("P17")
async def test_a_lost_cleanup_of_a_failed_provisioning_is_finished(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await _insert_failed_order(instances)
    cleanup = temporal.client.get_workflow_handle(names.operation_workflow_id(instance_id, f"{instance_id}-cleanup"))
    await instances.inject_fault("image_pull", instance_id)
    provisioning = await start_provisioning(temporal, instances, instance_id)
    await wait_until(lambda: instances.get_live_object("PersistentVolumeClaim", instance_id, "data"))
    await instances.hold(instance_id)
    assert not (await provisioning.result()).rollback_verified
    await _make_old(instances, instance_id)
    assert await reconcile(temporal) == ReconciliationOutcome(), "its workflow runs"
    await cleanup.terminate()
    await instances.release(instance_id)
    assert await reconcile(temporal) == ReconciliationOutcome(deletions_restarted=1)
    await cleanup.result()
    assert (await instances.row(instance_id))["status"] == "deleted"
    assert (await instances.operation(f"{instance_id}-cleanup"))["status"] == "succeeded"
    assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None
    (alert,) = await instances.alerts()
    assert f"{instance_id}-cleanup" in alert["details"]
    assert await reconcile(temporal) == ReconciliationOutcome()


async def test_a_cleanup_whose_workflow_never_started_is_found(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await _insert_failed_order(instances, status="provisioning")
    rollback = RecordProvisioningRollback(
        instance_id=instance_id,
        rollback_verified=False,
        cancelled=False,
        reason="Terminating",
        message=None,
        now=datetime.now(UTC),
    )
    await run_activity(instances.instance_activities.record_provisioning_rollback, rollback)
    assert await reconcile(temporal) == ReconciliationOutcome(), "its workflow may be about to start"
    await _make_old(instances, instance_id)
    assert await reconcile(temporal) == ReconciliationOutcome(deletions_restarted=1)
    operation_id = names.operation_workflow_id(instance_id, f"{instance_id}-cleanup")
    await temporal.client.get_workflow_handle(operation_id).result()
    assert (await instances.row(instance_id))["status"] == "deleted"


async def test_each_page_of_deletions_begins_after_the_one_before(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    deletions = []
    for _ in range(2):
        deletion = instances.operate(await instances.insert_instance(status="ready"), OperationKind.DELETE)
        deletions.append(replace(deletion, business_time=datetime.now(UTC) - LONG_AGO))
        await run_activity(instances.instance_activities.create_operation, deletions[-1])
    first, second = sorted(deletions, key=lambda deletion: deletion.operation_id)
    reconciliation = PostgresReconciliationActivities(session_factory(instances.database.worker), temporal.client)
    page = RestartLostWorkflows(after="", max_restarts=0, now=datetime.now(UTC), limit=1)
    outcome = await run_activity(reconciliation.restart_deletions, page)
    assert outcome == RestartOutcome(restarted=0, last_id=first.operation_id)
    next_page = replace(page, after=first.operation_id, max_restarts=1, limit=200)
    assert await run_activity(reconciliation.restart_deletions, next_page) == RestartOutcome(restarted=1, last_id=None)
    workflow_id = names.operation_workflow_id(second.instance_id, second.operation_id)
    await temporal.client.get_workflow_handle(workflow_id).result()
    statuses = [(await instances.row(deletion.instance_id))["status"] for deletion in (first, second)]
    assert statuses == ["ready", "deleted"]
