"""Provisioning, operations and deletion: real workflows and activities on the simulated cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import CancelledError, WorkflowAlreadyStartedError

from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import LARGE, InstanceFixture, create_instance_fixture
from tests.support.instance_workers import run_operation, start_provisioning, workers
from tests.support.sandboxes import ClusterEndpoint
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows import names
from workflows.ports.instances import (
    InstanceId,
    OperationKind,
    OperationStatus,
    ProvisioningOutcome,
)


async def test_an_order_becomes_a_running_instance_that_is_operated_and_removed(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        handle = await start_provisioning(temporal, instances, instance_id)
        assert await handle.result() == ProvisioningOutcome(ready=True)
        row = await instances.row(instance_id)
        assert (row["status"], row["url"]) == ("ready", f"https://{row['hostname']}")
        assert row["ready_at"] is not None
        assert {c["type"]: c["status"] for c in row["conditions"]}["Ready"] == "True"

        suspend = instances.operate(instance_id, OperationKind.SUSPEND)
        assert (await run_operation(temporal, suspend)).status is OperationStatus.SUCCEEDED
        row = await instances.row(instance_id)
        assert row["status"] == "suspended"
        assert row["saved_replicas"] == {"Deployment/app": 1, "StatefulSet/database": 1}
        assert (await instances.get_live_object("CronJob", instance_id, "backup") or {})["spec"]["suspend"] is True
        assert await instances.get_live_object("PersistentVolumeClaim", instance_id, "database") is not None

        start = instances.operate(instance_id, OperationKind.START)
        refused = await run_operation(temporal, start)
        assert (refused.status, refused.reason) == (OperationStatus.FAILED, "ILLEGAL_MOVE")

        resume = instances.operate(instance_id, OperationKind.RESUME)
        assert (await run_operation(temporal, resume)).status is OperationStatus.SUCCEEDED
        row = await instances.row(instance_id)
        assert (row["status"], row["saved_replicas"]) == ("ready", None)

        delete = instances.operate(instance_id, OperationKind.DELETE)
        assert (await run_operation(temporal, delete)).status is OperationStatus.SUCCEEDED
        row = await instances.row(instance_id)
        assert (row["status"], row["url"]) == ("deleted", None)
        assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None
        operation = await instances.operation(delete.operation_id)
        assert (operation["status"], operation["kind"]) == ("succeeded", "delete")


async def test_a_successful_provisioning_takes_three_activities(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        handle = await start_provisioning(temporal, instances, instance_id)
        await handle.result()
        history = await handle.fetch_history()
    scheduled = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert scheduled == ["cluster.apply", "cluster.await_ready", "instances.record_ready"]


async def test_the_customers_operations(temporal: TemporalFixture, instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance("wordpress")
    async with workers(temporal, instances):
        assert (await (await start_provisioning(temporal, instances, instance_id)).result()).ready

        restart = instances.operate(instance_id, OperationKind.RESTART)
        assert (await run_operation(temporal, restart)).status is OperationStatus.SUCCEEDED
        app = await instances.get_live_object("Deployment", instance_id, "app")
        assert app is not None
        assert app["spec"]["template"]["metadata"]["annotations"]["berth/operation"] == restart.operation_id

        backup = instances.operate(instance_id, OperationKind.BACKUP)
        assert (await run_operation(temporal, backup)).status is OperationStatus.SUCCEEDED

        stop = instances.operate(instance_id, OperationKind.STOP)
        assert (await run_operation(temporal, stop)).status is OperationStatus.SUCCEEDED
        assert (await instances.row(instance_id))["status"] == "stopped"

        resize = instances.operate(instance_id, OperationKind.RESIZE, LARGE)
        assert (await run_operation(temporal, resize)).status is OperationStatus.SUCCEEDED
        row = await instances.row(instance_id)
        assert (row["status"], row["storage_gib"], row["cpu_millicores"]) == ("stopped", 40, 2000)

        start = instances.operate(instance_id, OperationKind.START)
        assert (await run_operation(temporal, start)).status is OperationStatus.SUCCEEDED
        assert (await instances.row(instance_id))["status"] == "ready"
        assert await _cpu_limit_is(instances, instance_id, "1200m")
        claim = await instances.get_live_object("PersistentVolumeClaim", instance_id, "data")
        assert claim is not None
        assert claim["spec"]["resources"]["requests"]["storage"] == "16Gi"


async def _cpu_limit_is(instances: InstanceFixture, instance_id: str, limit: str) -> bool:
    app = await instances.get_live_object("Deployment", instance_id, "app")
    assert app is not None
    return bool(app["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == limit)


@pytest.mark.scenario("P1")
async def test_a_second_order_for_the_same_instance_finds_the_first(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        handle = await start_provisioning(temporal, instances, instance_id)
        with pytest.raises(WorkflowAlreadyStartedError):
            await start_provisioning(temporal, instances, instance_id)
        assert (await handle.result()).ready
        namespace = await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id))
        # A second run after the first has completed keeps the namespace of the instance.
        restarted = await start_provisioning(temporal, instances, instance_id)
        assert await restarted.result() == ProvisioningOutcome(ready=True)
        after = await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id))
    assert namespace is not None
    assert after is not None
    assert namespace["metadata"]["uid"] == after["metadata"]["uid"]


@pytest.mark.scenario("P8", "P9")
@pytest.mark.parametrize(
    ("fault", "reason", "says"),
    [
        ("image_pull", "ImagePull", "n8n"),
        ("crash_loop", "CrashLoop", "exit code 1"),
        ("oom", "CrashLoop", "exit code 137"),
    ],
)
async def test_a_lasting_failure_reason_fails_the_order_and_leaves_no_namespace(
    temporal: TemporalFixture, instances: InstanceFixture, fault: str, reason: str, says: str
) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault(fault, instance_id)
    async with workers(temporal, instances):
        provisioned = await (await start_provisioning(temporal, instances, instance_id)).result()
    assert (provisioned.ready, provisioned.reason, provisioned.rollback_verified) == (False, reason, True)
    assert says in (provisioned.message or "")
    if reason == "CrashLoop":
        assert "Last lines:" in (provisioned.message or "")
    row = await instances.row(instance_id)
    assert (row["status"], row["failure_reason"]) == ("failed", reason)
    assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None


@pytest.mark.scenario("P13")
async def test_without_capacity_the_instance_waits_and_then_fails(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("unschedulable", instance_id)
    async with workers(temporal, instances):
        handle = await start_provisioning(temporal, instances, instance_id)

        async def waits() -> bool:
            row = await instances.row(instance_id)
            return row["status"] == "provisioning" and any(
                c["reason"] == "Unschedulable" and c["message"] == "Waiting for capacity." for c in row["conditions"]
            )

        await wait_until(waits)
        provisioned = await handle.result()
    assert provisioned.reason == "Unschedulable"
    assert (await instances.row(instance_id))["status"] == "failed"


@pytest.mark.scenario("P14")
async def test_a_cancellation_is_compensated_before_the_workflow_closes(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("slow_ready", instance_id)
    async with workers(temporal, instances):
        handle = await start_provisioning(temporal, instances, instance_id)
        await wait_until(lambda: instances.get_live_object("Deployment", instance_id, "app"))
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
        assert isinstance(failure.value.cause, CancelledError)
        assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None
        assert (await instances.row(instance_id))["status"] == "deleted"


@pytest.mark.scenario("P14")
async def test_a_cancellation_during_an_apply_waits_for_it_before_it_deletes(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        async with instances.database.owner.begin() as blocking:
            await blocking.execute(text("SELECT FROM instances WHERE id = :id FOR UPDATE"), {"id": instance_id})
            handle = await start_provisioning(temporal, instances, instance_id)
            await wait_until(lambda: _has_started(handle, "cluster.apply"))
            await handle.cancel()
            await wait_until(lambda: _has_event(handle, "activity_task_cancel_requested_event_attributes"))
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    assert isinstance(failure.value.cause, CancelledError)
    events = list((await handle.fetch_history()).events)
    activities = {
        event.event_id: event.activity_task_scheduled_event_attributes.activity_type.name
        for event in events
        if event.HasField("activity_task_scheduled_event_attributes")
    }
    assert list(activities.values()) == [
        "cluster.apply",
        "cluster.delete_namespace",
        "instances.record_provisioning_rollback",
    ]
    applying, deleting, _ = activities
    (ended,) = (
        event.event_id
        for event in events
        if applying
        in (
            event.activity_task_completed_event_attributes.scheduled_event_id,
            event.activity_task_canceled_event_attributes.scheduled_event_id,
        )
    )
    assert ended < deleting
    assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None
    assert (await instances.row(instance_id))["status"] == "deleted"


@pytest.mark.scenario("P14")
async def test_a_cancellation_during_an_apply_that_fails_is_no_failed_provisioning(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    namespace = instances.namespace(instance_id)
    await instances.gateway.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    async with workers(temporal, instances):
        async with instances.database.owner.begin() as blocking:
            await blocking.execute(text("SELECT FROM instances WHERE id = :id FOR UPDATE"), {"id": instance_id})
            handle = await start_provisioning(temporal, instances, instance_id)
            await wait_until(lambda: _has_started(handle, "cluster.apply"))
            await handle.cancel()
            await wait_until(lambda: _has_event(handle, "activity_task_cancel_requested_event_attributes"))
            # Before a heartbeat delivers the cancellation to the activity.
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert await _has_event(handle, "activity_task_failed_event_attributes")
    row = await instances.row(instance_id)
    assert (row["status"], row["failure_reason"]) == ("deleted", None)


async def _has_started(handle: WorkflowHandle[Any, Any], activity: str) -> bool:
    pending = (await handle.describe()).raw_description.pending_activities
    return any(each.activity_type.name == activity and each.HasField("last_started_time") for each in pending)


async def _has_event(handle: WorkflowHandle[Any, Any], attributes: str) -> bool:
    return any(event.HasField(attributes) for event in (await handle.fetch_history()).events)  # type: ignore[arg-type]


@pytest.mark.scenario("P15")
async def test_cancelling_a_completed_provisioning_changes_nothing(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        handle = await start_provisioning(temporal, instances, instance_id)
        assert (await handle.result()).ready
        await handle.cancel()
        assert await handle.result() == ProvisioningOutcome(ready=True)
        assert (await instances.row(instance_id))["status"] == "ready"
        assert await instances.get_live_object("Deployment", instance_id, "app") is not None


@pytest.mark.scenario("P16")
async def test_a_deletion_during_provisioning_wins(temporal: TemporalFixture, instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("slow_ready", instance_id, seconds=6)
    async with workers(temporal, instances):
        handle = await start_provisioning(temporal, instances, instance_id)
        await wait_until(lambda: instances.get_live_object("Deployment", instance_id, "app"))
        delete = instances.operate(instance_id, OperationKind.DELETE)
        assert (await run_operation(temporal, delete)).status is OperationStatus.SUCCEEDED
        provisioned = await handle.result()
        assert not provisioned.ready
        assert (await instances.row(instance_id))["status"] == "deleted"
        assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None


@pytest.mark.scenario("P17", "P18")
async def test_a_blocked_deletion_is_reported_and_completed_later(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    await instances.inject_fault("image_pull", instance_id)
    async with workers(temporal, instances):
        handle = await start_provisioning(temporal, instances, instance_id)
        await wait_until(lambda: instances.get_live_object("Deployment", instance_id, "app"))
        await instances.hold(instance_id)
        provisioned = await handle.result()
        assert (provisioned.ready, provisioned.reason, provisioned.rollback_verified) == (False, "ImagePull", False)
        row = await instances.row(instance_id)
        assert row["status"] == "cleanup_pending"
        stuck = next(c for c in row["conditions"] if c["type"] == "Removed")
        assert "held by" in stuck["message"]
        namespace = await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id))
        assert namespace is not None
        assert "deletionTimestamp" in namespace["metadata"]

        # The cleanup operation continues and completes once the finalizer is removed.
        cleanup = temporal.client.get_workflow_handle(
            names.operation_workflow_id(instance_id, f"{instance_id}-cleanup")
        )
        await instances.clear_faults()
        await instances.release(instance_id)

        async def gone() -> bool:
            await temporal.fast_forward(cleanup, timedelta(minutes=1))
            return bool((await instances.row(instance_id))["status"] == "deleted")

        await wait_until(gone)
        assert (await cleanup.result())["status"] == "succeeded"
        assert (await instances.operation(f"{instance_id}-cleanup"))["status"] == "succeeded"
        assert await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id)) is None


@pytest.mark.scenario("P19")
async def test_a_namespace_that_is_terminating_is_waited_for(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    await instances.run_activity(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    before = await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id))
    assert before is not None
    await instances.hold(instance_id)
    await instances.gateway.delete("Namespace", None, instances.namespace(instance_id))
    async with workers(temporal, instances):
        handle = await start_provisioning(temporal, instances, instance_id)

        async def waits() -> bool:
            return bool((await instances.row(instance_id))["status"] == "provisioning")

        await wait_until(waits)
        await instances.release(instance_id)
        assert (await handle.result()).ready
    after = await instances.get_live_object("Namespace", instance_id, instances.namespace(instance_id))
    assert after is not None
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


@pytest.mark.scenario("P2", "P33")
async def test_a_worker_that_dies_between_apply_and_record_leaves_one_instance_with_its_first_keys(
    temporal: TemporalFixture, instances: InstanceFixture, database: DatabaseFixture, cluster: ClusterEndpoint
) -> None:
    instance_id = await instances.insert_instance()
    # A worker that died after it applied the objects and before it reported the result.
    await instances.run_activity(instances.cluster_activities.apply, InstanceId(instance_id=instance_id))
    secret = await instances.get_live_object("Secret", instance_id, "app")
    deployment = await instances.get_live_object("Deployment", instance_id, "app")
    async with create_instance_fixture(database, cluster) as another:
        another.provisioning_inputs = instances.provisioning_inputs
        async with workers(temporal, another):
            assert (await (await start_provisioning(temporal, another, instance_id)).result()).ready
    after = await instances.get_live_object("Secret", instance_id, "app")
    assert secret is not None
    assert after is not None
    assert after["data"] == secret["data"]
    same = await instances.get_live_object("Deployment", instance_id, "app")
    assert deployment is not None
    assert same is not None
    assert (same["metadata"]["uid"], same["metadata"]["generation"]) == (deployment["metadata"]["uid"], 1)


async def test_an_operation_that_is_repeated_is_recorded_once(instances: InstanceFixture) -> None:
    instance_id = await instances.insert_instance(status="ready")
    order = instances.operate(instance_id, OperationKind.RESTART)
    await instances.run_activity(instances.instance_activities.create_operation, order)
    await instances.run_activity(instances.instance_activities.create_operation, replace(order, actor="another user"))
    operation = await instances.operation(order.operation_id)
    assert (operation["status"], operation["actor"]) == ("pending", "usr_1")
