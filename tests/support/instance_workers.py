"""Workers with the real workflows and activities of instances, and the starts of these workflows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

from tests.support.instance_fixture import InstanceFixture
from tests.support.temporal import TemporalFixture
from tests.support.workers import build_worker
from workflows import names
from workflows.instance_operation import InstanceOperation
from workflows.ports.instances import OperationInput, OperationOutcome, ProvisioningOutcome
from workflows.provisioning import Provisioning


def platform_worker(temporal: TemporalFixture, instances: InstanceFixture) -> Worker:
    return build_worker(
        temporal, names.PLATFORM_QUEUE, instances.instance_activities, workflows=[Provisioning, InstanceOperation]
    )


def infrastructure_worker(temporal: TemporalFixture, instances: InstanceFixture) -> Worker:
    return build_worker(
        temporal,
        names.INFRASTRUCTURE_QUEUE,
        instances.cluster_activities,
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
