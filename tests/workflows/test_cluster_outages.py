"""Outages of the cluster's API and waits in task queues: neither says anything of an instance."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle

from activities.adapters.kubernetes import client
from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import LARGE, InstanceFixture, create_instance_fixture
from tests.support.instance_workers import (
    infrastructure_worker,
    platform_worker,
    start_operation,
    start_provisioning,
    workers,
)
from tests.support.sandboxes import ClusterEndpoint
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from worker.main import run_workers
from worker.registry import open_dependencies
from worker.settings import WorkerSettings
from workflows.ports.instances import OperationKind, OperationStatus, ProvisioningOutcome


@pytest.mark.scenario("P5")
async def test_the_time_in_a_queue_is_no_time_of_an_attempt(
    temporal: TemporalFixture, database: DatabaseFixture, cluster: ClusterEndpoint
) -> None:
    """An order that waited for a worker is tried as long as one that did not."""
    threshold = timedelta(seconds=6)
    async with (
        create_instance_fixture(
            database, cluster, failure_threshold=threshold, deletion_timeout=timedelta(seconds=5)
        ) as instances,
        platform_worker(temporal, instances),
    ):
        instance_id = await instances.insert_instance()
        handle = await start_provisioning(temporal, instances, instance_id)

        async def has_waited_longer_than_failures_may_last() -> bool:
            pending = (await handle.describe()).raw_description.pending_activities
            return any(datetime.now(UTC) - waiting.scheduled_time.ToDatetime(UTC) > threshold for waiting in pending)

        await wait_until(has_waited_longer_than_failures_may_last)
        # The cluster is overloaded when the worker starts: two attempts fail, each of which sends its request again.
        await instances.inject_fault("server_error", instance_id, count=2 * client.MAX_ATTEMPTS)
        async with infrastructure_worker(temporal, instances):
            assert await handle.result() == ProvisioningOutcome(ready=True)
    # Nor does a time limit of the activity run while it waits: workers may be down for longer than that.
    scheduled = await scheduled_activity(handle, "cluster.apply")
    assert scheduled.schedule_to_close_timeout.ToTimedelta() == timedelta(0)
    assert scheduled.schedule_to_start_timeout.ToTimedelta() == timedelta(0)


@pytest.mark.scenario("P5")
async def test_an_instance_survives_an_outage_of_the_clusters_api_while_it_gets_ready(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    """Its objects are applied: an API server that is being upgraded says nothing of it."""
    instance_id = await instances.insert_instance()
    await instances.inject_fault("slow_ready", instance_id, seconds=3)
    async with workers(temporal, instances):
        handle = await start_provisioning(temporal, instances, instance_id)
        await wait_until(lambda: has_completed(handle, "cluster.apply"))
        await instances.inject_fault("server_error", instance_id, count=100_000)
        await wait_until(lambda: has_attempt(handle, 3))
        await instances.clear_faults()
        assert await handle.result() == ProvisioningOutcome(ready=True)
    scheduled = await scheduled_activity(handle, "cluster.await_ready")
    retries = scheduled.retry_policy
    outage = min(retries.maximum_interval.ToTimedelta() * (retries.maximum_attempts - 6), timedelta(hours=1))
    assert outage > timedelta(minutes=30)


@pytest.mark.scenario("P5", "P8")
async def test_an_outage_of_the_clusters_api_does_not_restart_the_time_that_a_failure_reason_has_persisted(
    temporal: TemporalFixture, database: DatabaseFixture, cluster: ClusterEndpoint
) -> None:
    async with create_instance_fixture(database, cluster) as instances, workers(temporal, instances):
        instance_id = await instances.insert_instance()
        await instances.inject_fault("image_pull", instance_id)
        handle = await start_provisioning(temporal, instances, instance_id)

        async def has_failure_reason() -> bool:
            return bool((await instances.row(instance_id))["failure_reason"] == "ImagePull")

        await wait_until(has_failure_reason)
        await instances.inject_fault("server_error", instance_id, count=100_000)
        await wait_until(lambda: has_attempt(handle, 3))
        (pending,) = (await handle.describe()).raw_description.pending_activities
        _, progress = await temporal.client.data_converter.decode(pending.heartbeat_details.payloads)
        assert progress["failure_reason"] == "ImagePull"
        await instances.clear_faults()
        assert (await handle.result()).ready


@pytest.mark.scenario("P5")
async def test_an_operation_rides_out_an_outage_of_the_clusters_api(
    temporal: TemporalFixture, instances: InstanceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing happened to the instance: an operation that fails says otherwise, and rolls a plan change back."""
    # The activity fails at the first refused request: its retries are what is waited for.
    monkeypatch.setattr(client, "MAX_ATTEMPTS", 1)
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        assert (await (await start_provisioning(temporal, instances, instance_id)).result()).ready
        for kind, status in (
            (OperationKind.RESTART, "ready"),
            (OperationKind.RESIZE, "ready"),
            (OperationKind.STOP, "stopped"),
            (OperationKind.START, "ready"),
            (OperationKind.SUSPEND, "suspended"),
            (OperationKind.RESUME, "ready"),
        ):
            await instances.inject_fault("server_error", instance_id, count=100_000)
            resources = LARGE if kind is OperationKind.RESIZE else None
            handle = await start_operation(temporal, instances.operate(instance_id, kind, resources))
            await wait_until(partial(has_attempt, handle, 2))
            await temporal.fast_forward(handle, timedelta(minutes=10))
            await instances.clear_faults()
            await temporal.fast_forward(handle, timedelta(seconds=15))
            assert (kind, (await handle.result()).status) == (kind, OperationStatus.SUCCEEDED)
            row = await instances.row(instance_id)
            assert (kind, row["status"]) == (kind, status)


