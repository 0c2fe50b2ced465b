"""Workers with the real workflows and activities of instances, and the starts of these workflows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

from tests.support.instance_fixture import InstanceFixture
from tests.support.temporal import TemporalFixture
from worker.workflow_runner import sandboxed_runner
from workflows import names
from workflows.instance_operation import InstanceOperation
from workflows.ports.instances import OperationInput, OperationOutcome, ProvisioningOutcome
from workflows.provisioning import Provisioning


def platform_worker(temporal: TemporalFixture, instances: InstanceFixture) -> Worker:
    records = instances.instance_activities
    return Worker(
        temporal.client,
        task_queue=names.PLATFORM_QUEUE,
        workflows=[Provisioning, InstanceOperation],
        workflow_runner=sandboxed_runner("tests"),
        activities=[
            records.create_operation,
            records.record_ready,
            records.record_provisioning_rollback,
            records.start_deletion,
            records.record_deletion_blocked,
            records.finish_operation,
        ],
    )


def infrastructure_worker(temporal: TemporalFixture, instances: InstanceFixture) -> Worker:
    cluster = instances.cluster_activities
    return Worker(
        temporal.client,
        task_queue=names.INFRASTRUCTURE_QUEUE,
        activities=[
            cluster.apply,
            cluster.await_ready,
            cluster.delete_namespace,
            cluster.restart,
            cluster.scale_down,
            cluster.scale_up,
            cluster.resize,
            cluster.run_backup,
            cluster.clean_up_orphans,
        ],
        graceful_shutdown_timeout=timedelta(seconds=2),
    )


@asynccontextmanager
async def workers(temporal: TemporalFixture, instances: InstanceFixture) -> AsyncIterator[None]:
    """Run the platform's and the infrastructure's worker with the workflows and activities of instances."""
    async with platform_worker(temporal, instances), infrastructure_worker(temporal, instances):
        yield


async def start_provisioning(
    temporal: TemporalFixture, instances: InstanceFixture, instance_id: str
) -> WorkflowHandle[Provisioning, ProvisioningOutcome]:
    return await temporal.client.start_workflow(
        Provisioning.run,
        instances.provisioning_inputs[instance_id],
        id=names.provisioning_workflow_id(instance_id),
        task_queue=names.PLATFORM_QUEUE,
    )


async def start_operation(
    temporal: TemporalFixture, order: OperationInput
) -> WorkflowHandle[InstanceOperation, OperationOutcome]:
    return await temporal.client.start_workflow(
        InstanceOperation.run,
        order,
        id=names.operation_workflow_id(order.instance_id, order.operation_id),
        task_queue=names.PLATFORM_QUEUE,
    )


async def run_operation(temporal: TemporalFixture, order: OperationInput) -> OperationOutcome:
    return await (await start_operation(temporal, order)).result()
