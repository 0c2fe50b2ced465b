"""Deletion of an instance's namespace, for the workflows of provisioning and of operations."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows import names, policies
from workflows.failure_reasons import failure_reason
from workflows.ports.instances import ClusterActivities, DeletionOutcome, InstanceId


async def delete_namespace(instance_id: str) -> DeletionOutcome:
    """Delete the namespace. If the activity fails, the outcome is unverified and names the failure and its message."""
    try:
        return await workflow.execute_activity_method(
            ClusterActivities.delete_namespace,
            InstanceId(instance_id=instance_id),
            task_queue=names.INFRASTRUCTURE_QUEUE,
            **policies.CLUSTER_CLEANUP,
        )
    except ActivityError as error:
        return DeletionOutcome(is_verified=False, blockers=failure_reason(error))