@pytest.mark.scenario("P5")
async def test_an_operation_that_the_cluster_refuses_fails_at_once(
    temporal: TemporalFixture, instances: InstanceFixture
) -> None:
    instance_id = await instances.insert_instance()
    async with workers(temporal, instances):
        assert (await (await start_provisioning(temporal, instances, instance_id)).result()).ready
        await instances.inject_fault("quota", instance_id, count=1)
        handle = await start_operation(temporal, instances.operate(instance_id, OperationKind.RESIZE, LARGE))
        outcome = await handle.result()
    assert (outcome.status, outcome.reason) == (OperationStatus.FAILED, "QuotaExceeded")
    # The second one restores the resources.
    assert await final_attempts(handle, "cluster.resize") == [1, 1]
    assert (await instances.row(instance_id))["status"] == "ready"


async def has_completed(handle: WorkflowHandle[Any, Any], name: str) -> bool:
    events = (await handle.fetch_history()).events
    scheduled = {
        event.event_id for event in events if event.activity_task_scheduled_event_attributes.activity_type.name == name
    }
    return any(event.activity_task_completed_event_attributes.scheduled_event_id in scheduled for event in events)


async def final_attempts(handle: WorkflowHandle[Any, Any], name: str) -> list[int]:
    """Return the number of the attempt with which each activity of this name ended."""
    events = (await handle.fetch_history()).events
    scheduled = {
        event.event_id for event in events if event.activity_task_scheduled_event_attributes.activity_type.name == name
    }
    started = [event.activity_task_started_event_attributes for event in events]
    return [attributes.attempt for attributes in started if attributes.scheduled_event_id in scheduled]


async def has_attempt(handle: WorkflowHandle[Any, Any], attempt: int) -> bool:
    pending = (await handle.describe()).raw_description.pending_activities
    return any(activity.attempt >= attempt for activity in pending)


async def test_waiting_for_one_instance_does_not_hold_up_the_next(
    temporal: TemporalFixture, instances: InstanceFixture, database: DatabaseFixture, cluster: ClusterEndpoint
) -> None:
    settings = WorkerSettings(
        environment="test",
        worker_database_url=database.worker_url,
        temporal_address=temporal.address,
        encryption_key=SecretStr(base64.b64encode(bytes(range(32))).decode()),
        kubeconfig=cluster.kubeconfig,
        max_concurrent_cluster_activities=1,
    )
    slow, quick = await instances.insert_instance(), await instances.insert_instance()
    await instances.inject_fault("slow_ready", slow, seconds=20)
    async with open_dependencies(settings) as dependencies, run_workers(dependencies, temporal.client):
        waiting = await start_provisioning(temporal, instances, slow)
        await wait_until(lambda: instances.get_live_object("Deployment", slow, "app"))
        assert await (await start_provisioning(temporal, instances, quick)).result() == ProvisioningOutcome(ready=True)
        assert (await waiting.describe()).status is WorkflowExecutionStatus.RUNNING
        await instances.clear_faults()
        assert await waiting.result() == ProvisioningOutcome(ready=True)


async def scheduled_activity(handle: WorkflowHandle[Any, Any], name: str) -> Any:
    """Return the attributes with which the activity was scheduled."""
    (scheduled,) = (
        event.activity_task_scheduled_event_attributes
        for event in (await handle.fetch_history()).events
        if event.activity_task_scheduled_event_attributes.activity_type.name == name
    )
    return scheduled
