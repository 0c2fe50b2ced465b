"""From an order to a running application and back: real workflows, real activities, the simulated cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import CancelledError, WorkflowAlreadyStartedError
from temporalio.worker import Worker

from tests.support.databases import Database
from tests.support.instances import LARGE, Fleet, fleet_of
from tests.support.sandboxes import Cluster
from tests.support.temporal import Temporal
from tests.support.wait import eventually
from workflows import names
from workflows.instance_operation import InstanceOperation
from workflows.ports.instances import (
    InstanceRef,
    Operate,
    OperationKind,
    OperationOutcome,
    OperationStatus,
    Provisioned,
)
from workflows.provisioning import Provisioning

BOTH = [names.PLATFORM, names.INFRASTRUCTURE]


@pytest_asyncio.fixture
async def fleet(database: Database, cluster: Cluster) -> AsyncIterator[Fleet]:
    async with fleet_of(database, cluster, patience=timedelta(seconds=4), removal=timedelta(seconds=5)) as made:
        yield made


@asynccontextmanager
async def workers(temporal: Temporal, fleet: Fleet) -> AsyncIterator[None]:
    """The two workers of the platform, with everything of this part registered."""
    cluster, records = fleet.activities, fleet.records
    async with (
        Worker(
            temporal.client,
            task_queue=names.PLATFORM,
            workflows=[Provisioning, InstanceOperation],
            activities=[
                records.open_operation,
                records.record_ready,
                records.record_undone,
                records.begin_removal,
                records.record_blocked,
                records.finish_operation,
            ],
        ),
        Worker(
            temporal.client,
            task_queue=names.INFRASTRUCTURE,
            activities=[
                cluster.apply,
                cluster.await_ready,
                cluster.remove,
                cluster.restart,
                cluster.scale_down,
                cluster.scale_up,
                cluster.resize,
                cluster.backup,
                cluster.collect_orphans,
            ],
            graceful_shutdown_timeout=timedelta(seconds=2),
        ),
    ):
        yield


async def provisioning(temporal: Temporal, fleet: Fleet, instance_id: str) -> WorkflowHandle[Provisioning, Provisioned]:
    return await temporal.client.start_workflow(
        Provisioning.run,
        fleet.made[instance_id],
        id=names.provisioning_workflow(instance_id),
        task_queue=names.PLATFORM,
    )


async def operated(temporal: Temporal, order: Operate) -> OperationOutcome:
    return await temporal.client.execute_workflow(
        InstanceOperation.run,
        order,
        id=names.operation_workflow(order.instance_id, order.operation_id),
        task_queue=names.PLATFORM,
    )


async def test_an_order_becomes_a_running_instance_that_is_operated_and_removed(
    temporal: Temporal, fleet: Fleet
) -> None:
    instance_id = await fleet.order()
    async with workers(temporal, fleet):
        handle = await provisioning(temporal, fleet, instance_id)
        assert await handle.result() == Provisioned(ready=True)
        row = await fleet.row(instance_id)
        assert (row["status"], row["url"]) == ("ready", f"https://{row['hostname']}")
        assert row["ready_at"] is not None
        assert {c["type"]: c["status"] for c in row["conditions"]}["Ready"] == "True"

        suspend = fleet.operate(instance_id, OperationKind.SUSPEND)
        assert (await operated(temporal, suspend)).status is OperationStatus.SUCCEEDED
        row = await fleet.row(instance_id)
        assert row["status"] == "suspended"
        assert row["restore_replicas"] == {"Deployment/app": 1, "StatefulSet/database": 1}
        assert (await fleet.live("CronJob", instance_id, "backup") or {})["spec"]["suspend"] is True
        assert await fleet.live("PersistentVolumeClaim", instance_id, "database") is not None

        start = fleet.operate(instance_id, OperationKind.START)
        refused = await operated(temporal, start)
        assert (refused.status, refused.reason) == (OperationStatus.FAILED, "ILLEGAL_MOVE")

        resume = fleet.operate(instance_id, OperationKind.RESUME)
        assert (await operated(temporal, resume)).status is OperationStatus.SUCCEEDED
        row = await fleet.row(instance_id)
        assert (row["status"], row["restore_replicas"]) == ("ready", None)

        delete = fleet.operate(instance_id, OperationKind.DELETE)
        assert (await operated(temporal, delete)).status is OperationStatus.SUCCEEDED
        row = await fleet.row(instance_id)
        assert (row["status"], row["url"]) == ("deleted", None)
        assert await fleet.live("Namespace", instance_id, fleet.namespace(instance_id)) is None
        told = await fleet.operation(delete.operation_id)
        assert (told["status"], told["kind"]) == ("succeeded", "delete")


async def test_the_good_path_takes_three_activities(temporal: Temporal, fleet: Fleet) -> None:
    instance_id = await fleet.order()
    async with workers(temporal, fleet):
        handle = await provisioning(temporal, fleet, instance_id)
        await handle.result()
        history = await handle.fetch_history()
    scheduled = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert scheduled == ["cluster.apply", "cluster.await_ready", "instances.record_ready"]


async def test_the_customers_operations(temporal: Temporal, fleet: Fleet) -> None:
    instance_id = await fleet.order("wordpress")
    async with workers(temporal, fleet):
        assert (await (await provisioning(temporal, fleet, instance_id)).result()).ready

        restart = fleet.operate(instance_id, OperationKind.RESTART)
        assert (await operated(temporal, restart)).status is OperationStatus.SUCCEEDED
        app = await fleet.live("Deployment", instance_id, "app")
        assert app is not None
        assert app["spec"]["template"]["metadata"]["annotations"]["berth/operation"] == restart.operation_id

        backup = fleet.operate(instance_id, OperationKind.BACKUP)
        assert (await operated(temporal, backup)).status is OperationStatus.SUCCEEDED

        stop = fleet.operate(instance_id, OperationKind.STOP)
        assert (await operated(temporal, stop)).status is OperationStatus.SUCCEEDED
        assert (await fleet.row(instance_id))["status"] == "stopped"

        resize = fleet.operate(instance_id, OperationKind.RESIZE, LARGE)
        assert (await operated(temporal, resize)).status is OperationStatus.SUCCEEDED
        row = await fleet.row(instance_id)
        assert (row["status"], row["storage_gib"], row["cpu_millicores"]) == ("stopped", 40, 2000)

        start = fleet.operate(instance_id, OperationKind.START)
        assert (await operated(temporal, start)).status is OperationStatus.SUCCEEDED
        assert (await fleet.row(instance_id))["status"] == "ready"
        assert await _cpu_limit_is(fleet, instance_id, "1200m")
        claim = await fleet.live("PersistentVolumeClaim", instance_id, "data")
        assert claim is not None
        assert claim["spec"]["resources"]["requests"]["storage"] == "16Gi"


async def test_a_resize_that_does_not_come_up_goes_back(temporal: Temporal, fleet: Fleet) -> None:
    instance_id = await fleet.order()
    async with workers(temporal, fleet):
        assert (await (await provisioning(temporal, fleet, instance_id)).result()).ready
        # The new pods find no node; once the former envelope is back, they do.
        await fleet.fault("unschedulable", instance_id)
        resize = asyncio.create_task(operated(temporal, fleet.operate(instance_id, OperationKind.RESIZE, LARGE)))
        await eventually(lambda: _cpu_limit_is(fleet, instance_id, "1300m"))
        await eventually(lambda: _cpu_limit_is(fleet, instance_id, "650m"))
        await fleet.heal()
        outcome = await resize
        assert (outcome.status, outcome.reason) == (OperationStatus.FAILED, "Unschedulable")
        row = await fleet.row(instance_id)
        assert (row["status"], row["cpu_millicores"]) == ("ready", 1000)
        assert await _cpu_limit_is(fleet, instance_id, "650m")


async def _cpu_limit_is(fleet: Fleet, instance_id: str, limit: str) -> bool:
    app = await fleet.live("Deployment", instance_id, "app")
    assert app is not None
    return bool(app["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == limit)


@pytest.mark.scenario("P1")
async def test_a_second_order_for_the_same_instance_finds_the_first(temporal: Temporal, fleet: Fleet) -> None:
    instance_id = await fleet.order()
    async with workers(temporal, fleet):
        handle = await provisioning(temporal, fleet, instance_id)
        with pytest.raises(WorkflowAlreadyStartedError):
            await provisioning(temporal, fleet, instance_id)
        assert (await handle.result()).ready
        namespace = await fleet.live("Namespace", instance_id, fleet.namespace(instance_id))
        # Even when it is started anew after it has ended, the instance stays what and where it is.
        again = await provisioning(temporal, fleet, instance_id)
        assert await again.result() == Provisioned(ready=True)
        after = await fleet.live("Namespace", instance_id, fleet.namespace(instance_id))
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
async def test_one_and_the_same_trouble_ends_the_order_and_leaves_nothing(
    temporal: Temporal, fleet: Fleet, fault: str, reason: str, says: str
) -> None:
    instance_id = await fleet.order()
    await fleet.fault(fault, instance_id)
    async with workers(temporal, fleet):
        provisioned = await (await provisioning(temporal, fleet, instance_id)).result()
    assert (provisioned.ready, provisioned.reason, provisioned.clean) == (False, reason, True)
    assert says in (provisioned.message or "") or fault == "image_pull"
    if reason == "CrashLoop":
        assert "Last lines:" in (provisioned.message or "")
    row = await fleet.row(instance_id)
    assert (row["status"], row["reason"]) == ("failed", reason)
    assert await fleet.live("Namespace", instance_id, fleet.namespace(instance_id)) is None


@pytest.mark.scenario("P13")
async def test_without_room_the_customer_sees_waiting_and_then_the_end(temporal: Temporal, fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.fault("unschedulable", instance_id)
    async with workers(temporal, fleet):
        handle = await provisioning(temporal, fleet, instance_id)

        async def waits() -> bool:
            row = await fleet.row(instance_id)
            return row["status"] == "provisioning" and any(
                c["reason"] == "Unschedulable" and c["message"] == "Waiting for capacity." for c in row["conditions"]
            )

        await eventually(waits)
        provisioned = await handle.result()
    assert provisioned.reason == "Unschedulable"
    assert (await fleet.row(instance_id))["status"] == "failed"


@pytest.mark.scenario("P14")
async def test_cancelled_in_the_middle_it_undoes_everything_before_it_says_cancelled(
    temporal: Temporal, fleet: Fleet
) -> None:
    instance_id = await fleet.order()
    await fleet.fault("slow_ready", instance_id)
    async with workers(temporal, fleet):
        handle = await provisioning(temporal, fleet, instance_id)
        await eventually(lambda: fleet.live("Deployment", instance_id, "app"))
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
        assert isinstance(failure.value.cause, CancelledError)
        assert await fleet.live("Namespace", instance_id, fleet.namespace(instance_id)) is None
        assert (await fleet.row(instance_id))["status"] == "deleted"


@pytest.mark.scenario("P15")
async def test_cancelling_what_has_ended_changes_nothing(temporal: Temporal, fleet: Fleet) -> None:
    instance_id = await fleet.order()
    async with workers(temporal, fleet):
        handle = await provisioning(temporal, fleet, instance_id)
        assert (await handle.result()).ready
        await handle.cancel()
        assert await handle.result() == Provisioned(ready=True)
        assert (await fleet.row(instance_id))["status"] == "ready"
        assert await fleet.live("Deployment", instance_id, "app") is not None


@pytest.mark.scenario("P16")
async def test_a_deletion_during_provisioning_wins(temporal: Temporal, fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.fault("slow_ready", instance_id, seconds=6)
    async with workers(temporal, fleet):
        handle = await provisioning(temporal, fleet, instance_id)
        await eventually(lambda: fleet.live("Deployment", instance_id, "app"))
        delete = fleet.operate(instance_id, OperationKind.DELETE)
        assert (await operated(temporal, delete)).status is OperationStatus.SUCCEEDED
        provisioned = await handle.result()
        assert not provisioned.ready
        assert (await fleet.row(instance_id))["status"] == "deleted"
        assert await fleet.live("Namespace", instance_id, fleet.namespace(instance_id)) is None


@pytest.mark.scenario("P17", "P18")
async def test_what_cannot_be_removed_is_reported_and_never_forgotten(temporal: Temporal, fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.fault("image_pull", instance_id)
    async with workers(temporal, fleet):
        handle = await provisioning(temporal, fleet, instance_id)
        await eventually(lambda: fleet.live("Deployment", instance_id, "app"))
        await fleet.fault("undeletable", instance_id)
        provisioned = await handle.result()
        assert (provisioned.ready, provisioned.reason, provisioned.clean) == (False, "ImagePull", False)
        row = await fleet.row(instance_id)
        assert row["status"] == "cleanup_pending"
        stuck = next(c for c in row["conditions"] if c["type"] == "Removed")
        assert "held by" in stuck["message"]
        namespace = await fleet.live("Namespace", instance_id, fleet.namespace(instance_id))
        assert namespace is not None
        assert "deletionTimestamp" in namespace["metadata"]

        # Its follow-up goes on by itself, and ends once the cluster lets go.
        cleanup = temporal.client.get_workflow_handle(names.operation_workflow(instance_id, f"{instance_id}-cleanup"))
        await fleet.heal()

        async def gone() -> bool:
            await temporal.fast_forward(cleanup, timedelta(minutes=1))
            return bool((await fleet.row(instance_id))["status"] == "deleted")

        await eventually(gone)
        assert (await cleanup.result())["status"] == "succeeded"
        assert (await fleet.operation(f"{instance_id}-cleanup"))["status"] == "succeeded"
        assert await fleet.live("Namespace", instance_id, fleet.namespace(instance_id)) is None


@pytest.mark.scenario("P19")
async def test_a_name_that_is_still_going_is_waited_for(temporal: Temporal, fleet: Fleet) -> None:
    instance_id = await fleet.order()
    await fleet.run(fleet.activities.apply, InstanceRef(instance_id=instance_id))
    before = await fleet.live("Namespace", instance_id, fleet.namespace(instance_id))
    assert before is not None
    await fleet.fault("undeletable", instance_id, seconds=2)
    await fleet.gateway.delete("Namespace", None, fleet.namespace(instance_id))
    async with workers(temporal, fleet):
        assert (await (await provisioning(temporal, fleet, instance_id)).result()).ready
    after = await fleet.live("Namespace", instance_id, fleet.namespace(instance_id))
    assert after is not None
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


@pytest.mark.scenario("P2", "P33")
async def test_a_worker_that_dies_between_apply_and_record_leaves_one_instance_with_its_first_keys(
    temporal: Temporal, fleet: Fleet, database: Database, cluster: Cluster
) -> None:
    instance_id = await fleet.order()
    # The dead worker's work: everything applied, nothing answered.
    await fleet.run(fleet.activities.apply, InstanceRef(instance_id=instance_id))
    secret = await fleet.live("Secret", instance_id, "app")
    deployment = await fleet.live("Deployment", instance_id, "app")
    async with fleet_of(database, cluster) as another:
        another.made = fleet.made
        async with workers(temporal, another):
            assert (await (await provisioning(temporal, another, instance_id)).result()).ready
    after = await fleet.live("Secret", instance_id, "app")
    assert secret is not None
    assert after is not None
    assert after["data"] == secret["data"]
    same = await fleet.live("Deployment", instance_id, "app")
    assert deployment is not None
    assert same is not None
    assert (same["metadata"]["uid"], same["metadata"]["generation"]) == (deployment["metadata"]["uid"], 1)


async def test_an_operation_that_is_repeated_is_recorded_once(fleet: Fleet) -> None:
    instance_id = await fleet.order(status="ready")
    order = fleet.operate(instance_id, OperationKind.RESTART)
    await fleet.run(fleet.records.open_operation, order)
    await fleet.run(fleet.records.open_operation, replace(order, actor="somebody else"))
    told = await fleet.operation(order.operation_id)
    assert (told["status"], told["actor"]) == ("pending", "usr_1")
