"""Backups of instances: a failure is seen, and the plan's retention reaches them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio
from sqlalchemy import text
from temporalio.exceptions import ApplicationError

from tests.support import inserts
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import SMALL, InstanceFixture, create_instance_fixture
from tests.support.sandboxes import ClusterEndpoint
from workflows.ports.instances import (
    FinishOperation,
    InstanceId,
    OperationKind,
    OperationStatus,
)


@pytest_asyncio.fixture
async def instances(database: DatabaseFixture, cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with create_instance_fixture(
        database, cluster, failure_threshold=timedelta(seconds=3), deletion_timeout=timedelta(seconds=3)
    ) as fixture:
        yield fixture


async def test_a_backup_that_fails_is_a_failure_with_its_last_words(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.provision(instance_id)
    await instances.update_instance(instance_id, status="ready")
    await instances.inject_fault("crash_loop", instance_id)
    backup = instances.operate(instance_id, OperationKind.BACKUP)
    with pytest.raises(ApplicationError) as raised:
        await asyncio.wait_for(instances.run_activity(instances.cluster_activities.run_backup, backup), timeout=60)
    assert (raised.value.type, raised.value.non_retryable) == ("JobFailed", True)
    jobs = await instances.gateway.list("Job", instances.namespace(instance_id), labels="berth/instance")
    lifetimes = [job["spec"].get("ttlSecondsAfterFinished") for job in jobs if job["metadata"]["name"] != "install"]
    assert lifetimes == [3 * 86_400]


@pytest.mark.scenario("P34")
async def test_a_failed_backup_is_seen_by_the_customer_and_by_operators(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.update_instance(instance_id, status="ready")
    backup = instances.operate(instance_id, OperationKind.BACKUP)
    finish = FinishOperation(
        operation=backup, status=OperationStatus.FAILED, now=inserts.NOW, reason="JobFailed", message="tar: no space"
    )
    for _ in range(2):
        await instances.run_activity(instances.instance_activities.finish_operation, finish)
    operation = await instances.operation(backup.operation_id)
    assert [operation[name] for name in ("status", "failure_reason", "message")] == [
        "failed",
        "JobFailed",
        "tar: no space",
    ]
    row = await instances.row(instance_id)
    assert row["status"] == "ready"
    condition = next(entry for entry in row["conditions"] if entry["type"] == "Backup")
    assert (condition["status"], condition["reason"], condition["message"]) == ("False", "JobFailed", "tar: no space")
    async with instances.database.worker.connect() as connection:
        alerts = (
            await connection.execute(text("SELECT template_context FROM notifications WHERE kind = 'operator_alert'"))
        ).all()
    assert [alert[0]["instance_id"] for alert in alerts] == [instance_id]
    # The next one that succeeds ends it; one that was rejected says nothing.
    for status, reason in ((OperationStatus.SUCCEEDED, None), (OperationStatus.FAILED, "ILLEGAL_MOVE")):
        other = instances.operate(instance_id, OperationKind.BACKUP)
        ended = FinishOperation(operation=other, status=status, now=inserts.NOW, reason=reason)
        await instances.run_activity(instances.instance_activities.finish_operation, ended)
        row = await instances.row(instance_id)
        assert next(entry["status"] for entry in row["conditions"] if entry["type"] == "Backup") == "True"


@pytest.mark.parametrize("service", ["n8n", "wordpress"])
async def test_the_plans_retention_reaches_the_backups_and_follows_a_plan_change(
    instances: InstanceFixture, service: str
) -> None:
    instance_id = await instances.insert_instance(service, entitlements={"backup_retention_days": 30})
    await instances.run_activity(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    assert await retention(instances, instance_id) == {"30"}
    async with instances.database.worker.begin() as connection:
        await connection.execute(text("""UPDATE plans SET entitlements = '{"backup_retention_days": 7}'"""))
    await instances.update_instance(instance_id, status="ready")
    resize = instances.operate(instance_id, OperationKind.RESIZE, SMALL)
    await instances.run_activity(instances.cluster_activities.resize, resize)
    assert await retention(instances, instance_id) == {"7"}
    # The former envelope is the former retention as well: a plan change that failed loses no backup.
    await instances.run_activity(instances.cluster_activities.resize, replace(resize, resources=None))
    assert await retention(instances, instance_id) == {"30"}
    await instances.run_activity(instances.cluster_activities.resize, resize)
    finish = FinishOperation(operation=resize, status=OperationStatus.SUCCEEDED, now=inserts.NOW)
    await instances.run_activity(instances.instance_activities.finish_operation, finish)
    assert (await instances.row(instance_id))["entitlements"] == {"backup_retention_days": 7}


async def retention(instances: InstanceFixture, instance_id: str) -> set[str]:
    cron = await instances.get_live_object("CronJob", instance_id, "backup")
    assert cron is not None
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    variables = [v for part in ("initContainers", "containers") for c in pod.get(part, []) for v in c.get("env", [])]
    return {variable["value"] for variable in variables if variable["name"] == "RETENTION_DAYS"}
