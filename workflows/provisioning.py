"""Provisioning of an ordered instance, and its rollback."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.cancellation import is_cancelled, raise_if_cancelled
    from workflows.failure_reasons import failure_reason
    from workflows.namespace_deletion import delete_namespace
    from workflows.ports.instances import (
        AwaitReady,
        ClusterActivities,
        InstanceActivities,
        InstanceId,
        OperationInput,
        OperationKind,
        ProvisioningInput,
        ProvisioningOutcome,
        RecordProvisioningRollback,
        RecordReady,
    )
    from workflows.ports.subscription import PLATFORM_ACTOR
    from workflows.rules import ids
    from workflows.rules.instance import CAPACITY_REASONS, FailureReason
    from workflows.saga import Saga


@workflow.defn(name=names.PROVISIONING)
class Provisioning:
    """Apply the manifests, wait until the instance is ready, record it.

    A failure is rolled back and returned as an outcome, not raised. A cancellation is rolled back and then propagates.
    An ``InstanceOperation``, which retries without a limit, deletes what the rollback could not verify as deleted.
    """

    @workflow.init
    def __init__(self, command: ProvisioningInput) -> None:
        self._input = command
        self._saga = Saga()
        self._rollback_verified = True

    @workflow.run
    async def run(self, command: ProvisioningInput) -> ProvisioningOutcome:
        try:
            async with self._saga as saga:
                saga.add_compensation(self._roll_back)
                await self._provision()
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            # Its last activity failed when it was cancelled: a failure is not retried then.
            raise_if_cancelled()
            reason, message = failure_reason(error)
            return ProvisioningOutcome(
                ready=False, reason=reason, message=message, rollback_verified=self._rollback_verified
            )
        return ProvisioningOutcome(ready=True)

    async def _provision(self) -> None:
        instance_id = self._input.instance_id
        applied = await workflow.execute_activity_method(
            ClusterActivities.apply,
            InstanceId(instance_id=instance_id),
            task_queue=names.INFRASTRUCTURE_QUEUE,
            **policies.CLUSTER_CALL,
        )
        if applied.already_provisioned:
            return
        raise_if_cancelled()
        ready = await workflow.execute_activity_method(
            ClusterActivities.await_ready,
            AwaitReady(instance_id=instance_id, is_starting=True),
            task_queue=names.INFRASTRUCTURE_QUEUE,
            **policies.CLUSTER_WAIT,
        )
        await workflow.execute_activity_method(
            InstanceActivities.record_ready,
            RecordReady(instance_id=instance_id, conditions=ready.conditions, now=workflow.now()),
            task_queue=names.PLATFORM_QUEUE,
            **policies.DATABASE,
        )

    async def _roll_back(self) -> None:
        """Delete the namespace, which holds every object of the instance, and record the result."""
        removed = await delete_namespace(self._input.instance_id)
        self._rollback_verified = removed.is_verified
        cancelled = self._saga.cause is None or is_cancelled_exception(self._saga.cause) or is_cancelled()
        reason, message = (None, None) if cancelled else failure_reason(self._saga.cause)
        if not removed.is_verified:
            message = ", ".join(removed.blockers) or message
        await workflow.execute_activity_method(
            InstanceActivities.record_provisioning_rollback,
            RecordProvisioningRollback(
                instance_id=self._input.instance_id,
                rollback_verified=removed.is_verified,
                cancelled=cancelled,
                reason=reason,
                message=message,
                now=workflow.now(),
            ),
            task_queue=names.PLATFORM_QUEUE,
            **policies.DATABASE,
        )
        if not removed.is_verified or reason in (*CAPACITY_REASONS, FailureReason.POD_SECURITY):
            workflow.upsert_search_attributes([names.NEEDS_ATTENTION_KEY.value_set(True)])
        if not removed.is_verified:
            await self._start_cleanup_operation()

    async def _start_cleanup_operation(self) -> None:
        operation = OperationInput(
            operation_id=ids.cleanup_operation_id(self._input.instance_id),
            instance_id=self._input.instance_id,
            subscription_id=self._input.subscription_id,
            organization_id=self._input.organization_id,
            kind=OperationKind.DELETE,
            actor=PLATFORM_ACTOR,
            business_time=self._input.business_time,
        )
        await workflow.start_child_workflow(
            names.INSTANCE_OPERATION,
            operation,
            id=names.operation_workflow_id(operation.instance_id, operation.operation_id),
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            search_attributes=names.search_attributes(
                operation.organization_id,
                "operation",
                subscription=operation.subscription_id,
                instance=operation.instance_id,
            ),
        )
